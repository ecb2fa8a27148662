"""Algorithms of NNCF that are not here, and the sections that come nearest to theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Keys of rb_sparsity and movement_sparsity that magnitude_sparsity has too.
_SHARED = ("ignored_scopes", "target_scopes", "validate_scopes", "sparsity_init")


@dataclass(frozen=True)
class _Replacement:
    """What stands for an algorithm.

    Attributes:
        reason: Why the algorithm is not here, and what differs.
        section: Makes the other section from the algorithm's own.
    """

    reason: str
    section: Callable[[Mapping[str, Any]], dict[str, Any]]


def _as_magnitude(section: Mapping[str, Any]) -> dict[str, Any]:
    shared = {key: section[key] for key in _SHARED if key in section}
    params = dict(section.get("params") or {})
    if section["algorithm"] == "rb_sparsity":
        params = {"schedule": "exponential", **params}  # its default; magnitude_sparsity's is polynomial
        params.pop("check_sparsity_masks", None)
    else:
        params = {key: params[key] for key in ("power", "steps_per_epoch") if key in params}
    return {"algorithm": "magnitude_sparsity", **shared, **({"params": params} if params else {})}


REPLACEMENTS = {
    "rb_sparsity": _Replacement(
        "rb_sparsity learns its masks through a loss of their own, which is not here. magnitude_sparsity has the same "
        "schedules, and reaches each level at once instead of by training",
        _as_magnitude,
    ),
    "movement_sparsity": _Replacement(
        "movement_sparsity learns its masks, which is not here. magnitude_sparsity needs a level instead of "
        "thresholds: set sparsity_target and sparsity_target_epoch",
        _as_magnitude,
    ),
    "binarization": _Replacement(
        "binarization is not here. quantization has 8 bits instead of one",
        lambda section: {**{key: section[key] for key in section if key != "mode"}, "algorithm": "quantization"},
    ),
    "experimental_quantization": _Replacement(
        "experimental_quantization is not here. quantization has the same keys",
        lambda section: {**section, "algorithm": "quantization"},
    ),
}


def refuse_replaced(section: Any) -> Any:
    """Refuses a section of an algorithm that is not here, and returns any other.

    Raises:
        ValueError: Says why, and what to write instead.
    """
    if (found := _replacement(section)) is None:
        return section
    raise ValueError(f"{found.reason}. Write instead: {json.dumps(found.section(section))}")


def with_replacements(contents: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Puts in the nearest sections for those of algorithms that are not here.

    Args:
        contents: A whole file.

    Returns:
        The file with its other sections, and a note on each of them.
    """
    sections = contents.get("compression")
    listed = sections if isinstance(sections, list) else [sections]
    notes = [found.reason for section in listed if (found := _replacement(section)) is not None]
    if not notes:
        return contents, []
    replaced = [_nearest(section) for section in listed]
    return {**contents, "compression": replaced}, notes


def _nearest(section: Any) -> Any:
    found = _replacement(section)
    return section if found is None else found.section(section)


def _replacement(section: Any) -> _Replacement | None:
    name = section.get("algorithm") if isinstance(section, Mapping) else None
    return REPLACEMENTS.get(name) if isinstance(name, str) else None

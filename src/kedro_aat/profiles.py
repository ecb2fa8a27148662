"""What `target`, and the target that the objective names, set where the user has written nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedro_aat.export.targets.registry import TARGETS

_COMPRESSING = ("compression", "second_stage", "third_stage")
# What a target sets where the user has set nothing; the docstring of AatSettings says it in words.
_INT8: Mapping[str, Any] = {"compression": {"algorithm": "quantization"}}
PROFILES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {"compression": {"algorithm": "filter_pruning", "round_to": 8}, "objective": "latency"},
    "arm": {"compression": {"algorithm": "filter_pruning", "rate_of": "macs"}, "objective": "bytes"},
    "microcontroller": {"compression": {"algorithm": "filter_pruning"}, "objective": "bytes"},
}


def with_profile(data: Any) -> Any:
    """Plain data of `AatSettings` with what its `target` sets and it does not say."""
    target = data.get("target") if isinstance(data, Mapping) else None
    profile = PROFILES.get(target) if isinstance(target, str) else None
    if profile is None:
        return data
    defaults: dict[str, Any] = {"compression": profile["compression"]}
    if "third_stage" not in data and not _names_quantization(data.get("compression")):
        defaults["second_stage"] = _INT8
    export = data.get("export", {})
    objective = {"objective": profile["objective"]}
    return defaults | dict(data) | ({"export": objective | dict(export)} if isinstance(export, Mapping) else {})


def rounded_for_kernels(data: Any) -> Any:
    """Plain data of `AatSettings` that leaves as many channels as the kernels of the objective's target are fast with.

    That is `round_to` of filter pruning, where it is not written.
    """
    export = data.get("export") if isinstance(data, Mapping) else None
    objective = export.get("objective") if isinstance(export, Mapping) else getattr(export, "objective", None)
    name = objective.get("target") if isinstance(objective, Mapping) else getattr(objective, "target", None)
    multiple = next((info.round_to for target, info in TARGETS.items() if target == name), 1)
    if multiple == 1:
        return data
    return {**data, **{part: _rounded(data[part], multiple) for part in data if part in _COMPRESSING}}


def _rounded(section: Any, multiple: int) -> Any:
    """Plain data of a compression or a later stage, with `round_to` where filters are pruned and none is written."""
    if isinstance(section, list | tuple):
        return [_rounded(part, multiple) for part in section]
    if not isinstance(section, Mapping):
        return section
    inner = {key: _rounded(section[key], multiple) for key in ("compression", "algorithms") if key in section}
    rounded = {"round_to": multiple} if section.get("algorithm") == "filter_pruning" else {}
    return rounded | dict(section) | inner


def _names_quantization(compression: Any) -> bool:
    """Whether plain data of a compression name quantization, alone or in a list of algorithms."""
    if isinstance(compression, Mapping):
        compression = compression.get("algorithms", [compression])
    parts = compression if isinstance(compression, list | tuple) else [compression]
    return any(isinstance(part, Mapping) and part.get("algorithm") == "quantization" for part in parts)

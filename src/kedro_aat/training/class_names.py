"""Names of the classes that a split's dataset knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MOST_WRAPPERS = 8
_MOST_NAMES = 10_000


def class_names_of(data: Any) -> tuple[str, ...] | None:
    """The attribute `classes` of a dataset, or of the dataset that it wraps, as a subset or a data loader does.

    Args:
        data: A split, in any form.

    Returns:
        The names by number; None if there are none, or if they are not text.
    """
    for _ in range(_MOST_WRAPPERS):
        if isinstance(data, Mapping):
            return None
        names = getattr(data, "classes", None)
        if isinstance(names, Sequence) and not isinstance(names, str) and 0 < len(names) <= _MOST_NAMES:
            return tuple(names) if all(isinstance(name, str) for name in names) else None
        data = getattr(data, "dataset", None)
    return None

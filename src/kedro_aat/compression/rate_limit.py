"""A limit that the model of a controller keeps from a certain rate on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kedro_aat.compression.controller import ModelController

# Share of the size that is left if a limit does not hold yet.
LIMIT_STEP = 0.98


@dataclass(frozen=True)
class RateLimit:
    """What a model must keep from a certain rate on, such as a size of its file.

    Attributes:
        rate: The rate, in [0, 1).
        holds: Whether the model of a controller keeps it.
    """

    rate: float
    holds: Callable[[ModelController], bool]

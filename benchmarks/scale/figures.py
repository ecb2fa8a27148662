"""What a measurement found, and its bar; shown by the modules that run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch


class Figure(NamedTuple):
    """One measured number.

    Attributes:
        what: What was measured.
        value: The number.
        unit: Its unit.
        to_reach: The largest number that passes; None if there is no bar.
    """

    what: str
    value: float
    unit: str
    to_reach: float | None = None


def show(figures: Callable[[float], Iterable[Figure]], size: float) -> None:
    """Measures with one thread, and prints each number beside its bar."""
    torch.set_num_threads(1)
    for figure in figures(size):
        bar = "" if figure.to_reach is None else f"to reach: {figure.to_reach:g}"
        print(f"{figure.what:70} {figure.value:8.3f} {figure.unit:10} {bar}", flush=True)

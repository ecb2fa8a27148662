"""A recorder of the rates that a scheduler sets."""

from __future__ import annotations


class Rates:
    """Records every rate that a scheduler sets."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def __call__(self, rate: float) -> None:
        self.all.append(rate)

    @property
    def last(self) -> float:
        return self.all[-1]

    def take(self) -> list[float]:
        rates, self.all = self.all, []
        return rates

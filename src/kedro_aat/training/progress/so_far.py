"""What is known of a search while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kedro_aat.budget import Budget
from kedro_aat.training.records import EpochRecord


@dataclass(frozen=True)
class SoFar:
    """A search after some of its epochs.

    Attributes:
        algorithm: Name of the compression algorithm; empty if it is unknown.
        budget: Accuracy budget, which judges each epoch.
        history: Its epochs so far.
        epochs_used: Epochs that it has used up, by their costs.
        epochs_allowed: Epochs that it may use up; None for no limit.
        seconds_left: Expected time of the epochs that are left, in seconds; None if unknown.
    """

    algorithm: str
    budget: Budget
    history: Sequence[EpochRecord] = ()
    epochs_used: int = 0
    epochs_allowed: int | None = None
    seconds_left: float | None = None

    @property
    def title(self) -> str:
        """What is searched."""
        return (self.algorithm or "search").replace("_", " ").capitalize()

    @property
    def is_size(self) -> bool:
        """Whether a rate is the share that was removed."""
        return self.algorithm != "quantization"

    @property
    def best(self) -> EpochRecord | None:
        """The epoch of highest rate within budget; None if there is none above rate 0."""
        rows = [row for row in self.history if row.achieved_rate > 0 and row.keeps(self.budget)]
        return max(rows, key=lambda row: (row.achieved_rate, row.margin), default=None)

    @property
    def front(self) -> list[EpochRecord]:
        """The epochs that no other one beats in both rate and metric, by rising rate."""
        front: list[EpochRecord] = []
        for row in sorted(self.history, key=lambda row: (-row.achieved_rate, -row.margin)):
            if not row.failed and row.keeps_guards and (not front or row.margin > front[-1].margin):
                front.append(row)
        return front[::-1]

    @property
    def best_in_words(self) -> str:
        """The best epoch so far."""
        if (best := self.best) is None:
            return "none yet"
        size = f", {1 / max(1 - best.achieved_rate, 1e-9):.3g} times smaller" if self.is_size else ""
        return f"rate {best.achieved_rate:.4f}{size}, metric {best.metric:.4f}"

    @property
    def epochs_in_words(self) -> str:
        """Epochs used, and time left."""
        of = "" if self.epochs_allowed is None else f" of {self.epochs_allowed}"
        left = "" if self.seconds_left is None else f", about {_duration(self.seconds_left)} left"
        return f"{self.epochs_used}{of} epochs{left}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""What is known of a search while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kedro_aat.budget import Budget
from kedro_aat.messages import duration
from kedro_aat.training.records import EpochRecord, best_within, pareto_front


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
        return best_within([*self.history], range(len(self.history)), self.budget)

    @property
    def front(self) -> list[EpochRecord]:
        """The epochs that no other one beats in both rate and metric, by rising rate."""
        numbers = pareto_front([*self.history], range(len(self.history)))
        rows = [row for row in self.history if row.checkpoint in numbers]
        return sorted(rows, key=lambda row: row.achieved_rate)

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
        left = "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left"
        return f"{self.epochs_used}{of} epochs{left}"


def judged(record: EpochRecord) -> str:
    """Rate, metric and margins of an epoch, and the best rate until then, in one line."""
    metric = "failed" if record.failed else f"metric {record.metric:.4f}  margin {record.margin:+.4f}"
    guards = "" if record.guard_margin is None else f"  guards {record.guard_margin:+.4f}"
    best = "none" if record.best_rate is None else f"{record.best_rate:.4f}"
    return f"rate {record.achieved_rate:.4f}  {metric}{guards}  best {best}"

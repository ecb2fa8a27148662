"""Estimates from the epochs so far what a search will cost, and lets it fit into a time limit."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from kedro_aat.messages import duration, rounded
from kedro_aat.search.policy import Epoch, SearchPolicy, Stop, with_epochs
from kedro_aat.training.records import EpochRecord, epochs_used
from kedro_aat.training.stopwatch import Stopwatch

# Against division by zero.
LEAST_COST = 1e-3


@dataclass(frozen=True)
class Cost:
    """Expected cost of a search.

    Attributes:
        seconds_per_epoch: Measured time of training, validation and bookkeeping, of an epoch of the uncompressed model;
            None if none was trained yet.
        epochs: Epochs that the search may use up in total, within the time limit; see `records.epochs_used`.
        seconds: Expected time of the epochs that are still to be trained; None if it is unknown.
    """

    seconds_per_epoch: float | None
    epochs: int
    seconds: float | None

    def __str__(self) -> str:
        if self.seconds is None:
            return f"Up to {self.epochs} epochs"
        total = duration(self.seconds)
        return (
            f"{rounded(self.seconds_per_epoch or 0.0)} s per epoch: up to {self.epochs} epochs take about {total} more"
        )


def expected_cost(history: list[EpochRecord], maximal_epochs: int, seconds_left: float = math.inf) -> Cost:
    """The cost of the rest of a search.

    Args:
        history: Epochs so far.
        maximal_epochs: The search's limit of epochs.
        seconds_left: Time left for the rest; infinite if there is no limit.
    """
    # Epochs of a cut model take less time, and count less.
    trained = [row.seconds / max(row.cost, LEAST_COST) for row in history if row.trained]
    if not trained:
        return Cost(None, maximal_epochs, None)
    seconds_per_epoch = max(statistics.median(trained), 1e-9)
    epochs, used = maximal_epochs, epochs_used(history)
    if seconds_left < math.inf:
        epochs = min(epochs, used + max(0, int(seconds_left / seconds_per_epoch)))
    return Cost(seconds_per_epoch, epochs, max(epochs - used, 0) * seconds_per_epoch)


def ask_in_time(
    policy: SearchPolicy[Any], state: Any, history: list[EpochRecord], stopwatch: Stopwatch
) -> tuple[Cost, SearchPolicy[Any], Epoch | Stop]:
    """Asks a policy for the next epoch, after telling it how many epochs there is time for.

    Args:
        policy: The search policy; one that is to keep a time limit is a `Settings`.
        state: State of the search.
        history: Epochs so far.
        stopwatch: Time that the search has used, and its limit.

    Returns:
        The expected cost of the rest, the policy that knows of it, which the result has to be told to, and its answer.
    """
    cost = expected_cost(history, policy.maximal_total_epochs, stopwatch.left(history))
    asked: Any = policy
    is_shorter = cost.epochs < policy.maximal_total_epochs
    if is_shorter:
        asked = with_epochs(asked, cost.epochs)
    move: Epoch | Stop = asked.ask(state)
    is_used_up = is_shorter and epochs_used(history) >= cost.epochs
    if is_used_up if isinstance(move, Stop) else stopwatch.is_up(history):
        move = state.stop(
            "The time limit leaves no time for another epoch: the stage has used "
            f"{stopwatch.seconds:.0f} of its {max(stopwatch.limit or 0.0, 0.0):.0f} s."
        )
    return cost, asked, move

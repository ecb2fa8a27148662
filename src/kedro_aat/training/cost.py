"""What a search will cost, told before it begins, and how many epochs fit into a time limit."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from kedro_aat.compression.controller import CompressionController
from kedro_aat.training.random_state import rng_state, set_rng_state
from kedro_aat.training.records import EpochRecord
from kedro_aat.training.runner import TrainingRunner

P = TypeVar("P")


@dataclass(frozen=True)
class Cost:
    """Expected costs of a search.

    Attributes:
        seconds_per_epoch: Of training, validation and bookkeeping, as timed.
        epochs: That the search may train in all, the time limit considered.
        seconds: For those that are still to be trained.
    """

    seconds_per_epoch: float
    epochs: int
    seconds: float

    def __str__(self) -> str:
        total = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.0f} min"
        return f"An epoch takes {self.seconds_per_epoch:.2g} s, so up to {self.epochs} epochs in all take about {total}"


def timed_epoch(controller: CompressionController, runner_for: Callable[[Any], TrainingRunner]) -> float:
    """Seconds of one epoch of training and validation, on a copy that is thrown away.

    Args:
        controller: Left as it is, and the random numbers too.
        runner_for: Makes the runner of a controller.
    """
    before = rng_state()
    runner = runner_for(copy.deepcopy(controller))
    runner.reset_training()
    started = time.perf_counter()
    runner.train_epoch()
    runner.validate()
    seconds = time.perf_counter() - started
    set_rng_state(before)
    return seconds


def expected_cost(
    history: list[EpochRecord], maximal_epochs: int, time_epoch: Callable[[], float], time_limit: float | None
) -> Cost:
    """The cost of a search that is to begin, or to go on after `history`.

    Args:
        history: What was done before.
        maximal_epochs: The search's limit.
        time_epoch: Times an epoch; asked only where `history` has none.
        time_limit: Seconds for the whole search, those of `history` included; None for no limit.
    """
    trained = [row.seconds for row in history if row.trained]
    if len(trained) >= maximal_epochs:
        return Cost(statistics.median(trained) if trained else 0.0, maximal_epochs, 0.0)
    seconds_per_epoch = statistics.median(trained) if trained else time_epoch()
    epochs = maximal_epochs
    if time_limit is not None:
        left = time_limit - sum(row.seconds for row in history)
        epochs = min(epochs, len(trained) + max(0, int(left / max(seconds_per_epoch, 1e-9))))
    return Cost(seconds_per_epoch, epochs, (epochs - len(trained)) * seconds_per_epoch)

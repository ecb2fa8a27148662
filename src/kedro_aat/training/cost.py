"""Estimates what a search will cost before it begins, and how many epochs fit into a time limit."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kedro_aat.compression.controller import CompressionController
from kedro_aat.errors import DivergedError, OutOfMemoryError
from kedro_aat.training.guards.interruption import stopped_at_once
from kedro_aat.training.random_state import rng_state, set_rng_state
from kedro_aat.training.records import EpochRecord, epochs_used
from kedro_aat.training.runner import TrainingRunner

# Against division by zero.
LEAST_COST = 1e-3


@dataclass(frozen=True)
class Cost:
    """Expected cost of a search.

    Attributes:
        seconds_per_epoch: Measured time of training, validation and bookkeeping, of an epoch of the uncompressed model.
        epochs: Epochs that the search may use up in total, within the time limit; see `records.epochs_used`.
        seconds: Expected time of the epochs that are still to be trained.
    """

    seconds_per_epoch: float
    epochs: int
    seconds: float

    def __str__(self) -> str:
        total = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.0f} min"
        return f"{self.seconds_per_epoch:.2g} s per epoch: up to {self.epochs} epochs take about {total}"


def timed_epoch(controller: CompressionController, runner_for: Callable[[Any], TrainingRunner]) -> float:
    """Seconds of one epoch of training and validation, on a copy that is thrown away.

    Args:
        controller: Controller with its model; both stay as they are, and so do the random generators.
        runner_for: Makes the runner of a controller.
    """
    before = rng_state()
    runner = runner_for(copy.deepcopy(controller))
    runner.reset_training()
    started = time.perf_counter()
    # The search is told of a failed epoch if it fails again.
    with stopped_at_once(), contextlib.suppress(DivergedError):
        _train(runner)
        runner.validate()
    seconds = time.perf_counter() - started
    set_rng_state(before)
    return seconds


def _train(runner: TrainingRunner) -> None:
    while True:
        try:
            runner.train_epoch()
        except OutOfMemoryError as error:
            if not runner.halve_batch(error.role):
                raise
        else:
            return


def expected_cost(
    history: list[EpochRecord], maximal_epochs: int, time_epoch: Callable[[], float], time_limit: float | None
) -> Cost:
    """The cost of a search that begins, or continues after `history`.

    Args:
        history: Epochs so far.
        maximal_epochs: The search's limit of epochs.
        time_epoch: Measures the seconds of an epoch; called only if `history` has none.
        time_limit: Seconds for the whole search, including `history`; None for no limit.
    """
    # Epochs of a cut model take less time, and count less.
    trained = [row.seconds / max(row.cost, LEAST_COST) for row in history if row.trained]
    used = epochs_used(history)
    if used >= maximal_epochs:
        return Cost(statistics.median(trained) if trained else 0.0, maximal_epochs, 0.0)
    seconds_per_epoch = statistics.median(trained) if trained else time_epoch()
    epochs = maximal_epochs
    if time_limit is not None:
        left = time_limit - sum(row.seconds for row in history)
        epochs = min(epochs, used + max(0, int(left / max(seconds_per_epoch, 1e-9))))
    return Cost(seconds_per_epoch, epochs, (epochs - used) * seconds_per_epoch)

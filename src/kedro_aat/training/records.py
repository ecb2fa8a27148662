"""What the loop notes of each epoch, what of it stays available, and how it ended."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass, field

from kedro_aat.budget import Budget, Outcome

# Models of the frontier that stay available.
MAX_ON_PARETO_FRONT = 12


@dataclass(frozen=True)
class EpochRecord:
    """One row of the trajectory: what an epoch was asked to do, and what came of it.

    Attributes:
        checkpoint: Number of the checkpoint that holds its state; counts validations from 0.
        epoch: Epochs trained in all, this one included.
        trained: False where the model was only validated.
        started_from: Checkpoint that was restored first, None where training went on.
        requested_rate: Rate asked for, in [0, 1).
        achieved_rate: Rate reached, in [0, 1].
        metric: On the validation split.
        margin: Distance of the metric to the lowest tolerated one; at least 0 is within budget.
        standard_error: Of the metric's difference to the baseline, None if unknown.
        loss: Mean training loss, None if unknown.
        learning_rate: That the epoch was trained with, None if unknown.
        lr_scale: The search's factor in it.
        fully_compressed: Whether the controller's own schedule is at its end.
        best_rate: Highest rate within budget so far, None if there is none.
        seconds: Wall time of the epoch.
    """

    checkpoint: int
    epoch: int
    trained: bool
    started_from: int | None
    requested_rate: float
    achieved_rate: float
    metric: float
    margin: float
    standard_error: float | None
    loss: float | None
    learning_rate: float | None
    lr_scale: float
    fully_compressed: bool
    best_rate: float | None
    seconds: float


@dataclass(frozen=True)
class FineTuned:
    """How a search ended. The model it was given is in the state that `best` names.

    Attributes:
        outcome: The kind of ending.
        reason: Why it ended, in words.
        best: The epoch that is returned; None where the model was put back as it was given.
        metric: Validated after the final load.
        achieved_rate: Rate of the model after the final load.
        history: All epochs.
    """

    outcome: Outcome
    reason: str
    best: EpochRecord | None
    metric: float
    achieved_rate: float
    history: list[EpochRecord] = field(repr=False)


def pareto_front(history: list[EpochRecord], available: Collection[int]) -> set[int]:
    """Numbers of the checkpoints that no other available one beats in both rate and metric, within budget or not.

    They are what other budgets can be read off from. Where they are more than `MAX_ON_PARETO_FRONT`, those are left out
    that lie closest between their neighbours in size.
    """
    rows = [row for row in history if row.checkpoint in available and row.fully_compressed]
    kept: list[EpochRecord] = []
    for row in sorted(rows, key=lambda row: (-row.achieved_rate, -row.margin)):
        if not kept or row.margin > kept[-1].margin:
            kept.append(row)
    sizes = [math.log(max(1 - row.achieved_rate, 1e-9)) for row in kept]
    while len(kept) > MAX_ON_PARETO_FRONT:
        # The best within budget is never among them: it is what the search returns.
        best = next((index for index, row in enumerate(kept) if row.margin >= 0), None)
        inner = [index for index in range(1, len(kept) - 1) if index != best]
        closest = min(inner, key=lambda index: sizes[index + 1] - sizes[index - 1])
        del kept[closest], sizes[closest]
    return {row.checkpoint for row in kept}


def best_within(history: list[EpochRecord], available: Collection[int], budget: Budget) -> EpochRecord | None:
    """Of the available checkpoints within `budget` the one of highest rate; None if there is none above rate 0."""
    rows = [
        row
        for row in history
        if row.checkpoint in pareto_front(history, available)
        and row.achieved_rate > 0
        and budget.margin(row.metric) >= 0
    ]
    return max(rows, key=lambda row: (row.achieved_rate, budget.margin(row.metric)), default=None)


def is_over(time_limit: float | None, history: list[EpochRecord]) -> bool:
    """Whether another epoch, as long as the median one, would go beyond the limit, in seconds."""
    if time_limit is None:
        return False
    trained = [row.seconds for row in history if row.trained]
    return sum(row.seconds for row in history) + (statistics.median(trained) if trained else 0.0) > time_limit

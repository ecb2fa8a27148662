"""What the loop records about each epoch, which checkpoints stay available, and how a search ended."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kedro_aat.budget import Budget, Outcome
from kedro_aat.errors import CheckpointError
from kedro_aat.search.tactics import Tactic

# Above this share of the tolerated drop, a standard error dominates what is measured.
LARGEST_RESOLVING_ERROR = 1 / 3
MAX_ON_PARETO_FRONT = 12  # checkpoints of the Pareto front that stay on disk


@dataclass(frozen=True)
class EpochRecord:
    """One row of the trajectory: what an epoch was asked to do, and its result.

    Attributes:
        checkpoint: Number of the checkpoint that holds its state; counts validations from 0.
        epoch: Number of epochs trained so far, including this one.
        trained: False if the model was only validated.
        started_from: Checkpoint that was restored first; None if training continued.
        requested_rate: Requested compression rate, in [0, 1).
        achieved_rate: Achieved compression rate, in [0, 1].
        metric: Metric on the validation split; None if the epoch failed, because its loss or its metric was NaN or
            infinite. Its checkpoint then holds the state in which it began.
        margin: Distance of the metric to the lowest tolerated one; at least 0 is within budget. For a failed epoch,
            what the search was told instead.
        standard_error: Standard error of the metric's difference to the baseline; None if unknown.
        loss: Mean training loss; None if unknown.
        learning_rate: Learning rate of the epoch; None if unknown.
        lr_scale: The search's factor in the learning rate.
        fully_compressed: Whether the controller's own schedule has ended.
        best_rate: Highest rate within budget so far; None if there is none.
        seconds: Wall time since the row before: training, validation, and waiting until the checkpoints before this one
            are on disk.
        cost: What the epoch cost, as a share of an epoch of the uncompressed model, in [0, 1]; 0 for a validation.
        tactic: What the search chose beside the rate; None if it does not choose.
        guards: Value of each guard on the validation split; empty if there are none, or the epoch failed.
        guard_margin: Smallest margin of the guards, in units of the main metric; at least 0 if all are kept. None if
            there are none, or the epoch failed.
    """

    checkpoint: int
    epoch: int
    trained: bool
    started_from: int | None
    requested_rate: float
    achieved_rate: float
    metric: float | None
    margin: float
    standard_error: float | None
    loss: float | None
    learning_rate: float | None
    lr_scale: float
    fully_compressed: bool
    best_rate: float | None
    seconds: float
    cost: float = 1.0
    tactic: Tactic | None = None
    guards: dict[str, float] = field(default_factory=dict)
    guard_margin: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the loss or the metric was NaN or infinite."""
        return self.metric is None

    @property
    def smallest_margin(self) -> float:
        """What the search was told: the margin, or that of the guards if it is smaller."""
        return self.margin if self.guard_margin is None else min(self.margin, self.guard_margin)

    @property
    def keeps_guards(self) -> bool:
        """Whether every guard is within its tolerated drop."""
        return self.guard_margin is None or self.guard_margin >= 0

    def keeps(self, budget: Budget) -> bool:
        """Whether the metric is within `budget`, which may be another one than the run's, and the guards are kept."""
        return self.metric is not None and budget.margin(self.metric) >= 0 and self.keeps_guards

    @property
    def scalars(self) -> dict[str, float]:
        """Its numbers by name, as trackers show them; without those that are unknown."""
        values = {
            "metric/validation": self.metric,
            "metric/margin": None if self.failed else self.margin,
            "metric/guard_margin": self.guard_margin,
            "rate/requested": self.requested_rate,
            "rate/achieved": self.achieved_rate,
            "rate/best": self.best_rate,
            "training/loss": self.loss,
            "training/learning_rate": self.learning_rate,
            **{f"guards/{name}": value for name, value in self.guards.items()},
        }
        return {name: value for name, value in values.items() if value is not None}

    def plain(self) -> dict[str, object]:
        """Returns it as plain data, for a checkpoint."""
        return vars(self) | {"tactic": None if self.tactic is None else self.tactic.model_dump()}


def margins_of(metric: float, guards: Mapping[str, float], budget: Budget) -> dict[str, Any]:
    """The fields of an `EpochRecord` that say how far an epoch is from the budget and its guards.

    Args:
        metric: Metric of the epoch.
        guards: Value of each guard.
        budget: The budget with its guards.
    """
    return {"margin": budget.margin(metric), "guard_margin": budget.guard_margin(guards), "guards": dict(guards)}


_RECORDS = TypeAdapter(list[EpochRecord])


def read_records(rows: object) -> list[EpochRecord]:
    """Reads the rows of a trajectory that any version wrote; what this version does not know is left out.

    Raises:
        CheckpointError: A row lacks something that this version needs, or has another type.
    """
    try:
        return _RECORDS.validate_python(rows)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        where = ", ".join(map(str, mistake["loc"]))
        raise CheckpointError(
            f"This version of kedro-aat cannot use the trajectory ({where}: {mistake['msg']}). Use the version that "
            "wrote it, or remove the folder of the run to start over."
        ) from None


@dataclass(frozen=True)
class FineTuned:
    """How a search ended. Its model is in the state that `best` names.

    Attributes:
        outcome: The kind of ending.
        reason: Why it ended, in words.
        best: The epoch that is returned; None if the model was restored to its initial state.
        metric: Metric measured after the final load, or the worse of it and the best epoch's, if validations are noisy;
            of an interrupted run, the best epoch's.
        achieved_rate: Rate of the model after the final load.
        history: All epochs.
        guards: Value of each guard, measured together with the metric.
    """

    outcome: Outcome
    reason: str
    best: EpochRecord | None
    metric: float
    achieved_rate: float
    history: list[EpochRecord] = field(repr=False)
    guards: dict[str, float] = field(default_factory=dict)


def pareto_front(history: list[EpochRecord], available: Collection[int]) -> set[int]:
    """Numbers of the available checkpoints that no other one beats in both rate and metric, within budget or not.

    A checkpoint that breaks a guard is on no front, because it suits no budget of the metric. Models for other budgets
    are read off this front. If it has more than `MAX_ON_PARETO_FRONT` checkpoints, those that lie closest to their
    neighbors in size are left out.

    Args:
        history: All epochs of the search.
        available: Numbers of the checkpoints on disk.
    """
    rows = [row for row in history if row.checkpoint in available and row.fully_compressed and not row.failed]
    rows = [row for row in rows if row.keeps_guards]
    front: list[EpochRecord] = []
    for row in sorted(rows, key=lambda row: (-row.achieved_rate, -row.margin)):
        if not front or row.margin > front[-1].margin:
            front.append(row)
    sizes = [math.log(max(1 - row.achieved_rate, 1e-9)) for row in front]
    while len(front) > MAX_ON_PARETO_FRONT:
        # The best within budget always stays: it is what the search returns.
        best = next((index for index, row in enumerate(front) if row.margin >= 0), None)
        inner = [index for index in range(1, len(front) - 1) if index != best]
        closest = min(inner, key=lambda index: sizes[index + 1] - sizes[index - 1])
        del front[closest], sizes[closest]
    return {row.checkpoint for row in front}


def best_within(history: list[EpochRecord], available: Collection[int], budget: Budget) -> EpochRecord | None:
    """The epoch of highest rate that keeps `budget` and is on the Pareto front.

    Args:
        history: All epochs of the search.
        available: Numbers of the checkpoints on disk.
        budget: Any budget for the same baseline.

    Returns:
        The epoch; None if none above rate 0 keeps the budget.
    """
    front = pareto_front(history, available)
    rows = [row for row in history if row.checkpoint in front and row.achieved_rate > 0 and row.keeps(budget)]
    return max(rows, key=lambda row: (row.achieved_rate, row.margin), default=None)


def epochs_used(history: list[EpochRecord]) -> int:
    """Epochs that a search has used up, counted by their costs and rounded up."""
    return math.ceil(sum(row.cost for row in history if row.trained) - 1e-9)

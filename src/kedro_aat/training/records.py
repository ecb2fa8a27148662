"""What the loop notes of each epoch, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from kedro_aat.budget import Outcome


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

"""What a search stage works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kedro_aat.budget import Budget
from kedro_aat.compression.controller import ModelController
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.data import Data
from kedro_aat.training.progress import Tracking
from kedro_aat.training.records import FineTuned
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.stopwatch import Stopwatch

WriterOf = Callable[..., Any] | None  # (run, next_epoch=) -> a TensorBoard writer; None writes nothing


@dataclass
class StageInputs:
    """What a search stage works on; see `SearchStage.run`.

    Attributes:
        controller: Controller with the model under compression; changed in place.
        teacher: The uncompressed model.
        train_data: Training split.
        validation_data: Validation split.
        baseline: The uncompressed model on the validation split.
        budget: Accuracy budget.
        store: Checkpoint store that keeps the run.
        writer_of: Makes a TensorBoard writer; None writes nothing.
        stopwatch: Measures the stage.
        tracking: Who follows the search.
        num_halvings: Times that a batch has already been halved for lack of memory.
    """

    controller: ModelController
    teacher: nn.Module
    train_data: Data
    validation_data: Data
    baseline: Evaluation
    budget: Budget
    store: CheckpointStore
    writer_of: WriterOf
    stopwatch: Stopwatch
    tracking: Tracking = field(default_factory=Tracking)
    num_halvings: int = 0


@dataclass(frozen=True)
class SearchStageResult:
    """How a search stage ended.

    Attributes:
        fine_tuned: How its search ended.
        budget: Budget that its model keeps.
        run: Name of the run's folder in the store.
        device: Device on which it was trained.
        seconds: Wall time of the stage from its begin to its end, in all processes that worked on it.
    """

    fine_tuned: FineTuned
    budget: Budget
    run: str
    device: str
    seconds: float

"""Training of the baseline for a fixed number of epochs; a killed run resumes from its last checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from kedro_aat.compression.controller import CompressionLoss, CompressionScheduler, CompressionStage
from kedro_aat.compression.layer_table import LayerTable
from kedro_aat.training.checkpoints import RunCheckpoints
from kedro_aat.training.runner import TrainingRunner

logger = logging.getLogger(__name__)


class Uncompressed:
    """A controller that does nothing, so that the functions that train a compressed model train a baseline too."""

    name = "uncompressed"
    compression_rate = maximal_compression_rate = 0.0

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.loss = CompressionLoss()
        self.scheduler: CompressionScheduler = self

    def step(self, next_step: int | None = None) -> None: ...

    def epoch_step(self, next_epoch: int | None = None) -> None: ...

    def disable_scheduler(self) -> None: ...

    def compression_stage(self) -> CompressionStage:
        return CompressionStage.UNCOMPRESSED

    def statistics(self) -> LayerTable:
        return LayerTable(self.name, 0.0, "0.0000 of the weights are zero", {})

    def get_compression_state(self) -> dict[str, Any]:
        return {}

    def get_state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...

    def strip(self) -> nn.Module:
        return self.model

    def export_model(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("an uncompressed baseline is exported by the export node")


def fit(runner: TrainingRunner, num_epochs: int, checkpoints: RunCheckpoints) -> float:
    """Trains the runner's model without compression, and leaves it in its state after the last epoch.

    Args:
        runner: Runner with a controller that does not compress.
        num_epochs: Number of epochs, at least 1.
        checkpoints: Checkpoints of this run; training resumes from the latest one.

    Returns:
        The validation metric after the last epoch.
    """
    checkpoint = checkpoints.latest()
    if checkpoint is None:
        runner.reset_training()
    else:
        runner.resume(checkpoint)
        if checkpoints.is_finished:
            logger.info("The training in %s has finished; using its model", checkpoints.folder)
        else:
            logger.info("Continuing after epoch %d of the training in %s", checkpoint.number, checkpoints.folder)
    while runner.cumulative_epoch_count < num_epochs:
        checkpoints.require_writable()
        loss = runner.train_epoch()
        metric = runner.validate().metric
        runner.update_learning_rate(metric, loss)
        number = runner.cumulative_epoch_count
        checkpoint = runner.checkpoint(number, {"metric": metric})
        checkpoints.save(checkpoint, runner.dump, keep={number - 1}, wait=False)
        logger.info("epoch %d/%d  loss %.4f  metric %.4f", number, num_epochs, loss or 0.0, metric)
    checkpoints.finish()
    return runner.validate().metric

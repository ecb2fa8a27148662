"""Training of the baseline for a fixed number of epochs; a killed run resumes from its last checkpoint."""

from __future__ import annotations

import logging

from kedro_aat.training.checkpoints import RunCheckpoints
from kedro_aat.training.runner import TrainingRunner

logger = logging.getLogger(__name__)


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
            logger.info("Going on after epoch %d of the training in %s", checkpoint.number, checkpoints.folder)
    while runner.cumulative_epoch_count < num_epochs:
        loss = runner.train_epoch()
        metric = runner.validate().metric
        runner.update_learning_rate(metric, loss)
        number = runner.cumulative_epoch_count
        checkpoint = runner.checkpoint(number, {"metric": metric})
        checkpoints.save(checkpoint, runner.dump, keep={number - 1}, wait=False)
        logger.info("epoch %d/%d  loss %.4f  metric %.4f", number, num_epochs, loss or 0.0, metric)
    checkpoints.finish()
    return runner.validate().metric

"""Checkpoints: the store and its files, what happens after an upgrade, and when a checkpoint is lost."""

from kedro_aat.training.checkpoints.files import Checkpoint, require_plain
from kedro_aat.training.checkpoints.mirror import Mirror
from kedro_aat.training.checkpoints.one_run import RunCheckpoints
from kedro_aat.training.checkpoints.store import NO_RUN, CheckpointStore

__all__ = ["NO_RUN", "Checkpoint", "CheckpointStore", "Mirror", "RunCheckpoints", "require_plain"]

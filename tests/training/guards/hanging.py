"""A training whose data loader hangs."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.data import Dataset


class HangingData(Dataset[Any]):
    """Pairs, the last of which is never loaded."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            time.sleep(600)
        return torch.zeros(1, 8, 8), 0


def validate(num_workers: int) -> None:
    """Validates a model on data that hangs."""
    from kedro_aat.testing.training import small_net
    from kedro_aat.training.default import DefaultTraining
    from tests.training.training_run import settings

    watched = settings(batch_size=2, step_timeout_seconds=0.5, num_workers=num_workers)
    DefaultTraining(small_net(), watched, None, HangingData()).validate(small_net())

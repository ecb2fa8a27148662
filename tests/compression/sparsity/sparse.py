"""Sparse models for tests."""

from __future__ import annotations

from typing import Any

from torch import nn

from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController

WEIGHTS = ["stem.0.weight", "conv.weight", "classifier.weight"]  # of `tests.nets.SmallNet`


def sparse(model: nn.Module, rate: float = 0.0, **options: Any) -> MagnitudeSparsityController:
    controller = MagnitudeSparsityController(model, MagnitudeSparsity(**options))
    controller.disable_scheduler()
    controller.compression_rate = rate
    return controller

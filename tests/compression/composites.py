"""Composites of a small network, for tests."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.settings import (
    Composite,
    FilterPruning,
    KnowledgeDistillation,
    MagnitudeSparsity,
    Quantization,
)
from kedro_aat.testing.training import BATCH, small_net
from tests.compression.quantization.quantized import settled

INPUTS = BATCH["inputs"]
PRUNING, SPARSITY, INT8 = FilterPruning(), MagnitudeSparsity(), Quantization()
SOFTMAX, MSE = KnowledgeDistillation(type="softmax", temperature=3.0), KnowledgeDistillation(type="mse", scale=0.5)


def compose(*algorithms: Any, model: nn.Module | None = None, inputs: Tensor = INPUTS) -> CompositeController:
    settings = Composite(algorithms=algorithms)
    controller = build_controller(model or settled(small_net(), INPUTS), settings, example_input=inputs)
    assert isinstance(controller, CompositeController)
    return controller


def at_rate(*algorithms: Any, rate: float = 0.5, model: nn.Module | None = None) -> CompositeController:
    controller = compose(*algorithms, model=model)
    controller.calibrate([INPUTS])
    controller.disable_scheduler()
    controller.compression_rate = rate
    return controller

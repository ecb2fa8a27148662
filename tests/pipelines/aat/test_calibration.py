"""The ranges of a first stage in int8 come from the training split."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.config import AatSettings
from kedro_aat.pipelines.aat.search import build_controller
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.runner import TrainingRunner
from tests.nets import Perceptron, vectors
from tests.training.training_run import METRIC

TRAIN = vectors(320) | {"inputs": torch.rand(320, 6, generator=torch.Generator().manual_seed(0))}  # in [0, 1]
QUANTIZATION = {"algorithm": "quantization"}
SPARSITY = {"algorithm": "magnitude_sparsity"}


@pytest.mark.parametrize("compression", [QUANTIZATION, [QUANTIZATION], [SPARSITY, QUANTIZATION]])
def test_a_validation_before_the_search_leaves_the_ranges_of_the_training_split(compression: Any) -> None:
    settings = AatSettings.model_validate(
        {
            "budget": {"max_drop": 0.1},
            "compression": compression,
            "training": {"device": "cpu", "metric": METRIC, "distillation": None},
        }
    )
    validation = TRAIN | {"inputs": TRAIN["inputs"] * 10}
    baseline: Any = None  # not read
    controller = build_controller(Perceptron([6, 8, 4]), baseline, settings, TRAIN)
    training = DefaultTraining(controller.model, settings.training, TRAIN, validation)
    TrainingRunner(controller.model, controller, training.callables()).validate()
    quantization = controller.quantization if isinstance(controller, CompositeController) else controller
    assert isinstance(quantization, QuantizationController)
    lowest, highest = quantization._fake.ranges[0].tolist()
    assert 0 <= lowest < 0.05
    assert 0.95 < highest <= 1

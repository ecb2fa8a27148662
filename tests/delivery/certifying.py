"""A model that is wrong on a known share of its examples, for tests of certificates."""

from __future__ import annotations

import functools
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from kedro_aat.budget import Budget
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.training.settings import TrainingSettings

ACCURACY = {
    "class_path": "torchmetrics.classification.MulticlassAccuracy",
    "init_args": {"num_classes": 2, "average": "micro"},
}
OPTIMIZER = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
BUDGET = Budget(baseline=0.95, drop=0.02)


class Threshold(nn.Module):
    """Predicts class 1 above its threshold. The true threshold is 0.5; the inputs are equally spaced in [0, 1)."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([self.threshold - inputs, inputs - self.threshold], dim=1)


def split(num_examples: int) -> dict[str, Tensor]:
    inputs = torch.arange(num_examples) / num_examples
    return {"inputs": inputs, "targets": (inputs >= 0.5).long()}


def settings(metric: dict[str, Any] = ACCURACY, **changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"batch_size": 64, "optimizer": OPTIMIZER, "metric": metric, **changes})


def export(model: nn.Module) -> ModelProto:
    """Exports a model to ONNX, as for delivery."""
    return to_onnx(model.eval(), torch.rand(4))


@functools.cache
def export_with_drop(drop: float) -> ModelProto:
    """File of a model that is wrong on that share of the examples; cached because an export takes a second."""
    return export(Threshold(0.5 + drop))

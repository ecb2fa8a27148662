"""Baselines that are evaluated, and questioned, as the pipeline does it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from kedro_aat.config import AatSettings
from kedro_aat.delivery.results import BaselineEvaluation
from kedro_aat.pipelines.aat.baseline import evaluate_baseline


class Echo(nn.Module):
    """Answers with its input, times a parameter that is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.factor


def evaluated(
    outputs: Tensor,
    targets: Tensor,
    metric: str | None,
    arguments: dict[str, Any] | None = None,
    data: Any = None,
    **training: Any,
) -> BaselineEvaluation:
    """Evaluates a baseline with those outputs."""
    chosen = {} if metric is None else {"metric": {"class_path": metric, "init_args": arguments or {}}}
    settings = AatSettings.model_validate(
        {"budget": {"max_relative_drop": 0.5}, "training": {"device": "cpu", "batch_size": 64} | chosen | training}
    )
    split = {"inputs": outputs, "targets": targets} if data is None else data
    return evaluate_baseline(Echo(), split, split, settings)[0]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(num_examples: int, num_classes: int, seed: int = 0) -> Tensor:
    return torch.randint(num_classes, (num_examples,), generator=torch.Generator().manual_seed(seed))


def validate_as_0(model: nn.Module) -> float:
    return 0.0


class BroadcastingError(Metric):
    """Mean error of a user's, negative; what it compares depends on the shapes."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total -= (outputs - targets).abs().mean()  # type: ignore[operator]

    def compute(self) -> Tensor:
        return self.total  # type: ignore[return-value]

"""Functions and classes as a user would write them, which the tests' settings name by import path."""

from __future__ import annotations

from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

Call = tuple[str, dict[str, Any]]  # name of the function, and its arguments
CALLS: list[Call] = []  # every call since the fixture `calls` cleared the list


def train_epoch(controller: Any, model: nn.Module, epoch: int, optimizer: Any, lr_scheduler: Any, data: Any) -> float:
    batches = [(inputs.clone(), targets.clone()) for inputs, targets in data]
    CALLS.append(("train_epoch", {"epoch": epoch, "data": batches, "optimizer": optimizer}))
    for inputs, targets in batches:
        controller.scheduler.step()
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return 0.25


def train_without_data(controller: Any, model: nn.Module, **arguments: Any) -> None:
    CALLS.append(("train_without_data", arguments))


def validate(model: nn.Module, epoch: int, data: Any) -> float:
    CALLS.append(("validate", {"epoch": epoch, "data": [targets for _, targets in data], "training": model.training}))
    return 0.75


def validate_by_torchmetrics(model: nn.Module, data: Any) -> float:
    accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes=3, average="micro")
    with torch.no_grad():
        for inputs, targets in data:
            accuracy.update(model.eval()(inputs), targets)
    return float(accuracy.compute())


def validate_without_data(model: nn.Module) -> float:
    CALLS.append(("validate_without_data", {}))
    return 0.5


def validate_in_vain(model: nn.Module) -> float:
    return float(torch.empty(1 << 60))


def configure_optimizers(model: nn.Module) -> tuple[torch.optim.Optimizer, None]:
    CALLS.append(("configure_optimizers", {"model": model}))
    return torch.optim.SGD(model.parameters(), lr=0.125), None


def configure_two_optimizers(model: nn.Module) -> tuple[list[torch.optim.Optimizer], None]:
    """Returns one optimizer for the weights and one for the biases, both with learning rate 1."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    biases = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return [torch.optim.SGD(weights, lr=1.0), torch.optim.SGD(biases, lr=1.0)], None


def early_stopping(metric: float) -> bool:
    return metric > 0.5


def update_learning_rate(lr_scheduler: Any, epoch: int, metric: float, loss: float | None) -> None:
    CALLS.append(("update_learning_rate", {"epoch": epoch, "metric": metric, "loss": loss}))


class WeightedLoss(nn.Module):
    """Loss that holds a tensor."""

    weight: Tensor

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weights))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, self.weight)


class DtypeRecorder(torchmetrics.Metric):
    """Metric that records the types of its arguments."""

    higher_is_better = True

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        CALLS.append(("DtypeRecorder", {"outputs": outputs.dtype, "targets": targets.dtype}))

    def compute(self) -> Tensor:
        return torch.tensor(1.0)


class WithoutLearningRate(torch.optim.Optimizer):
    """An optimizer that chooses its steps itself."""

    def __init__(self, params: Any, rate: None = None) -> None:
        super().__init__(params, {} if rate is None else {"lr": rate})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Does nothing."""


def configure_without_learning_rate(model: nn.Module) -> tuple[torch.optim.Optimizer, None]:
    return WithoutLearningRate(model.parameters()), None


def configure_groups(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Returns an optimizer with two groups, and a scheduler that sets the learning rate itself."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    biases = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": biases, "lr": 0.5}]
    optimizer = torch.optim.AdamW(groups)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.2], total_steps=8)


class OwnAdam(torch.optim.Adam):
    """An optimizer of the user's, whatever it is made from."""

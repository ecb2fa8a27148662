"""Models with pruned filters, small models to prune, and the difference between two models."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.filters.axes import axes, own_tensor
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.probing import outputs_of, relative_difference
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.testing.controllers import set_reachable

TOLERANCE = 1e-4


class Activated(nn.Module):
    """Three linear layers, with a chosen activation after the first: (B, 6) -> (B, 3)."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.third(F.relu(self.second(self.activation(self.first(x)))))
        return out


def perceptron(*middle: nn.Module) -> nn.Module:
    """Three linear layers, with chosen modules after the first: (B, 6) -> (B, 3)."""
    return nn.Sequential(nn.Linear(6, 12), *middle, nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def pruned(model: nn.Module, batch: Tensor, rate: float = 0.0, **options: Any) -> FilterPruningController:
    controller = FilterPruningController(model, FilterPruning(**options), example_input=batch)
    controller.disable_scheduler()
    set_reachable(controller, rate)
    return controller


def train(model: nn.Module, batch: Tensor, controller: FilterPruningController, num_steps: int = 3) -> None:
    """Trains with everything that could change a masked weight: momentum, weight decay, Adam's moments."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(num_steps):
        controller.scheduler.step()
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    model.eval()


def difference(left: nn.Module, right: nn.Module, batch: Tensor) -> float:
    return relative_difference(outputs_of(left, batch), outputs_of(right, batch))


@torch.no_grad()
def zeroed(model: nn.Module, *entries: dict[str, Any]) -> nn.Module:
    """A copy with zeros in its parameters in place of what some entries of a cut plan cut."""
    model = copy.deepcopy(model)
    for entry in entries:
        module = model.get_submodule(entry["layer"])
        for name, dim, repeats in axes(module)[entry["kind"]]:
            gone = [
                number * entry["size"] + index
                for number in range(repeats)
                for index in range(entry["size"])
                if index not in entry["kept"]
            ]
            if name in module._parameters:
                own_tensor(module, name).index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0.0)
    return model

"""Models whose filters are pruned, and how far two models are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.probing import outputs_of, relative_difference
from kedro_aat.compression.settings import FilterPruning

TOLERANCE = 1e-4


def pruned(model: nn.Module, batch: Tensor, rate: float = 0.0, **options: Any) -> FilterPruningController:
    controller = FilterPruningController(model, FilterPruning(**options), example_input=batch)
    controller.disable_scheduler()
    controller.compression_rate = rate
    return controller


def train(model: nn.Module, batch: Tensor, controller: FilterPruningController, num_steps: int = 3) -> None:
    """With everything that could bring a masked weight back: momentum, weight decay, Adam's moments."""
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

"""A model whose parts are called without the model itself, and the ways to call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class Parts(nn.Module):
    """A backbone and a head, which methods call without the model's `forward`: (B, 12) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(x))
        return logits

    def loss(self, x: Tensor) -> Tensor:
        loss: Tensor = self.head(self.backbone(x)).square().mean()
        return loss

    def training_step(self, batch: tuple[Tensor], index: int) -> Tensor:
        logits: Tensor = self(batch[0])
        return logits.square().mean()

    def functional(self, x: Tensor) -> Tensor:
        """Reads the weight of a layer that it does not call."""
        return F.linear(self.backbone(x), self.head.weight, self.head.bias).square().mean()


# Ways to compute the same loss through layers.
WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "model(x)": lambda model, x: model(x).square().mean(),
    "model.forward(x)": lambda model, x: model.forward(x).square().mean(),
    "model.loss(x)": lambda model, x: model.loss(x),
    "model.head(model.backbone(x))": lambda model, x: model.head(model.backbone(x)).square().mean(),
    "training_step": lambda model, x: model.training_step((x,), 0),
}

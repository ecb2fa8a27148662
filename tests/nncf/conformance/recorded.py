"""What NNCF 2.19 did in recorded situations: the inputs and the values of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def recorded(name: str) -> list[dict[str, Any]]:
    """The situations of a file of this folder."""
    situations: list[dict[str, Any]] = json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))
    return situations


def fill(model: nn.Module) -> nn.Module:
    """Sets weights that are the same on every machine and in every version of torch."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            places = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_(torch.sin(places.square() * 0.618 + number).reshape(parameter.shape))
    return model


class TextModel(nn.Module):
    """Layers of many kinds: (B, 4) whole numbers below 20 -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.bags = nn.Embedding(20, 8), nn.EmbeddingBag(20, 8)
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv, self.up = nn.Conv1d(8, 8, 3, padding=1), nn.ConvTranspose1d(8, 8, 1)
        self.bare, self.position = nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.zeros(1, 4, 8))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(self.norm(self.words(x) + self.position))
        h = self.up(self.conv(h.transpose(1, 2))).transpose(1, 2)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = self.lstm(h)[0] @ self.bare
        return self.last(h.mean(1) + self.bags(x))  # type: ignore[no-any-return]


class ManyOutputs(nn.Module):
    """Returns logits alone or with something else: (5, 6) -> what `kind` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        if kind == "pixels":
            self.c = nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Any:
        hidden = torch.relu(self.a(x))
        logits = self.b(hidden)
        match self.kind:
            case "two":
                return {"logits": logits, "hidden": hidden}
            case "with a loss":
                return logits, logits.square().mean()
            case "with a vector":
                return logits, logits.sum(1)
            case "pixels":
                return self.c(x.reshape(-1, 2, 3, 1))
            case _:
                return logits


class Block(nn.Module):
    """Adds what two convolutions make of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.q(self.p(x).relu())
        return x + changed


class Res(nn.Module):
    """Two blocks, a normalization and a function of torch: (B, 3, 8, 8) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.b1, self.b2 = Block(), Block()
        self.seq = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.seq(self.b2(self.b1(self.stem(x))))
        x = nn.functional.interpolate(x, scale_factor=2.0)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def ramps(model: nn.Module) -> nn.Module:
    """Sets weights that differ in size within a layer and from layer to layer, so that no rounding decides."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.dim() > 1:
                parameter.copy_((torch.linspace(0.01, 1.0, parameter.numel()) * (number + 1)).view_as(parameter))
    return model


def with_zeros(model: nn.Module) -> nn.Module:
    """Sets every third weight of each matrix to zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.view(-1)[::3] = 0
    return model

"""Small networks and data for them. Tests name some of these by import path, in catalogs and settings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from kedro_aat.testing import training

if TYPE_CHECKING:
    from pathlib import Path as OnlyForTypeCheckers

SmallNet = training.SmallNet
images = training.images


class Perceptron(nn.Module):
    """Linear layers of the given sizes, with ReLUs between them: (B, sizes[0]) -> (B, sizes[-1])."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        out: Tensor = last(x)
        return out


class Probe(nn.Module):
    """A model around another one that notes the batches it is given and what comes out."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.batches: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        self.batches.append(x.detach())
        self.outputs.append(out.detach())
        return out


class NeedsArguments(nn.Module):
    """Cannot be made without being told two things."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


class HoldsMoreThanTensors(nn.Module):
    """Its `state_dict` has an entry that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def get_extra_state(self) -> dict[str, int]:
        return {"counter": 1}

    def set_extra_state(self, state: Any) -> None: ...


CALLED: list[str] = []  # names of the functions below that were called


def make_small_net(num_classes: int) -> SmallNet:
    return SmallNet(num_classes)


def make_something(path: str):  # type: ignore[no-untyped-def]
    CALLED.append("make_something")
    return SmallNet()


def make_list(path: str) -> list[str]:
    CALLED.append("make_list")
    return [path]


def make_what_cannot_be_resolved(path: str) -> OnlyForTypeCheckers:
    CALLED.append("make_what_cannot_be_resolved")
    raise AssertionError


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """A dataset of the user's own making."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


def vectors(num_examples: int, *, num_features: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Vectors whose class is the largest of their first three numbers."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, num_features, generator=generator)
    return {"inputs": inputs, "targets": inputs[:, :3].argmax(1)}

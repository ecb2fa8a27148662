"""Small networks and data for them. Catalogs and settings of tests name some of these by import path."""

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
    """Wraps a model and records its inputs and outputs."""

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
    """Network whose constructor has two required arguments."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


class HoldsMoreThanTensors(nn.Module):
    """Network whose `state_dict` has an entry that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def get_extra_state(self) -> dict[str, int]:
        return {"counter": 1}

    def set_extra_state(self, state: Any) -> None: ...


CALLED: list[str] = []  # names of those functions below that were called


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
    """A dataset as a user would write it."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


def vectors(num_examples: int, *, num_features: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Vectors whose class is the position of the largest of their first three numbers.

    Args:
        num_examples: Number of vectors, N.
        num_features: Length of each vector, F; at least 3.
        seed: Seed of the vectors.

    Returns:
        `inputs`, (N, F), and `targets`, (N,).
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, num_features, generator=generator)
    return {"inputs": inputs, "targets": inputs[:, :3].argmax(1)}

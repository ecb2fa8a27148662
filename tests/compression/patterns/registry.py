"""What each pattern of channels says of itself: the model, its inputs, and what an expert would cut.

The models of the other files are small and each shows one way in which published networks connect their channels.
Sizes that a forward pass takes from its tensors (`chunk`, `x.shape`) follow a cut; sizes that it writes as numbers do
not, so a layer before these may stay whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kedro_aat.model_inputs import ModelInputs
from tests.compression.architectures import disturb


@dataclass(frozen=True)
class Pattern:
    """A small model and what filter pruning should make of it.

    Attributes:
        make: Makes the model.
        inputs: Draws a batch at random.
        cut: Layers whose outputs an expert would cut; at the highest rate they must be smaller.
        narrowed: Layers whose inputs must be smaller at the highest rate.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], ModelInputs]
    cut: tuple[str, ...]
    narrowed: tuple[str, ...] = ()


class Patterns(dict[str, Pattern]):
    """Name -> pattern."""

    def add(
        self, name: str, make: Callable[[], nn.Module], inputs: Callable[[], ModelInputs], cut: str, narrowed: str = ""
    ) -> None:
        """Adds a pattern; `cut` and `narrowed` are names of layers with spaces between."""
        assert name not in self, name
        self[name] = Pattern(make, inputs, tuple(cut.split()), tuple(narrowed.split()))


def made(pattern: Pattern, seed: int = 0) -> tuple[nn.Module, ModelInputs]:
    """The model with random weights and statistics, in evaluation mode, and a batch."""
    torch.manual_seed(seed)
    return disturb(pattern.make(), seed), pattern.inputs()


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Sequential:
    """A convolution, a normalization, a ReLU."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def numbers(*shape: int) -> Callable[[], torch.Tensor]:
    """Draws a batch of 4 of a shape."""
    return lambda: torch.randn(4, *shape)


def tokens(length: int = 9, vocabulary: int = 30) -> Callable[[], torch.Tensor]:
    """Draws a batch of 4 sequences of token numbers."""
    return lambda: torch.randint(vocabulary, (4, length))


IMAGE = numbers(3, 8, 8)
SERIES = numbers(6, 12)  # channels, steps
SEQUENCE = numbers(9, 32)  # steps, features
ROW = numbers(6)

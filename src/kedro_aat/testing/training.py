"""A small network, data for it, and a few training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmallNet(nn.Module):
    """Two convolutions, BatchNorm and a classifier: (B, in_channels, 8, 8) -> (B, num_classes).

    Args:
        num_classes: Number of logits.
        width: Channels of both convolutions.
        in_channels: Channels of the images.
    """

    def __init__(self, num_classes: int = 4, *, width: int = 8, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(self.stem(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def images(num_examples: int, *, num_channels: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Images of 8x8 pixels in four classes: bright, dark, and stripes across or down, all with noise.

    Args:
        num_examples: Number of images, N.
        num_channels: Number of channels, C.
        seed: Seed of classes and noise.

    Returns:
        `inputs`, (N, C, 8, 8), and `targets`, (N,).
    """
    generator = torch.Generator().manual_seed(seed)
    stripes = torch.tensor([1.0, -1.0]).repeat(4)
    patterns = torch.stack(
        [torch.ones(8, 8), -torch.ones(8, 8), stripes[:, None].expand(8, 8), stripes[None, :].expand(8, 8)]
    )
    targets = torch.randint(4, (num_examples,), generator=generator)
    noise = torch.randn(num_examples, num_channels, 8, 8, generator=generator)
    return {"inputs": patterns[targets][:, None] + noise, "targets": targets}


BATCH = images(16)


def small_net(seed: int = 0) -> SmallNet:
    """A `SmallNet` with weights that depend on the seed alone."""
    torch.manual_seed(seed)
    return SmallNet()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    num_steps: int = 3,
    batch: dict[str, Tensor] = BATCH,
    before_step: Callable[[], Any] = lambda: None,
) -> None:
    """Trains on the same batch in each step; the last call is an optimizer step, not a forward pass.

    Args:
        model: Model to train.
        optimizer: Its optimizer.
        num_steps: Number of optimizer steps.
        batch: `inputs` and `targets`.
        before_step: Called before each step.
    """
    model.train()
    for _ in range(num_steps):
        before_step()
        optimizer.zero_grad()
        F.cross_entropy(model(batch["inputs"]), batch["targets"]).backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay, which both move masked weights."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)


def num_zeros(tensors: Iterable[Tensor]) -> int:
    """Number of zeros in all tensors together."""
    return sum(int((tensor == 0).sum()) for tensor in tensors)


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Same names, types, shapes and bits; a negative zero is not a positive one."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        other = right[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        as_bytes = [part.detach().contiguous().flatten().view(torch.uint8) for part in (tensor, other)]
        assert torch.equal(*as_bytes), name

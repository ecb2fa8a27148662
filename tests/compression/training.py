"""A few short steps of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import SmallNet, images

BATCH = images(16)


def small_net(seed: int = 0) -> SmallNet:
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
    """Trains on the same batch in each step; the last call is an optimizer step, not a forward pass."""
    model.train()
    for _ in range(num_steps):
        before_step()
        optimizer.zero_grad()
        F.cross_entropy(model(batch["inputs"]), batch["targets"]).backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)


def num_zeros(tensors: Iterable[Tensor]) -> int:
    return sum(int((tensor == 0).sum()) for tensor in tensors)


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Same names, types, shapes and bits; a negative zero is not a positive one."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        other = right[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        as_bytes = [part.detach().contiguous().flatten().view(torch.uint8) for part in (tensor, other)]
        assert torch.equal(*as_bytes), name

"""Tensors of which each rank holds some rows: torch's `fully_shard` divides parameters along their first dimension.

For an ordinary tensor, each function does what a single process would. torch's module for divided ones takes seconds to
import, so it is imported only where a tensor is divided.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.ranks import group


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only some rows of a tensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_divided(model: nn.Module) -> bool:
    """Whether each rank holds only some rows of a model's weights."""
    return any(map(is_sharded, model.parameters()))


def local(tensor: Tensor) -> Tensor:
    """The rows that this rank holds, maybe none, which share the memory of the tensor; all of an ordinary tensor."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # of DTensor


def rows_of(num_rows: int, rank: int, size: int) -> slice:
    """Which rows a rank holds, as `torch.chunk` divides them: the last ranks may hold fewer, or none.

    Args:
        num_rows: Number of all rows.
        rank: Number of the rank, from 0.
        size: Number of ranks.
    """
    per_rank = -(-num_rows // size)
    return slice(min(rank * per_rank, num_rows), min((rank + 1) * per_rank, num_rows))


def like(tensor: Tensor, rows: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """A tensor that is divided among the same ranks as another one.

    Args:
        tensor: The other one; if it is not divided, neither is the new one.
        rows: What this rank holds of the new one.
        shape: Shape of the new one; None for that of the other one.
    """
    if not is_sharded(tensor):
        return rows
    from torch.distributed.tensor import DTensor

    divided: Any = tensor
    shape = torch.Size(divided.shape if shape is None else shape)
    made: Tensor = DTensor.from_local(
        rows,
        divided.device_mesh,
        divided.placements,
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )
    return made


def part_of(whole_tensor: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, divided like another one of its shape, on the other's device; with memory of its own.

    Args:
        whole_tensor: The whole tensor, which every rank has.
        tensor: The other one.
    """
    part = whole_tensor
    if is_sharded(tensor):
        part = whole_tensor[rows_of(len(whole_tensor), group.rank(), group.world_size())]
    return like(tensor, part.detach().to(local(tensor).device, copy=True).contiguous())


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor, on every rank; all of them must call it."""
    if not is_sharded(tensor):
        return tensor
    gathered: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]  # of DTensor
    return gathered


def total(tensors: Sequence[Tensor], numbers: Sequence[int]) -> list[int]:
    """Adds up over the ranks what each has counted in its rows; all of them must call it with divided tensors.

    Args:
        tensors: The tensors; of an ordinary one, every rank has counted all.
        numbers: One number per tensor.
    """
    if not any(map(is_sharded, tensors)):
        return list(numbers)
    counts = torch.tensor(numbers, dtype=torch.int64, device=local(tensors[0]).device)
    summed: list[int] = group.summed(counts).tolist()
    return [one if is_sharded(tensor) else number for tensor, number, one in zip(tensors, numbers, summed, strict=True)]


@torch.no_grad()
def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole state of a model, on the CPU of rank 0; of the other ranks, which must call this as well, nothing."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        found = whole(tensor)
        if group.is_main():
            state[name] = found.cpu()
    return state

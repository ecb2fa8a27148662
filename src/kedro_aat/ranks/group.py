"""The process group of a run. Without one, each function does what it does for a single process."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from kedro_aat.ranks.environment import launched_world_size

T = TypeVar("T")

# A rank with nothing to do waits for the first one, which may export for hours. One that dies is noticed at once.
PATIENCE = timedelta(days=30)


def is_distributed() -> bool:
    """Whether this process is one of several that have joined a group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this process decides, and writes what is kept."""
    return rank() == 0


@contextmanager
def joined(device: torch.device, timeout: timedelta, startup: timedelta) -> Iterator[None]:
    """Joins the group that the environment describes, if there is one, and leaves it in the end.

    A group that the user has joined already is used, and stays.

    Args:
        device: Device of this process, which chooses the backend.
        timeout: Time after which a collective operation fails.
        startup: Time to wait until all processes are there.
    """
    if dist.is_initialized() or launched_world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=startup)
    try:
        # The rendezvous waits for `startup`; collectives have a limit of their own.
        dist.barrier()
        dist.distributed_c10d._set_pg_timeout(timeout)
        yield
    finally:
        _control_group.cache_clear()
        dist.destroy_process_group()


def told(value: T | None = None) -> T:
    """Returns rank 0's `value` on every rank. All of them must call it.

    Args:
        value: Any value that pickle takes; only rank 0's counts.
    """
    if not is_distributed():
        return value  # type: ignore[return-value]  # a single process gives one
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, group=_control_group())
    return box[0]  # type: ignore[no-any-return]


def gathered(value: T) -> list[T]:
    """Returns the values of all ranks, in their order, on every rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_control_group())
    return values


def summed(tensor: Tensor) -> Tensor:
    """Adds a tensor up over all ranks, in place, and returns it."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


@functools.cache
def _control_group() -> Any:
    """The group on the CPU by which rank 0 tells the others what comes next."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)

"""The process group of a run. Without one, each function does what it does for a single process."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from kedro_aat.errors import RankError
from kedro_aat.ranks.environment import launched_rank, launched_world_size, local_rank, start_number

T = TypeVar("T")

# A rank with nothing to do waits for the first one, which may export for hours. One that dies is noticed at once.
PATIENCE = timedelta(days=30)

_NUMBERS = itertools.count()  # of the groups that this process has joined
_IS_IN_STEP = ContextVar("is_in_step", default=False)


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

    Raises:
        RankError: If they are not there in time.
    """
    if launched_world_size() == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(local_rank() if device.index is None else device.index)
    # torch has one limit for the rendezvous and for collectives, so the rendezvous is made first.
    store = _met(startup)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=launched_rank(), world_size=launched_world_size(), timeout=timeout
    )
    try:
        yield
    finally:
        _control_group.cache_clear()
        dist.destroy_process_group()


@contextmanager
def of_one() -> Iterator[None]:
    """A process group of this process alone, to try what needs a group; whatever the environment says."""
    store = dist.HashStore()  # type: ignore[attr-defined]  # torch exports it by a star
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _met(startup: timedelta) -> Any:
    """The store of the rendezvous, when all processes have come to it."""
    number, size, end = launched_rank(), launched_world_size(), time.monotonic() + startup.total_seconds()
    try:
        found, _, _ = next(rendezvous("env://", timeout=startup))
        # Each group needs keys of its own; all ranks join equally many.
        store = dist.PrefixStore(f"kedro_aat/{start_number()}/{next(_NUMBERS)}", found)  # type: ignore[attr-defined]  # torch exports it by a star
        store.set(f"met/{number}", "")
        for other in range(size):
            store.wait([f"met/{other}"], timedelta(seconds=max(end - time.monotonic(), 1.0)))
    except dist.DistError as error:
        raise RankError(
            f"{startup.total_seconds():g} seconds after rank {number} was started, some of the {size} ranks were still "
            "missing (training.startup_timeout_seconds). Look into the output of the others, raise the limit if they "
            f"load for longer, and see whether the network lets them reach {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')}."
        ) from error
    return store


@contextmanager
def alone() -> Iterator[None]:
    """What runs within takes this process for the only one.

    Libraries such as torchmetrics gather from all ranks as soon as there is a group, and would wait for ranks that do
    something else.
    """
    before = dist.is_initialized
    dist.is_initialized = lambda: False
    try:
        yield
    finally:
        dist.is_initialized = before


def told(value: T | None = None) -> T:
    """Returns rank 0's `value` on every rank. All of them must call it.

    Args:
        value: Any value that pickle takes; only rank 0's counts.
    """
    if not is_distributed():
        return value  # type: ignore[return-value]  # a single process gives one
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, group=_control_group(dist.group.WORLD))
    return box[0]  # type: ignore[no-any-return]


def gathered(value: T) -> list[T]:
    """Returns the values of all ranks, in their order, on every rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_control_group(dist.group.WORLD))
    return values


def copied(tensor: Tensor) -> Tensor:
    """Copies rank 0's tensor to all ranks, in place, and returns it.

    Args:
        tensor: Of the same shape on every rank; on any device, also one that the group has no backend for.
    """
    if is_distributed():
        if tensor.device.type == "cpu":
            dist.broadcast(tensor, 0, group=_control_group(dist.group.WORLD))
        else:
            dist.broadcast(tensor, 0)
    return tensor


def summed(tensor: Tensor) -> Tensor:
    """Adds a tensor up over all ranks, in place, and returns it."""
    return reduced(tensor, "sum")


def reduced(tensor: Tensor, by: Literal["sum", "min", "max"]) -> Tensor:
    """Reduces a tensor over all ranks, in place, and returns it.

    Args:
        tensor: Of the same shape on every rank, on the CPU or on the device of the group.
        by: Sum, smallest or largest of the values at each place.
    """
    if is_distributed():
        dist.all_reduce(tensor, {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}[by])
    return tensor


@contextmanager
def in_step() -> Iterator[None]:
    """All ranks run the same model within the context, each on its part of the same batches.

    What depends on the batches, such as ranges of activations, is then reduced over the ranks.
    """
    token = _IS_IN_STEP.set(True)
    try:
        yield
    finally:
        _IS_IN_STEP.reset(token)


def is_in_step() -> bool:
    """Whether all ranks run the same model right now; never in a single process."""
    return _IS_IN_STEP.get() and is_distributed()


@functools.lru_cache(maxsize=1)
def _control_group(world: Any) -> Any:
    """The group on the CPU by which rank 0 tells the others what comes next, of the default group `world`."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)

"""Batches that are on the device before a step needs them: of data that stay there, or copied one step ahead."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from kedro_aat.model_inputs import map_tensors, tensors_in
from kedro_aat.training.guards.watchdog import Watchdog

# Share of the free memory of a GPU that a split takes at most. Before the first step it is free, and steps need most.
MOST_MEMORY = 0.1


class OnDevice:
    """Batches of tensors that stay on a device, in the order of a sampler.

    The order goes to the device once an epoch, since each index from the host would wait for the device.

    Args:
        dataset: The dataset, whose tensors are elsewhere.
        tensors: Its tensors on the device.
        batches: Yields lists of indices.
        device: The device.
        limit: Number of batches at most; None for all.

    Attributes:
        dataset: The dataset.
        sampler: What yields the indices.
    """

    def __init__(
        self, dataset: Any, tensors: Any, batches: Any, device: torch.device, limit: int | None = None
    ) -> None:
        self.dataset, self.sampler = dataset, batches
        self._tensors, self._device, self._limit = tensors, device, limit

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        torch.empty((), dtype=torch.int64).random_()  # as torch's loader, so that random numbers go on alike
        batches = [list(batch) for batch in itertools.islice(self.sampler, self._limit)]
        order = torch.tensor([index for batch in batches for index in batch], dtype=torch.int64)
        # As a dataset on the host takes them: negative ones count from the end, and a wrong one is an error, which on a
        # GPU would end the process.
        order = torch.arange(len(self.dataset))[order].to(self._device)
        for indices in order.split([len(batch) for batch in batches]):
            yield map_tensors(functools.partial(torch.index_select, dim=0, index=indices), self._tensors)


def fits(tensors: Any, device: torch.device) -> bool:
    """Whether tensors take a small share of the memory that is free on a CUDA GPU; False on any other device."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.nbytes for tensor in tensors_in(tensors)) <= MOST_MEMORY * free


def copied_ahead(loader: Any, device: torch.device, timeout: float | None = None) -> Any:
    """The batches of a loader, each of which is copied to a CUDA GPU while the step before it runs.

    Args:
        loader: The loader. On any other device its batches come as they are.
        device: The device.
        timeout: Seconds for the last step, which the loader no longer watches, since it has ended; None for no limit.
    """
    return CopiedAhead(loader, device, timeout) if device.type == "cuda" else loader


class CopiedAhead:
    """Batches on a device, the next one of which is on its way in a stream of its own.

    Args:
        loader: Yields batches, in pinned memory, or the copies wait.
        device: The device.
        timeout: Seconds for the last step; None for no limit.
    """

    def __init__(self, loader: Any, device: torch.device, timeout: float | None = None) -> None:
        self._loader, self._device, self._timeout = loader, device, timeout
        self._streams: Any = torch.get_device_module(device)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)

    def __iter__(self) -> Iterator[Any]:
        copying, waiting = _stream_of(self._device), None
        for batch in self._loader:
            with self._streams.stream(copying):
                copied = self._copied(batch)
            if waiting is not None:
                yield self._arrived(*waiting)
            # The batch on the host stays until its copy has been waited for.
            waiting = copied, copying.record_event(), batch
        if waiting is None:
            return
        watchdog = None if self._timeout is None else Watchdog(self._timeout)
        try:
            yield self._arrived(*waiting)
        finally:
            if watchdog is not None:
                watchdog.stop()

    def _copied(self, batch: Any) -> Any:
        try:
            return map_tensors(lambda tensor: tensor.to(self._device, non_blocking=True), batch)
        except (TypeError, ValueError):  # a class of the user's that takes other arguments: `Placement` copies later
            return batch

    def _arrived(self, copied: Any, event: Any, batch: Any) -> Any:
        computing = self._streams.current_stream(self._device)
        computing.wait_event(event)
        for tensor in tensors_in(copied):
            if tensor.is_cuda:  # its memory may be used again only when this stream has read it
                tensor.record_stream(computing)
        return copied


@functools.cache
def _stream_of(device: torch.device) -> Any:
    """The stream in which batches are copied: one, since torch uses memory of a stream again in that stream alone."""
    return torch.get_device_module(device).Stream(device)

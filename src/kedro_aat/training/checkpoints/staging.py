"""Copies a state to the host while training goes on: from a GPU through pinned memory, in a stream of its own."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

logger = logging.getLogger(__name__)


class Staging:
    """Copies of nested states, with their tensors on the host; one that has several places in them is copied once.

    A tensor on a CUDA GPU is copied into pinned memory without waiting for it. Work that the calling thread gives to
    the GPU later begins when the copies are complete, since it may change what is copied. torch keeps the pinned memory
    for the next checkpoint.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[Any, ...], Tensor] = {}
        self._streams: dict[torch.device, Any] = {}
        self._events: list[Any] = []

    def copied(self, state: Any) -> Any:
        """A copy, which is complete after `wait`."""
        return tree_map(self._copy_of, state)

    def finish(self) -> None:
        """Makes later work on the GPU wait for the copies; no more are made."""
        for device, stream in self._streams.items():
            event = stream.record_event()
            torch.cuda.current_stream(device).wait_event(event)
            self._events.append(event)
        self._copies.clear()

    def wait(self) -> None:
        """Waits until all copies are complete, in any thread."""
        for event in self._events:
            event.synchronize()

    def _copy_of(self, leaf: Any) -> Any:
        if isinstance(leaf, Counter):  # `tree_map` takes neither this one nor sets apart
            return Counter(self.copied(dict(leaf)))
        if isinstance(leaf, set):
            return set(map(self.copied, leaf))
        if not isinstance(leaf, Tensor):
            return copy.copy(leaf)
        if leaf.layout is not torch.strided or not leaf.numel():
            return leaf.detach().to("cpu", copy=True)
        key = (leaf.device, leaf.data_ptr(), leaf.shape, leaf.stride(), leaf.dtype, leaf.is_conj(), leaf.is_neg())
        if key not in self._copies:
            self._copies[key] = self._on_host(leaf.detach())
        return self._copies[key]

    def _on_host(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda or not _is_copied_as_it_is(tensor):
            return tensor.to("cpu", copy=True)
        try:
            staged = torch.empty_like(tensor, device="cpu", pin_memory=True)
        except RuntimeError as error:  # the host has no more memory that can be pinned
            logger.debug("A checkpoint is copied without pinned memory: %s", error)
            return tensor.to("cpu", copy=True)
        if tensor.device not in self._streams:
            stream = self._streams[tensor.device] = torch.cuda.Stream(tensor.device)
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._streams[tensor.device]):
            staged.copy_(tensor, non_blocking=True)
            tensor.record_stream(self._streams[tensor.device])
        return staged


def _is_copied_as_it_is(tensor: Tensor) -> bool:
    """Whether a copy has the same bytes; else torch changes them on the host, even before they have arrived."""
    if tensor.is_conj() or tensor.is_neg():
        return False
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()

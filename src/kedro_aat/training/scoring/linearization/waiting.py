"""Batches that wait, so that many examples are computed at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Bytes of outputs and targets that wait.
MAX_WAITING = 2**26


class Waiting:
    """Joins batches of the same shape.

    Args:
        function: Called with many outputs (B, ...) and targets (B, ...), in the order of the batches.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], object]) -> None:
        self._function = function
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._bytes = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch of outputs (B, ...) and targets (B, ...)."""
        if self._batches and any(
            new.shape[1:] != old.shape[1:] for new, old in zip((outputs, targets), self._batches[0], strict=True)
        ):
            self.flush()
        self._batches.append((outputs, targets))
        self._bytes += outputs.nbytes + targets.nbytes
        if self._bytes > MAX_WAITING:
            self.flush()

    def flush(self) -> None:
        """Calls the function with what waits."""
        if self._batches:
            outputs, targets = (torch.cat(tensors) for tensors in zip(*self._batches, strict=True))
            self._batches.clear()
            self._bytes = 0
            self._function(outputs, targets)

"""Counts the bytes of tensors that live at the same time, on any device, without what they hold at the beginning."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """While it is active, counts the storages that operations make; what an operation needs inside is not seen.

    Attributes:
        now: Bytes that live now, of those that were made since it became active.
        peak: The most that lived at the same time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs an operation, and counts its results that are in new memory."""
        more = kwargs or {}
        for leaf in tree_leaves((args, more)):
            if isinstance(leaf, Tensor):
                self._known.add(leaf.untyped_storage())
        results = func(*args, **more)
        for leaf in tree_leaves(results):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return results

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size

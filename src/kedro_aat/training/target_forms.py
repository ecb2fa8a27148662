"""Targets in the shape and type in which losses and metrics of torch and torchmetrics take them.

Numbers come as (N,) or (N, 1), as integers or floats, and each loss and metric wants its own: one of them must be
wrong, however the user saves them. Labels of classes, and what functions of the user's take, stay as they are.
"""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kedro_aat.model_inputs import tensors_in

logger = logging.getLogger(__name__)


@functools.cache
def _say(words: str) -> None:
    """Says something once in a process: each file and each stage has a form of its own."""
    logger.info("%s", words)


class TargetForm:
    """How one loss or metric takes outputs and targets; the type is found by trying, on the first batch.

    Args:
        reader: A loss or a metric.
    """

    def __init__(self, reader: Any) -> None:
        kind = type(reader).__module__.partition(".")[0]
        self._reader = reader if kind in ("torch", "torchmetrics") else None
        self._dtype: torch.dtype | None = None
        self._is_found = False

    def __call__(self, outputs: Any, targets: Any) -> tuple[Any, Any]:
        """Outputs and targets as the loss or metric takes them; both are unchanged if it takes labels."""
        if self._reader is None or not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
            return outputs, targets
        if outputs.shape != targets.shape:
            if outputs.numel() != targets.numel() or outputs.shape[:1] != targets.shape[:1]:
                return outputs, targets
            outputs, targets = _alike(outputs, targets)
            if outputs.shape != targets.shape:
                return outputs, targets
        if not self._is_found:
            self._dtype, self._is_found = self._wanted(outputs, targets), True
        return outputs, targets if self._dtype is None else targets.to(self._dtype)

    def _wanted(self, outputs: Tensor, targets: Tensor) -> torch.dtype | None:
        """The type that works; None to leave the targets as they are."""
        numbers = outputs.detach().cpu().float()
        if self._works(numbers, targets.detach().cpu()):
            return None
        for dtype in _other_types(targets):
            if self._works(numbers, targets.detach().cpu().to(dtype)):
                name = type(self._reader).__name__
                _say(f"{name} takes the targets as {str(dtype)[6:]} instead of {str(targets.dtype)[6:]}.")
                return outputs.dtype if dtype.is_floating_point else dtype
        return None

    def _works(self, outputs: Tensor, targets: Tensor) -> bool:
        assert self._reader is not None  # else nothing is tried
        reader = copy.deepcopy(self._reader).cpu()
        try:
            with warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")
                if hasattr(reader, "update") and hasattr(reader, "compute"):
                    reader.reset()
                    reader.update(outputs, targets)
                else:
                    reader(outputs.clone().requires_grad_(), targets).sum().backward()
        except Exception:  # whatever torch or torchmetrics raises
            return False
        return True


def main_target(targets: Any) -> Any:
    """The target that the metric reads: the first of several."""
    return targets if isinstance(targets, Tensor) else next(tensors_in(targets), targets)


def _other_types(targets: Tensor) -> Iterator[torch.dtype]:
    if targets.dtype != torch.float32:
        yield torch.float32
    if targets.dtype != torch.int64 and bool((targets == targets.round()).all()):
        yield torch.int64


def _alike(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the shape of the one with fewer dimensions, if they differ in dimensions of size 1 alone."""
    first, second = ([size for size in each.shape[1:] if size != 1] for each in (outputs, targets))
    if first != second:
        return outputs, targets
    shape = min(outputs.shape, targets.shape, key=len)
    return outputs.reshape(shape), targets.reshape(shape)

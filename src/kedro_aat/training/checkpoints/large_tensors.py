"""Large tensors of a nested state, in a file of their own, which can be removed when they are no longer needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kedro_aat.training.checkpoints.numpy_values import mapped
from kedro_aat.training.checkpoints.tensor_files import DTYPES

_TAG = "kedro_aat.tensor"
# Bytes of a tensor from which it is large. Smaller ones are mostly biases and scales, which take no space.
LARGE = 1 << 16
_SUPPORTED = {*DTYPES.values()}


def without_large(state: Any, tensors: dict[str, Tensor]) -> Any:
    """A nested state with a reference in place of each large tensor.

    Args:
        state: The state.
        tensors: Gets the large tensors by name.
    """
    if isinstance(state, Tensor):
        if state.layout is not torch.strided or state.nbytes < LARGE or state.dtype not in _SUPPORTED:
            return state
        # The order of its elements in memory stays, such as channels-last.
        order = sorted(range(state.dim()), key=state.stride().__getitem__, reverse=True)
        dense = state.permute(order)
        if not dense.is_contiguous():
            order, dense = [*range(state.dim())], state
        name = str(len(tensors))
        tensors[name] = dense.detach()
        return (_TAG, name, tuple(order))
    return mapped(lambda part: without_large(part, tensors), state)


def with_large(state: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `without_large` was given.

    Raises:
        KeyError: If a tensor is missing.
        ValueError, RuntimeError: If a reference is none.
    """
    if type(state) is tuple and len(state) == 3 and state[0] == _TAG:
        _, name, order = state
        return tensors[name].permute([order.index(dim) for dim in range(len(order))])
    return mapped(lambda part: with_large(part, tensors), state)

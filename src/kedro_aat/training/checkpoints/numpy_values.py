"""NumPy's numbers and arrays as plain containers, since torch reads back without running code only its own tensors.

They are read back as they were, with their types: a learning rate in NumPy's float32 goes on in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_TAG = "kedro_aat.numpy"
_KINDS = "biufcSUmM"  # truth values, numbers, texts and times; no Python objects, and no records
_SEQUENCES = (list, tuple, set)


def is_plain_numpy(value: Any) -> bool:
    """Whether it is one of NumPy's numbers, or an array of them."""
    return (type(value) is np.ndarray or isinstance(value, np.generic)) and value.dtype.kind in _KINDS


def encoded(state: Any) -> Any:
    """A nested state with plain containers in place of NumPy's values, which can be keys, too."""
    if is_plain_numpy(state):
        shape = state.shape if isinstance(state, np.ndarray) else None
        return (_TAG, state.dtype.str, shape, state.tobytes().hex())  # torch does not read back empty bytes
    return mapped(encoded, state)


def decoded(state: Any) -> Any:
    """The state that `encoded` was given.

    Raises:
        ValueError: If what stands for an array is none.
    """
    if type(state) is tuple and len(state) == 4 and state[0] == _TAG:
        _, dtype, shape, contents = state
        dtype = np.dtype(dtype)
        if dtype.kind not in _KINDS:
            raise ValueError(f"an array of {dtype} is not allowed")
        values: Any = np.ndarray(shape or (), dtype, bytes.fromhex(contents)).copy()
        return values[()] if shape is None else values
    return mapped(decoded, state)


def mapped(change: Callable[[Any], Any], state: Any) -> Any:
    """A container with its keys and parts changed; anything else as it is."""
    if isinstance(state, dict):
        parts = {change(key): change(part) for key, part in state.items()}
        return parts if type(state) is dict else type(state)(parts)
    return type(state)(map(change, state)) if type(state) in _SEQUENCES else state

"""Made-up inputs of an ONNX file, which a line of code makes again anywhere: nothing of the user's data is in them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from kedro_aat.export.session import open_session

_SIZE = 64  # of an axis of any size: enough for most strides and kernels


def sample_inputs(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Name -> made-up numbers for one example: fractions from 0 to 1, whole numbers 0 and 1 in turn.

    Args:
        model: The file.

    Returns:
        (1, ...) each; an axis of any size other than the first has 64.
    """
    return {value.name: made_up(shape_of(value), dtype_of(value)) for value in model.graph.input}


def run_sample(model: ModelProto) -> dict[str, NDArray[Any]] | None:
    """Name -> output for `sample_inputs`; None if the file does not run with them, or gives NaN or infinity."""
    try:
        session = open_session(model.SerializeToString())
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, map(np.asarray, session.run(None, sample_inputs(model))), strict=True))
    except Exception:  # an axis of any size may need another than 64, and each operator has errors of its own
        return None
    return outputs if all(np.isfinite(array).all() for array in outputs.values() if array.dtype.kind == "f") else None


def sample_code(value: ValueInfoProto) -> str:
    """The code that makes the numbers of `sample_inputs` for one input; `np` is numpy."""
    return made_up_code(shape_of(value), dtype_of(value))


def made_up_code(shape: tuple[int, ...], kind: np.dtype[Any]) -> str:
    """The code of `made_up`; `np` is numpy."""
    number = math.prod(shape)
    if kind.kind == "f":
        return f'np.linspace(0, 1, {number}, dtype="{kind}").reshape({shape})'
    return f'(np.arange({number}) % 2).astype("{kind}").reshape({shape})'


def shape_of(value: ValueInfoProto) -> tuple[int, ...]:
    """Shape of one example of an input."""
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value or (1 if index == 0 else _SIZE) for index, size in enumerate(sizes))


def dtype_of(value: ValueInfoProto) -> np.dtype[Any]:
    """Type of the numbers of an input or output."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def is_quantized(model: ModelProto) -> bool:
    """Whether a file rounds to 8 bits, so that its outputs may differ a little from one processor to another."""
    return any("Quantize" in node.op_type for node in model.graph.node)


def made_up(shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """Fractions from 0 to 1, or whole numbers 0 and 1 in turn.

    Args:
        shape: Shape of the array.
        kind: Type of its numbers.
    """
    number = math.prod(shape)
    if kind.kind == "f":
        return np.linspace(0, 1, number, dtype=kind).reshape(shape)
    return (np.arange(number) % 2).astype(kind).reshape(shape)

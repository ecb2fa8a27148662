"""Numbers held in 8 bits: plain arithmetic in torch, and QuantizeLinear and DequantizeLinear in ONNX.

A `.pt2` file needs operators that every torch has, an ONNX file those that onnxruntime fuses. Which of them the
functions here give is told by `as_onnx_operators`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

HIGHEST = 255  # of uint8
_AS_ONNX: ContextVar[bool] = ContextVar("as_onnx", default=False)


@contextlib.contextmanager
def as_onnx_operators() -> Iterator[None]:
    """Within, the functions below can only be traced, by `torch.export`, and give operators of ONNX."""
    token = _AS_ONNX.set(True)
    try:
        yield
    finally:
        _AS_ONNX.reset(token)


def round_to_uint8(tensor: Tensor, scale: float | Tensor, zero_point: int | Tensor) -> Tensor:
    """What is left of a float32 tensor that is held in uint8: ONNX's QuantizeLinear, then DequantizeLinear.

    Args:
        tensor: Any shape.
        scale: Above 0.
        zero_point: In [0, 255].
    """
    if not _AS_ONNX.get():
        return ((tensor / scale).round() + zero_point).clamp(0, HIGHEST).sub(zero_point) * scale
    from torch.onnx.ops import symbolic

    constants = torch.as_tensor(scale), torch.as_tensor(zero_point, dtype=torch.uint8)
    held = symbolic("QuantizeLinear", (tensor, *constants), dtype=torch.uint8, shape=tensor.shape)
    return symbolic("DequantizeLinear", (held, *constants), dtype=torch.float32, shape=tensor.shape)


def dequantized(tensor: Tensor, scales: Tensor, axis: int = 0) -> Tensor:
    """Integers times their scales, as float32.

    Args:
        tensor: int8 or int32, any shape.
        scales: (N,), one for each entry along `axis`.
        axis: Along which the scales differ.
    """
    if not _AS_ONNX.get():
        shape = [1] * tensor.ndim
        shape[axis] = -1
        return tensor.to(scales.dtype) * scales.view(shape)
    from torch.onnx.ops import symbolic

    inputs = [tensor, scales]
    if tensor.dtype == torch.int8:  # onnxruntime fuses no Gemm whose weight has no zero points
        inputs.append(torch.zeros(scales.shape, dtype=torch.int8))
    return symbolic("DequantizeLinear", inputs, {"axis": axis}, dtype=torch.float32, shape=tensor.shape)


def is_tracing_onnx() -> bool:
    """Whether `as_onnx_operators` is in force."""
    return _AS_ONNX.get()

"""The arithmetic of 8-bit integers: scales and zero points, rounding during training, and the same as ONNX operators.

Activations are unsigned, with one scale and zero point per tensor. Weights are signed and symmetric, with one scale
per output channel (Krishnamoorthi 2018, arXiv:1806.08342, section 2; Jacob et al. 2018, arXiv:1712.05877, equation 1).
During training the gradient passes through the rounding unchanged, but is zero where an activation was clipped to its
range (Jacob et al. 2018, section 3). A BatchNorm after a layer only rescales the layer's channels. With one scale per
channel the integers of the folded weight are those of the weight itself, so nothing is folded during training.

A stripped model uses `round_to_uint8` and `dequantize`. They compute with plain torch operators, which a `.pt2` file
needs; or emit QuantizeLinear and DequantizeLinear, which onnxruntime fuses; or the operators of torch's `PT2E`
quantization, which ExecuTorch and LiteRT fuse. See `as_onnx_operators` and `as_decomposed_operators`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

HIGHEST_ACTIVATION = 255  # of uint8
HIGHEST_WEIGHT = 127  # of int8; -128 is not used, so that every weight has a negative
# Twice the product of this weight and an activation fits in the 16 bits in which processors without VNNI add.
HIGHEST_SAFE_WEIGHT = 63
# The scale of a channel of zeros, or of a tensor that was always zero: too small to matter, and large enough for a
# finite inverse.
_LEAST_SCALE = 1e-12

# uint8 minus this is int8, in which ExecuTorch and LiteRT keep activations.
_TO_SIGNED = 128

_EMITTED: ContextVar[Literal["onnx", "decomposed"] | None] = ContextVar("emitted", default=None)


def activation_scales(ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the scale and zero point of each range.

    Args:
        ranges: (N, 2) - lowest and highest value. Each range is widened to include 0, because padding and ReLU need
            an exact 0.

    Returns:
        (N,) float32 scales and (N,) int32 zero points.
    """
    low, high = ranges[:, 0].clamp(max=0), ranges[:, 1].clamp(min=0)
    scales = ((high - low) / HIGHEST_ACTIVATION).clamp(min=_LEAST_SCALE)
    zero_points = (-low / scales).round().clamp(0, HIGHEST_ACTIVATION).int()
    return scales, zero_points


def weight_scales(weight: Tensor, highest: int, axis: int = 0) -> Tensor:
    """Computes the scales that map the largest weight of each channel to the largest integer.

    Args:
        weight: Any shape.
        highest: The largest integer.
        axis: Dimension of `weight` whose indices are the channels.

    Returns:
        (n,), where n is the size of `axis`.
    """
    others = [dim for dim in range(weight.ndim) if dim != axis]
    largest = weight.detach().abs().amax(others)  # a norm takes 2 to 10 times as long
    scales: Tensor = (largest / highest).clamp_(min=_LEAST_SCALE)
    return scales


def round_weight(weight: Tensor, highest: int, axis: int = 0) -> Tensor:
    """Rounds a weight to int8 and back; the gradient passes through, since no weight is ever clipped.

    Args:
        weight: Any shape.
        highest: The largest integer.
        axis: Dimension of `weight` along which the scales differ.
    """
    scales = broadcast_along(axis, weight_scales(weight, highest, axis), weight)
    rounded: Tensor = _StraightThrough.apply(weight, scales)  # type: ignore[no-untyped-call]  # untyped in torch
    return rounded


def integer_weight(weight: Tensor, scales: Tensor, axis: int = 0) -> Tensor:
    """Rounds a weight to integers that equal `round_weight` if they are multiplied by the scales.

    Args:
        weight: Any shape.
        scales: (n,) - its `weight_scales`.
        axis: Dimension of `weight` along which the scales differ.
    """
    return (weight.detach() / broadcast_along(axis, scales, weight)).round().to(torch.int8)


def round_activation(tensor: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Rounds a tensor to uint8 and back, for training.

    Args:
        tensor: Any shape and floating-point type.
        scale: Scalar float32, greater than 0.
        zero_point: Scalar int32, in [0, 255].

    Returns:
        The same shape and type; its gradient is 0 where the tensor was clipped.
    """
    rounded: Tensor = _RoundedActivation.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        tensor.float(), scale, zero_point
    )
    return rounded.to(tensor.dtype)  # under autocast it may be bfloat16


def broadcast_along(dim: int, values: Tensor, tensor: Tensor) -> Tensor:
    """Reshapes values so that each applies to one index of a dimension of a tensor.

    Args:
        dim: Dimension of `tensor`.
        values: (N,), where N is the size of that dimension.
        tensor: Only its number of dimensions matters.
    """
    shape = [1] * tensor.ndim
    shape[dim] = -1
    return values.view(shape)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor) -> Tensor:
        return (weight / scales).round_().mul_(scales)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _RoundedActivation(torch.autograd.Function):
    """The gradient of torch's own fake quantization, but no tensor is *saved* for it.

    Gradient checkpointing counts the saved tensors, and calls a part of a forward pass again from within the backward
    pass, where not all of the tensors that were rounded in the forward pass are found.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        result: Tensor
        if not tensor.is_cpu:  # one kernel does it all
            enabled = torch.ones(1, dtype=torch.int64, device=tensor.device)
            result, ctx.is_inside = torch.ops.aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams(
                tensor, scale, zero_point, enabled, 0, HIGHEST_ACTIVATION
            )
            return result
        # On a CPU that kernel handles number by number, which takes 4 to 13 times as long as these functions.
        ctx.integers = torch.div(tensor, scale).round_().add_(zero_point)
        result = ctx.integers.clamp(0, HIGHEST_ACTIVATION).sub_(zero_point).mul_(scale)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if not gradient.is_cpu:
            return gradient * ctx.is_inside, None, None
        # The gradient of clamping between two numbers that are no integers.
        inside: Tensor = torch.ops.aten.hardtanh_backward(gradient, ctx.integers, -0.5, HIGHEST_ACTIVATION + 0.5)
        return inside, None, None


@contextlib.contextmanager
def as_onnx_operators() -> Iterator[None]:
    """Makes `round_to_uint8` and `dequantize` emit ONNX operators; they can then only be traced by `torch.export`."""
    token = _EMITTED.set("onnx")
    try:
        yield
    finally:
        _EMITTED.reset(token)


@contextlib.contextmanager
def as_decomposed_operators() -> Iterator[None]:
    """Makes `round_to_uint8` and `dequantize` emit operators of `torch.ops.quantized_decomposed`, as PT2E does.

    Activations are int8, with zero points that are lower by 128; their scales and the numbers that they stand for are
    the same. Use it with `held.decomposable`, which makes biases and zero points constants.
    """
    import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
    token = _EMITTED.set("decomposed")
    try:
        yield
    finally:
        _EMITTED.reset(token)


def is_tracing_onnx() -> bool:
    """Whether `as_onnx_operators` is in effect."""
    return _EMITTED.get() == "onnx"


def round_to_uint8(tensor: Tensor, scale: float | Tensor, zero_point: int | Tensor) -> Tensor:
    """Rounds a tensor to uint8 and back as ONNX does: QuantizeLinear, then DequantizeLinear.

    Args:
        tensor: float32, any shape.
        scale: Greater than 0.
        zero_point: In [0, 255].
    """
    if _EMITTED.get() is None:
        return ((tensor / scale).round() + zero_point).clamp(0, HIGHEST_ACTIVATION).sub(zero_point) * scale
    if not is_tracing_onnx():
        arguments = float(scale), int(zero_point) - _TO_SIGNED, -_TO_SIGNED, _TO_SIGNED - 1, torch.int8
        signed = torch.ops.quantized_decomposed.quantize_per_tensor.default(tensor, *arguments)
        rounded: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor.default(signed, *arguments)
        return rounded
    from torch.onnx.ops import symbolic

    constants = torch.as_tensor(scale), torch.as_tensor(zero_point, dtype=torch.uint8)
    integers = symbolic("QuantizeLinear", (tensor, *constants), dtype=torch.uint8, shape=tensor.shape)
    return symbolic("DequantizeLinear", (integers, *constants), dtype=torch.float32, shape=tensor.shape)


def dequantize(tensor: Tensor, scales: Tensor, axis: int = 0, zero_points: Tensor | None = None) -> Tensor:
    """Multiplies integers by their scales: ONNX's DequantizeLinear.

    Args:
        tensor: int8 or int32, any shape.
        scales: (N,), one for each index of `axis`.
        axis: Dimension of `tensor` along which the scales differ.
        zero_points: (N,) of zeros, which PT2E's operator for int8 takes; None if it is not emitted.

    Returns:
        float32, of the shape of `tensor`.
    """
    if _EMITTED.get() == "decomposed" and zero_points is not None:
        weight: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel.default(
            tensor, scales, zero_points, axis, -HIGHEST_WEIGHT, HIGHEST_WEIGHT, torch.int8
        )
        return weight
    if not is_tracing_onnx():
        return tensor.to(scales.dtype) * broadcast_along(axis, scales, tensor)
    from torch.onnx.ops import symbolic

    inputs = [tensor, scales]
    if tensor.dtype == torch.int8:  # onnxruntime fuses no Gemm whose weight lacks zero points
        inputs.append(torch.zeros(scales.shape, dtype=torch.int8))
    return symbolic("DequantizeLinear", inputs, {"axis": axis}, dtype=torch.float32, shape=tensor.shape)

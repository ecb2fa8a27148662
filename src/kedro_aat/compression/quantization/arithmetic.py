"""The arithmetic of 8 bits: scales, zero points, and numbers rounded to them, with gradients for training.

Activations are unsigned, one scale and zero point a tensor; weights are signed and symmetric, one scale an output
channel (Krishnamoorthi 2018, arXiv:1806.08342, section 2; Jacob et al. 2018, arXiv:1712.05877, equation 1). What
is rounded passes its gradient through as if it were not, except where an activation was clipped to its range
(Jacob et al. 2018, section 3). A BatchNorm behind a layer only rescales its channels, and with a scale a channel
the int8 numbers of the folded weight are those of the weight itself; so none is folded during training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HIGHEST_ACTIVATION = 255
HIGHEST_WEIGHT = 127  # -128 is left out, so that the negative of every weight exists
# Twice the product of one of these and an activation fits 16 bits, which processors without VNNI add up in.
HIGHEST_SAFE_WEIGHT = 63
# Small enough never to matter, and large enough that its inverse is finite. Stands in for the scale of a channel
# of zeros, or of a tensor that was always zero.
_LEAST_SCALE = 1e-12


def activation_scales(ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each range.

    Args:
        ranges: (N, 2) - lowest and highest number; widened to hold 0, which must be exact for padding and ReLU.

    Returns:
        (N,) float32 and (N,) int32.
    """
    low, high = ranges[:, 0].clamp(max=0), ranges[:, 1].clamp(min=0)
    scales = ((high - low) / HIGHEST_ACTIVATION).clamp(min=_LEAST_SCALE)
    zero_points = (-low / scales).round().clamp(0, HIGHEST_ACTIVATION).int()
    return scales, zero_points


def weight_scales(weight: Tensor, highest: int) -> Tensor:
    """(out, ...) -> (out,) scales with which each channel's largest weight becomes `highest`."""
    largest = torch.linalg.vector_norm(weight.detach().flatten(1), ord=torch.inf, dim=1)
    scales: Tensor = (largest / highest).clamp_(min=_LEAST_SCALE)
    return scales


def round_weight(weight: Tensor, highest: int) -> Tensor:
    """The weight as int8 gives it back, with the gradient of the weight itself; nothing is ever clipped."""
    scales = weight_scales(weight, highest).view(-1, *[1] * (weight.ndim - 1))
    rounded: Tensor = _StraightThrough.apply(weight, scales)  # type: ignore[no-untyped-call]  # untyped in torch
    return rounded


def integer_weight(weight: Tensor, scales: Tensor) -> Tensor:
    """(out, ...) -> the weight as int8, of (out,) `weight_scales`; the product is what `round_weight` gives."""
    return (weight.detach() / scales.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)


def round_activation(tensor: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """A tensor as uint8 gives it back; gradient 0 where it was clipped."""
    rounded = torch.fake_quantize_per_tensor_affine(tensor.float(), scale, zero_point, 0, HIGHEST_ACTIVATION)
    return rounded.to(tensor.dtype)  # autocast may have made it bfloat16


@torch.no_grad()
def relative_error(weight: Tensor, highest: int) -> float:
    """Energy of the rounding error over that of the weight, at least 0; the inverse of the SQNR."""
    energy = float(weight.square().sum())
    return float((round_weight(weight, highest) - weight).square().sum()) / energy if energy else 0.0


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor) -> Tensor:
        return (weight / scales).round_().mul_(scales)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None

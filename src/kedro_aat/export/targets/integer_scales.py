"""Scales with which integer kernels can compute: what runtimes refuse, or cannot hold, where trained ranges are tiny.

A tensor that was always zero in training has a range of about zero, and a channel of zeros has any scale. XNNPACK
refuses a layer whose products are much coarser than its result, and a bias is held in int32 with the scale of the
products. Scales that are too small for that are raised; the tensor is then still rounded more finely than it matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

# XNNPACK takes products whose scale is less than 256 times that of the result.
_MOST_RATIO = 128.0
_LEAST_RATIO = 2.0**-16  # of the scale of one channel to that of another
_LARGEST_BIAS = 2.0**30  # leaves room below 2**31 for the products that are added
_ANY_SCALE = 1e-3  # of a weight that is all zeros


def usual_scales(integers: Tensor, scales: Tensor, axis: int) -> Tensor:
    """The scales of a weight, where those of channels that are zero, or as good as, are within the range of the others.

    Args:
        integers: int8, any shape.
        scales: (n,), one for each index of `axis`.
        axis: Dimension of `integers` along which the scales differ.

    Returns:
        (n,); those of the other channels are unchanged, unless one is below 2**-16 of the largest.
    """
    is_zero = (integers == 0).transpose(0, axis).flatten(1).all(1)
    largest = scales.masked_fill(is_zero, 0.0).max()
    if largest == 0:
        return torch.full_like(scales, _ANY_SCALE)
    return scales.masked_fill(is_zero, float(largest)).clamp(min=float(largest) * _LEAST_RATIO)


def least_output_scale(input_scale: float, weight_scales: Tensor) -> float:
    """The least scale of a layer's result beside its products."""
    return input_scale * float(weight_scales.max()) / _MOST_RATIO


def least_input_scale(weight_scales: Tensor, bias: Tensor | None) -> float:
    """The least scale of a layer's input with which its bias, in the scale of the products, fits in int32.

    Args:
        weight_scales: (n,)
        bias: (n,); None if there is none. One of another size is passed over: it is that of a transposed convolution,
            whose scales are for its input channels, and which no runtime here computes in integers.
    """
    if bias is None or bias.shape != weight_scales.shape:
        return 0.0
    return float((bias.abs() / weight_scales).max()) / _LARGEST_BIAS

"""Scales, zero points, and rounding with its gradients."""

from __future__ import annotations

import pytest
import torch

from kedro_aat.compression.quantization.arithmetic import (
    activation_scales,
    integer_weight,
    round_activation,
    round_weight,
    weight_scales,
)


def test_rounded_weight_equals_its_integers_times_their_scales() -> None:
    weight = torch.randn(5, 3, 3, 3)
    scales = weight_scales(weight, 127)
    integers = integer_weight(weight, scales)
    assert integers.dtype == torch.int8
    assert (integers.flatten(1).abs().amax(1) == 127).all()
    assert torch.equal(round_weight(weight, 127), integers * scales.view(-1, 1, 1, 1))
    assert ((round_weight(weight, 127) - weight).abs() <= scales.view(-1, 1, 1, 1) / 2 * 1.0001).all()


def test_gradient_passes_through_rounding_but_not_through_clipping() -> None:
    weight = torch.randn(2, 3, requires_grad=True)
    round_weight(weight, 127).sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 1).all()
    x = torch.tensor([-3.0, -0.9, 0.1, 1.9, 2.5], requires_grad=True)
    (scale,), (zero_point,) = activation_scales(torch.tensor([[-1.0, 2.0]]))
    round_activation(x, scale, zero_point).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.3, 2.1), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_zero_is_exact(low: float, high: float) -> None:
    (scale,), (zero_point,) = activation_scales(torch.tensor([[low, high]]))
    rounded = round_activation(torch.tensor([0.0, low, high]), scale, zero_point)
    assert rounded[0] == 0
    assert torch.allclose(rounded[1:], torch.tensor([low, high]), atol=float(scale))


def test_channels_of_zeros_stay_zero() -> None:
    weight = torch.randn(3, 4)
    weight[1] = 0
    rounded = round_weight(weight, 127)
    assert rounded.isfinite().all()
    assert not rounded[1].any()

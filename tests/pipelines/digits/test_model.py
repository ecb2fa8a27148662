"""The residual network that the digits job compresses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kedro_aat.pipelines.digits.model import ResidualCNN


def test_default_model_has_the_stated_size() -> None:
    parameters = sum(parameter.numel() for parameter in ResidualCNN().parameters())
    assert 173_000 <= parameters <= 175_000


@pytest.mark.parametrize("batch", [1, 5])
def test_maps_images_to_one_logit_per_class(batch: int) -> None:
    model = ResidualCNN(widths=(4, 8), num_classes=3, in_channels=2).eval()
    assert model(torch.randn(batch, 2, 8, 8)).shape == (batch, 3)


def test_later_blocks_halve_the_resolution() -> None:
    model = ResidualCNN(widths=(4, 8, 16)).eval()
    x = model.stem(torch.randn(1, 1, 8, 8))
    shapes = [tuple((x := block(x)).shape) for block in model.blocks]
    assert shapes == [(1, 4, 8, 8), (1, 8, 4, 4), (1, 16, 2, 2)]


def test_a_convolution_before_batch_norm_has_no_bias() -> None:
    assert all(module.bias is None for module in ResidualCNN().modules() if isinstance(module, nn.Conv2d))


def test_every_parameter_learns() -> None:
    model = ResidualCNN(widths=(4, 8))
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []

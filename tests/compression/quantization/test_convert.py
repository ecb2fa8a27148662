"""Stripped models: which integers they hold, and that they compute what training computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.filters.costs import num_parameters
from kedro_aat.compression.quantization.arithmetic import (
    integer_weight,
    weight_scales,
)
from kedro_aat.compression.settings import MagnitudeSparsity, Quantization
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.testing.training import BATCH, sgd, train
from tests.compression.quantization.quantized import Branching, Separable, Sequence, quantized, run, settled
from tests.nets import SmallNet

INPUTS = BATCH["inputs"]


def test_stripped_model_holds_integers() -> None:
    model = settled(ResidualCNN((4, 8)), INPUTS)
    expected = run(model, INPUTS)
    small = quantized(model, INPUTS).strip()
    assert type(small) is ResidualCNN
    assert isinstance(small.get_submodule("stem.0"), nn.Conv2d)
    assert isinstance(small.get_submodule("stem.1"), nn.Identity)
    assert isinstance(small.get_submodule("classifier"), nn.Linear)
    assert dict(small.named_buffers())["stem.0.weight"].dtype == torch.int8
    assert dict(small.named_buffers())["stem.0.bias"].dtype == torch.int32
    assert num_parameters(small) < num_parameters(model)
    assert (run(small, INPUTS) - expected).abs().max() < 0.1 * expected.abs().max()


def test_folding_keeps_the_integers_of_training() -> None:
    model = settled(SmallNet(), INPUTS)
    weight = model.get_submodule("stem.0").get_parameter("weight").detach().clone()
    factor = model.get_submodule("stem.1").get_parameter("weight").detach()
    assert (factor < 0).any()
    small = quantized(model, INPUTS, overflow_fix=False).strip()
    integers = integer_weight(weight, weight_scales(weight, 127))
    assert torch.equal(
        dict(small.named_buffers())["stem.0.weight"], integers * factor.sign().view(-1, 1, 1, 1).to(torch.int8)
    )


@pytest.mark.parametrize("gamma", [0.0, 1e-30, 1e-9])
def test_channels_that_batchnorm_switches_off_stay_finite(gamma: float) -> None:
    model = settled(SmallNet(), INPUTS)
    with torch.no_grad():
        model.get_submodule("stem.1").get_parameter("weight")[:3] = gamma
        model.get_submodule("conv").get_parameter("weight")[2:4] = 0
    controller = quantized(model, INPUTS)
    small = controller.strip()
    assert all(tensor.isfinite().all() for tensor in small.state_dict().values())
    torch.testing.assert_close(run(small, INPUTS), run(controller.model, INPUTS), rtol=1e-4, atol=0.01)
    train(controller.model, sgd(controller.model))
    assert all(tensor.isfinite().all() for tensor in controller.model.state_dict().values())


def test_model_of_zeros_stays_finite() -> None:
    model = settled(SmallNet(), INPUTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    controller = quantized(model, INPUTS)
    assert torch.equal(run(controller.strip(), INPUTS), torch.zeros(16, 4))
    assert run(controller.model, torch.zeros(2, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize(("make", "shape"), [(Separable, (3, 16, 16)), (Branching, (3, 16, 16)), (Sequence, (6, 32))])
@pytest.mark.parametrize("rate", [0.5, 0.999])
def test_architectures_train_and_strip(make: type[nn.Module], shape: tuple[int, ...], rate: float) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(8, *shape)
    model = settled(make(), inputs)
    controller = build_controller(model, Quantization())
    controller.compression_rate = rate
    optimizer = sgd(model)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    expected = run(model, inputs)
    assert (run(controller.strip(), inputs) - expected).abs().max() < 0.05 * expected.abs().max()


def test_masked_weights_stay_zero_in_int8() -> None:
    torch.manual_seed(0)
    sparse = build_controller(settled(SmallNet(), INPUTS), MagnitudeSparsity())
    sparse.compression_rate = 0.7
    small = quantized(sparse.strip(), INPUTS).strip()
    zeros = dict(small.named_buffers())["conv.weight"] == 0
    assert float(zeros.double().mean()) > 0.5

"""Ranges of activations, and training with fake quantization."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.settings import Quantization
from kedro_aat.errors import DataError
from kedro_aat.testing.training import BATCH, sgd, small_net, train
from tests.compression.quantization.quantized import quantized, run, settled
from tests.nets import Perceptron

INPUTS = BATCH["inputs"]


def test_calibration_sets_the_mean_range_of_batches() -> None:
    controller = QuantizationController(Perceptron([2, 2]))
    controller.calibrate([torch.tensor([[-1.0, 2.0]]), (torch.tensor([[-3.0, 6.0]]), torch.tensor([0]))])
    assert controller._fake.ranges[0].tolist() == [-2, 4]


def test_ranges_are_updated_in_the_observed_training_steps_only() -> None:
    settings = Quantization(range_momentum=0.5, observed_steps=2)
    controller = QuantizationController(Perceptron([2, 2]), settings)
    controller.calibrate([torch.tensor([[-1.0, 1.0]])])
    controller.model.train()
    highest = []
    for _ in range(4):
        controller.model(torch.tensor([[-1.0, 5.0]]))
        highest.append(float(controller._fake.ranges[0, 1]))
    assert highest == [3, 4, 4, 4]
    with torch.no_grad():  # as when the statistics of BatchNorms are updated: no training step
        controller.model(torch.tensor([[-1.0, 9.0]]))
    controller.model.eval()
    controller.model(torch.tensor([[-1.0, 9.0]]))
    assert float(controller._fake.ranges[0, 1]) == 4


def test_first_batch_sets_the_ranges_without_calibration() -> None:
    model = settled(small_net(), INPUTS)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    controller = QuantizationController(model)
    rng_state = torch.get_rng_state()
    run(model, INPUTS)
    assert controller._fake.ranges[0].tolist() == [float(INPUTS.min()), float(INPUTS.max())]
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert all(torch.equal(model.get_buffer(name), before) for name, before in statistics.items())


def test_training_ignores_numbers_that_are_not_finite_in_the_ranges() -> None:
    controller = quantized(small_net(), INPUTS)
    before = controller._fake.ranges.clone()
    controller.model.train()
    controller.model(INPUTS * torch.inf)
    assert torch.equal(controller._fake.ranges[0], before[0])
    assert controller._fake.ranges.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_calibration_with_numbers_that_are_not_finite_is_refused(value: float) -> None:
    controller = QuantizationController(small_net())
    inputs = INPUTS.clone()
    inputs[0, 0, 0, 0] = value
    with pytest.raises(DataError, match=r"not finite at the input of stem\.0, .*check\s+the data"):
        controller.calibrate([inputs])
    with pytest.raises(DataError, match="not finite"):
        run(controller.model, inputs)
    run(controller.model, INPUTS)


def test_calibration_without_batches_is_refused() -> None:
    with pytest.raises(DataError, match="at least one batch"):
        QuantizationController(small_net()).calibrate([])


def test_layer_that_is_called_twice_has_one_range_for_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(10 * self.layer(x).relu())
            return out

    inputs = torch.randn(32, 6)
    model = Twice()
    before = run(model, inputs)
    controller = quantized(model, inputs)
    assert (run(controller.model, inputs) - before).abs().max() < 0.1 * before.abs().max()
    torch.testing.assert_close(run(controller.strip(), inputs), run(controller.model, inputs))


def test_calibration_only_leaves_training_unchanged() -> None:
    plain, calibrated = small_net(), small_net()
    controller = QuantizationController(calibrated, Quantization(calibration_only=True))
    for model in (plain, calibrated):
        train(model, torch.optim.SGD(model.parameters(), lr=0.05))
    for name, parameter in plain.named_parameters():
        assert torch.equal(calibrated.get_parameter(name), parameter), name
    assert not torch.equal(run(calibrated, INPUTS), run(plain, INPUTS))
    torch.testing.assert_close(run(controller.strip(), INPUTS), run(calibrated, INPUTS), rtol=0, atol=0.01)


def test_inputs_are_rounded_again_after_training_that_only_calibrates() -> None:
    inputs = INPUTS.clone()
    model = quantized(small_net(), INPUTS, calibration_only=True).model
    train(model, sgd(model), batch={"inputs": inputs, "targets": BATCH["targets"]})
    assert torch.equal(run(model, inputs), run(model, inputs.clone()))


def test_tensor_that_one_model_rounded_is_rounded_by_another() -> None:
    controller = quantized(small_net(), INPUTS)
    features = run(controller.model.get_submodule("stem"), INPUTS)
    for other in (quantized(small_net(), INPUTS / 2), copy.deepcopy(controller)):
        other.calibrate([INPUTS / 2])
        conv = other.model.get_submodule("conv")
        assert torch.equal(run(conv, features), run(conv, features.clone()))
        assert not torch.equal(run(conv, features), run(controller.model.get_submodule("conv"), features))


def test_autocast_trains() -> None:
    controller = quantized(small_net(), INPUTS)
    controller.model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(controller.model(INPUTS), BATCH["targets"])
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in controller.model.parameters())


def test_compiled_model_trains_and_evaluates_as_the_eager_one() -> None:
    controller = quantized(settled(small_net(), INPUTS), INPUTS)
    compiled = torch.compile(controller.model, backend="eager")
    expected = run(controller.model, INPUTS)
    with torch.no_grad():
        assert torch.equal(compiled(INPUTS), expected)
    controller.model.train()
    for _ in range(3):
        compiled(INPUTS).sum().backward()
    assert controller.get_state()["num_observed"] == 3
    small = controller.strip().eval()
    assert torch.equal(torch.compile(small, backend="eager")(INPUTS), run(small, INPUTS))

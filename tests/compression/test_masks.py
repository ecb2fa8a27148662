"""Masks stay exact while the weights are trained, with any optimizer, precision, compiler and copy."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.testing.training import BATCH, num_zeros, sgd, small_net, train
from tests.compression.sparsity.sparse import WEIGHTS, sparse
from tests.nets import Perceptron

Reader = Callable[[MagnitudeSparsityController], dict[str, Tensor]]

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum and weight decay": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
}


def _after(look: Callable[[MagnitudeSparsityController], object]) -> Reader:
    def read(controller: MagnitudeSparsityController) -> dict[str, Tensor]:
        look(controller)
        return dict(controller.model.named_parameters())

    return read


# What a user may read directly after a step; each function returns the model's weights.
READERS: dict[str, Reader] = {
    "state_dict": lambda controller: dict(controller.model.state_dict()),
    "state_dict of a wrapper": lambda controller: dict(
        zip(controller.model.state_dict(), nn.Sequential(controller.model).state_dict().values(), strict=True)
    ),
    "strip": lambda controller: dict(controller.strip().state_dict()),
    "deep copy": lambda controller: dict(copy.deepcopy(controller).model.state_dict()),
    "report": _after(lambda controller: controller.report()),
    "statistics": _after(lambda controller: controller.statistics()),
    "forward pass": _after(lambda controller: controller.model(BATCH["inputs"])),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_are_exact_directly_after_an_optimizer_step(optimizer: str, reader: str) -> None:
    model = small_net()
    step = OPTIMIZERS[optimizer](model.parameters())
    controller = sparse(model)
    train(model, step)  # dense, so that the optimizer's state moves the weights that are masked next
    controller.compression_rate = 0.6
    masked = {name: model.get_parameter(name) == 0 for name in WEIGHTS}
    train(model, step)
    read = READERS[reader](controller)
    for name in WEIGHTS:
        assert torch.equal(read[name] == 0, masked[name]), name
    assert controller.report().achieved_rate == round(0.6 * 680) / 680


def test_weights_return_with_the_values_that_they_had_before_masking() -> None:
    model = small_net()
    controller, optimizer = sparse(model), sgd(model)
    train(model, optimizer)
    trained = {name: model.get_parameter(name).detach().clone() for name in WEIGHTS}
    controller.compression_rate = 0.6
    masked = {name: model.get_parameter(name) == 0 for name in WEIGHTS}
    train(model, optimizer)
    controller.compression_rate = 0.0  # directly after a step, in which momentum has moved the masked weights
    for name in WEIGHTS:
        weight = model.get_parameter(name)
        assert torch.equal(weight[masked[name]], trained[name][masked[name]])
        assert not torch.equal(weight[~masked[name]], trained[name][~masked[name]])


def test_masks_are_recomputed_at_each_change_of_the_rate() -> None:
    """A kept weight that became small in training is removed, and a masked one returns in its place."""
    model = small_net()
    controller = sparse(model, 0.5, importance="abs", ranking="local")
    weight = model.get_parameter("classifier.weight")
    shrunk = (weight != 0).nonzero()[0]
    with torch.no_grad():
        weight[tuple(shrunk)] = 1e-9
    controller.compression_rate = 0.5
    assert weight[tuple(shrunk)].item() == 0
    assert num_zeros([weight]) == 16


def test_two_forward_passes_before_one_backward_pass() -> None:
    model = small_net()
    controller, optimizer = sparse(model, 0.6), sgd(model)
    train(model, optimizer)  # ends with masked weights that are not zero
    twin = controller.strip()  # the same weights, without masks

    def gradients(model: nn.Module) -> list[Tensor]:
        model.eval()
        model.zero_grad()
        first, second = (model(BATCH["inputs"][half]).square().mean() for half in (slice(8), slice(8, 16)))
        (first + second).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for masked, bare in zip(gradients(model), gradients(twin), strict=True):
        assert torch.equal(masked, bare)


def test_gradients_are_those_of_the_masked_model() -> None:
    """Training with masks is the same as training the masked model."""
    model = small_net()
    sparse(model, 0.6)
    bare = small_net()
    bare.load_state_dict(
        {name: tensor.clone() for name, tensor in model.state_dict().items() if name in bare.state_dict()}
    )
    for each in (model, bare):
        nn.functional.cross_entropy(each(BATCH["inputs"]), BATCH["targets"]).backward()
    for ours, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_frozen_schedule_keeps_its_masks() -> None:
    schedule = ScheduleSettings(kind="constant", initial_rate=0.5, freeze_epoch=2)
    model = small_net()
    controller = MagnitudeSparsityController(model, MagnitudeSparsity(schedule=schedule))
    weight = model.get_parameter("conv.weight")

    def mask_follows_the_weights() -> bool:
        before = weight == 0
        with torch.no_grad():
            weight.mul_(torch.rand_like(weight))
        controller.scheduler.epoch_step()
        controller.report()
        return not torch.equal(weight == 0, before)

    assert [mask_follows_the_weights() for _ in range(4)] == [True, True, False, False]


# --- other ways to hold and run a model ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("converted", ["before", "after"])
def test_masks_are_exact_in_other_precisions(dtype: torch.dtype, converted: str) -> None:
    torch.manual_seed(0)
    model = Perceptron([20, 30, 4])
    if converted == "before":
        model.to(dtype)
    controller = sparse(model, 0.7)
    if converted == "after":
        model.to(dtype)
    optimizer = sgd(model)
    batch = {"inputs": torch.randn(16, 20, dtype=dtype), "targets": torch.randint(4, (16,))}
    train(model, optimizer, batch=batch)
    assert controller.report().achieved_rate == round(0.7 * 720) / 720
    controller.compression_rate = 0.2
    train(model, optimizer, batch=batch)
    assert controller.report().achieved_rate == round(0.2 * 720) / 720
    assert {parameter.dtype for parameter in controller.strip().parameters()} == {dtype}


def test_masks_are_exact_in_channels_last() -> None:
    plain, model = small_net(), small_net()
    controller, other = sparse(model, 0.7), sparse(plain, 0.7)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(model, sgd(model))
    train(plain, sgd(plain))
    assert controller.report().achieved_rate == other.report().achieved_rate == round(0.7 * 680) / 680
    controller.compression_rate = other.compression_rate = 0.3
    torch.testing.assert_close(dict(model.named_parameters()), dict(plain.named_parameters()))


def test_validation_in_inference_mode_does_not_affect_training() -> None:
    model = small_net()
    controller, optimizer = sparse(model, 0.6), sgd(model)
    train(model, optimizer)
    with torch.inference_mode():
        model(BATCH["inputs"])
        controller.compression_rate = 0.3
    train(model, optimizer)
    assert controller.report().achieved_rate == round(0.3 * 680) / 680


def test_averaged_model_is_masked() -> None:
    model = small_net()
    sparse(model, 0.6)
    averaged, optimizer = AveragedModel(model), sgd(model)
    for _ in range(3):
        train(model, optimizer, num_steps=1)
        averaged.update_parameters(model)
    averaged(BATCH["inputs"])
    assert num_zeros(averaged.module.get_parameter(name) for name in WEIGHTS) == round(0.6 * 680)


COMPILERS = [
    "eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
        ],
    ),
]


@pytest.mark.parametrize("backend", COMPILERS)
@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "model.compile"])
def test_compiled_model_keeps_its_masks(backend: str, in_place: bool) -> None:
    torch._dynamo.reset()
    model, plain = small_net(), small_net()
    controller, other = sparse(model), sparse(plain)
    if in_place:
        model.compile(backend=backend)
    compiled: Any = model if in_place else torch.compile(model, backend=backend)
    optimizers = sgd(model), sgd(plain)
    for rate in (0.0, 0.6, 0.9, 0.2):
        controller.compression_rate = other.compression_rate = rate
        train(compiled, optimizers[0])
        train(plain, optimizers[1])
        assert controller.report() == other.report()
        torch.testing.assert_close(dict(model.named_parameters()), dict(plain.named_parameters()))
        # A forward pass applies the masks to the result of the last optimizer step.
        compiled(BATCH["inputs"])
        assert num_zeros(model.get_parameter(name) for name in WEIGHTS) == round(rate * 680)

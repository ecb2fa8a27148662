from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import Importance, MagnitudeSparsity
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import ModelError
from tests.compression.training import BATCH, assert_same_bits, num_zeros, sgd, small_net, train
from tests.nets import Perceptron, SmallNet

IMPORTANCES: tuple[Importance, ...] = get_args(Importance)
Reader = Callable[[MagnitudeSparsityController], dict[str, Tensor]]
WEIGHTS = ["stem.0.weight", "conv.weight", "classifier.weight"]  # of SmallNet
RATES = [0.1, 0.5, 0.9, 0.98, 0.998]


def sparse(model: nn.Module, rate: float = 0.0, **options: Any) -> MagnitudeSparsityController:
    controller = MagnitudeSparsityController(model, MagnitudeSparsity(**options))
    controller.disable_scheduler()
    controller.compression_rate = rate
    return controller


def layered(seed: int = 0) -> Perceptron:
    """Layers of very different sizes and scales: 34 272 weights."""
    torch.manual_seed(seed)
    model = Perceptron([20, 200, 140, 16, 2])
    with torch.no_grad():
        for scale, parameter in zip((1.0, 10.0, 0.1, 3.0), _weights(model), strict=True):
            parameter.mul_(scale)
    return model


def _weights(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]


def kept(model: nn.Module) -> list[Tensor]:
    return [parameter != 0 for parameter in _weights(model)]


def by_threshold(scores: list[Tensor], rate: float) -> list[Tensor]:
    """Sorts all scores, and keeps the higher ones."""
    flat = torch.cat([score.flatten() for score in scores])
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[flat.argsort(stable=True)[: round(rate * len(flat))]] = False
    parts = keep.split([score.numel() for score in scores])
    return [part.view_as(score) for part, score in zip(parts, scores, strict=True)]


def naive_lamp(weight: Tensor) -> Tensor:
    """Section 3 of the paper, word for word: sort, then divide by the sum over all that are not smaller."""
    squares = weight.detach().double().square().flatten()
    order = squares.argsort()
    ascending = squares[order]
    scores = torch.empty_like(squares)
    scores[order] = ascending / ascending.flip(0).cumsum(0).flip(0)
    return scores.view_as(weight)


# --- which weights are removed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("importance", ["abs", "squared_abs"])
def test_global_masks_equal_those_of_torch_prune(importance: Importance, rate: float) -> None:
    ours, theirs = layered(), layered()
    sparse(ours, rate, importance=importance, ranking="global")
    prune.global_unstructured(
        [(layer, "weight") for layer in theirs.layers], prune.L1Unstructured, amount=round(rate * 34_272)
    )
    for mine, layer in zip(kept(ours), theirs.layers, strict=True):
        assert torch.equal(mine, layer.get_buffer("weight_mask").bool())


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_masks_of_each_layer_equal_those_of_torch_prune(importance: Importance, rate: float) -> None:
    """Within a layer every importance orders weights by magnitude."""
    ours, theirs = layered(), layered()
    sparse(ours, rate, importance=importance, ranking="local")
    for mine, layer in zip(kept(ours), theirs.layers, strict=True):
        prune.l1_unstructured(layer, "weight", amount=round(rate * mine.numel()))
        assert torch.equal(mine, layer.get_buffer("weight_mask").bool())


@pytest.mark.parametrize("rate", RATES)
def test_normed_abs_equals_a_sort_of_all_weights(rate: float) -> None:
    model = layered()
    expected = by_threshold([weight.detach().abs() / weight.detach().norm() for weight in _weights(model)], rate)
    sparse(model, rate, importance="normed_abs")
    for mine, naive in zip(kept(model), expected, strict=True):
        assert torch.equal(mine, naive)


@pytest.mark.parametrize("rate", RATES)
def test_lamp_agrees_with_a_sort_of_all_weights(rate: float) -> None:
    model = layered()
    expected = by_threshold([naive_lamp(weight) for weight in _weights(model)], rate)
    sparse(model, rate, importance="lamp")
    agree = sum(int((mine == naive).sum()) for mine, naive in zip(kept(model), expected, strict=True))
    assert agree >= 0.999 * 34_272


@pytest.mark.parametrize("model", [layered(), SmallNet(width=24)], ids=["layered", "SmallNet"])
def test_lamp_keeps_every_layer_alive(model: nn.Module) -> None:
    sparse(model, 0.998, importance="lamp")
    assert all(mask.any() for mask in kept(model))


def test_lamp_keeps_a_layer_of_equal_weights_alive() -> None:
    model = layered()
    with torch.no_grad():
        weights = _weights(model)
        weights[2].copy_(weights[2].sign())
    sparse(model, 0.998, importance="lamp")
    assert all(mask.any() for mask in kept(model))


def test_abs_empties_a_layer_of_small_weights_where_local_ranking_does_not() -> None:
    """The layer scaled by 0.1 shows that one threshold is taken over the whole model, or one a layer."""
    model, local = layered(), layered()
    sparse(model, 0.9, importance="abs", ranking="global")
    assert not kept(model)[2].any()
    sparse(local, 0.9, importance="abs", ranking="local")
    assert [int(mask.sum()) for mask in kept(local)] == [400, 2800, 224, 3]  # round(0.9 * 32) = 29 removed


# --- how many --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    rate=st.floats(0, 1, exclude_max=True) | st.sampled_from([0.5, 0.998]),
    importance=st.sampled_from(IMPORTANCES),
    kind=st.sampled_from(["random", "all equal", "ternary", "zero layer"]),
)
def test_exactly_the_requested_share_is_zero(rate: float, importance: Importance, kind: str) -> None:
    torch.manual_seed(0)
    model = Perceptron([7, 11, 5])
    with torch.no_grad():
        for weight in _weights(model):
            if kind == "all equal":
                weight.fill_(0.25)
            elif kind == "ternary":
                weight.copy_(weight.sign() * (weight.abs() > 0.1))
    dense_zeros = num_zeros(_weights(model))
    if kind == "zero layer":
        nn.init.zeros_(_weights(model)[1])
        dense_zeros = 55
    controller = sparse(model, rate, importance=importance, ranking="global")
    assert num_zeros(_weights(model)) == max(round(rate * 132), dense_zeros)
    assert controller.report().achieved_rate == num_zeros(_weights(model)) / 132


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_each_layer_loses_the_requested_share_of_ties(importance: Importance) -> None:
    model = Perceptron([7, 11, 5])
    for weight in _weights(model):
        nn.init.constant_(weight, 0.25)
    sparse(model, 0.3, importance=importance, ranking="local")
    assert [num_zeros([weight]) for weight in _weights(model)] == [round(0.3 * 77), round(0.3 * 55)]


def test_biases_and_normalisation_are_left_alone() -> None:
    model = small_net()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    controller = sparse(model, 0.998)
    assert controller.weight_names == WEIGHTS
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in WEIGHTS)


def test_statistics_of_every_layer() -> None:
    model = small_net()
    controller = sparse(model, 0.7)
    frame = controller.statistics().as_frame()
    assert list(frame["layer"]) == WEIGHTS
    assert list(frame["shape"]) == ["8x1x3x3", "8x8x3x3", "4x8"]
    assert list(frame["weights"]) == [72, 576, 32]
    weights = [model.get_parameter(name) for name in WEIGHTS]
    assert list(frame["zeros"]) == [num_zeros([weight]) for weight in weights]
    assert list(frame["rate"]) == pytest.approx(list(frame["zeros"] / frame["weights"]))
    assert controller.statistics().rate == controller.compression_rate == 476 / 680


# --- masks hold while the weights are trained ------------------------------------------------------------------

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


# What a user may look at straight after a step; each gives the model's weights.
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
def test_masks_are_exact_straight_after_an_optimizer_step(optimizer: str, reader: str) -> None:
    model = small_net()
    step = OPTIMIZERS[optimizer](model.parameters())
    controller = sparse(model)
    train(model, step)  # dense, so that the optimizer's state pushes the weights that are masked next
    controller.compression_rate = 0.6
    masked = {name: model.get_parameter(name) == 0 for name in WEIGHTS}
    train(model, step)
    read = READERS[reader](controller)
    for name in WEIGHTS:
        assert torch.equal(read[name] == 0, masked[name]), name
    assert controller.report().achieved_rate == round(0.6 * 680) / 680


def test_weights_come_back_as_they_were_when_they_were_masked() -> None:
    model = small_net()
    controller, optimizer = sparse(model), sgd(model)
    train(model, optimizer)
    trained = {name: model.get_parameter(name).detach().clone() for name in WEIGHTS}
    controller.compression_rate = 0.6
    masked = {name: model.get_parameter(name) == 0 for name in WEIGHTS}
    train(model, optimizer)
    controller.compression_rate = 0.0  # straight after a step, when momentum has moved the masked weights
    for name in WEIGHTS:
        weight = model.get_parameter(name)
        assert torch.equal(weight[masked[name]], trained[name][masked[name]])
        assert not torch.equal(weight[~masked[name]], trained[name][~masked[name]])


def test_masked_weights_are_chosen_anew_at_each_change_of_rate() -> None:
    """A kept weight that training made small is removed, and a masked one comes back in its place."""
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
    train(model, optimizer)  # leaves the masked weights different from zero
    twin = controller.strip()  # the same weights, with nothing that touches them

    def gradients(of: nn.Module) -> list[Tensor]:
        of.eval()
        of.zero_grad()
        first, second = (of(BATCH["inputs"][half]).square().mean() for half in (slice(8), slice(8, 16)))
        (first + second).backward()
        return [parameter.grad for parameter in of.parameters() if parameter.grad is not None]

    for ours, bare in zip(gradients(model), gradients(twin), strict=True):
        assert torch.equal(ours, bare)


def test_gradients_are_those_of_the_masked_model() -> None:
    """Training with masks is training of the masked model: same loss, same gradients for what is kept."""
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


def test_validation_in_inference_mode_does_no_harm() -> None:
    model = small_net()
    controller, optimizer = sparse(model, 0.6), sgd(model)
    train(model, optimizer)
    with torch.inference_mode():
        model(BATCH["inputs"])
        controller.compression_rate = 0.3
    train(model, optimizer)
    assert controller.report().achieved_rate == round(0.3 * 680) / 680


def test_average_of_the_weights_over_the_steps_is_masked_too() -> None:
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
        # A forward pass applies the masks to what the last optimizer step left.
        compiled(BATCH["inputs"])
        assert num_zeros(model.get_parameter(name) for name in WEIGHTS) == round(rate * 680)


# --- what strip and export give --------------------------------------------------------------------------------


def test_stripped_weights_are_the_masked_ones() -> None:
    controller = sparse(small_net(), 0.6)
    stripped = controller.strip()
    for name in WEIGHTS:
        assert torch.equal(stripped.get_parameter(name), controller.model.get_parameter(name))
    assert num_zeros(stripped.get_parameter(name) for name in WEIGHTS) == round(0.6 * 680)


def test_strip_in_place() -> None:
    model = small_net()
    controller = sparse(model, 0.6)
    expected = {name: tensor.clone() for name, tensor in controller.strip().state_dict().items()}
    assert controller.strip(do_copy=False) is model
    assert_same_bits(dict(model.state_dict()), expected)


def test_model_can_be_compressed_again_once_stripped_and_not_before() -> None:
    controller = sparse(small_net(), 0.6)
    with pytest.raises(ModelError, match="strip"):
        MagnitudeSparsityController(controller.model)
    stripped = controller.strip()
    again = sparse(stripped, 0.8)
    assert again.compression_rate == 544 / 680


def test_export_needs_an_example_input(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match="example_input"):
        sparse(small_net(), 0.5).export_model(tmp_path / "model.onnx")


def test_rate_too_high_for_any_weight_to_stay_is_still_exact(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        controller = sparse(Perceptron([2, 2]), 0.998)
    assert controller.report().achieved_rate == 1.0

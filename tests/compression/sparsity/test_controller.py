"""Magnitude sparsity beyond the contract: which weights become zero, how many, and what strip returns."""

from __future__ import annotations

import logging
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from kedro_aat.compression.settings import Importance
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import ModelError
from kedro_aat.testing.training import assert_same_bits, num_zeros, small_net
from tests.compression.sparsity.sparse import WEIGHTS, sparse
from tests.nets import Perceptron, SmallNet

IMPORTANCES: tuple[Importance, ...] = get_args(Importance)
RATES = [0.1, 0.5, 0.9, 0.98, 0.998]


def layered(seed: int = 0) -> Perceptron:
    """A model with layers of very different sizes and scales: 34,272 weights."""
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
    """Keeps the highest scores, found by a sort of all."""
    flat = torch.cat([score.flatten() for score in scores])
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[flat.argsort(stable=True)[: round(rate * len(flat))]] = False
    parts = keep.split([score.numel() for score in scores])
    return [part.view_as(score) for part, score in zip(parts, scores, strict=True)]


def naive_lamp(weight: Tensor) -> Tensor:
    """Section 3 of the paper, literally: sort, then divide by the sum over all weights that are not smaller."""
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
def test_local_masks_equal_those_of_torch_prune(importance: Importance, rate: float) -> None:
    """Within a layer, every importance ranks by magnitude."""
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
    """The layer scaled by 0.1 shows whether there is one threshold for the whole model, or one per layer."""
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


def test_biases_and_normalization_are_not_changed() -> None:
    model = small_net()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    controller = sparse(model, 0.998)
    assert controller.weight_names == WEIGHTS
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in WEIGHTS)


def test_statistics_have_a_row_for_every_layer() -> None:
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


# --- strip and export ------------------------------------------------------------------------------------------


def test_stripped_weights_are_the_masked_weights() -> None:
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


def test_model_can_be_compressed_again_only_after_strip() -> None:
    controller = sparse(small_net(), 0.6)
    with pytest.raises(ModelError, match="strip"):
        MagnitudeSparsityController(controller.model)
    stripped = controller.strip()
    again = sparse(stripped, 0.8)
    assert again.compression_rate == 544 / 680


def test_export_needs_an_example_input(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match="example_input"):
        sparse(small_net(), 0.5).export_model(tmp_path / "model.onnx")


def test_rate_that_keeps_no_weight_is_exact(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        controller = sparse(Perceptron([2, 2]), 0.998)
    assert controller.report().achieved_rate == 1.0

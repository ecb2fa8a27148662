"""N:M patterns of magnitude sparsity."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.ao.pruning.sparsifier.weight_norm_sparsifier import WeightNormSparsifier

from kedro_aat.compression.scopes import PrunableWeight
from kedro_aat.compression.settings import MagnitudeSparsity, parse_compression
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.compression.sparsity.patterns import Pattern
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.testing.training import assert_same_bits, num_zeros, sgd, small_net, train
from tests.nets import Perceptron


def patterned(model: nn.Module, rate: float = 0.0, pattern: str = "2:4") -> MagnitudeSparsityController:
    controller = MagnitudeSparsityController(model, MagnitudeSparsity(pattern=pattern))
    controller.disable_scheduler()
    controller.compression_rate = rate
    return controller


def by_loops(weight: Tensor, num_kept: int, size: int) -> Tensor:
    """Keeps the largest magnitudes of every `size` consecutive elements of a row (n, inputs), group by group."""
    keep = torch.zeros_like(weight, dtype=torch.bool)
    for row, start in itertools.product(range(len(weight)), range(0, weight.shape[1], size)):
        group = weight[row, start : start + size].abs().tolist()
        for place in sorted(range(size), key=lambda place: -group[place])[:num_kept]:
            keep[row, start + place] = True
    return keep


def rows(weight: Tensor) -> Tensor:
    """(out, in, ...) -> (out * kernel positions, in)."""
    return weight.movedim(1, -1).flatten(0, -2)


def keep_of(module: nn.Module, pattern: str) -> Tensor:
    weight = PrunableWeight("", "", module, "weight")
    return Pattern.parse(pattern).keep(weight, weight.parameter.detach())


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(2, 8),
    num_groups=st.integers(1, 5),
    num_rows=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_each_group_keeps_its_largest_weights(
    size: int, num_groups: int, num_rows: int, seed: int, data: st.DataObject
) -> None:
    num_kept = data.draw(st.integers(1, size - 1))
    torch.manual_seed(seed)
    layer = nn.Linear(size * num_groups, num_rows)
    with torch.no_grad():
        layer.weight.mul_(4).round_()  # with ties, and zeros
    keep = keep_of(layer, f"{num_kept}:{size}")
    assert torch.equal(keep, by_loops(layer.weight, num_kept, size))
    assert (keep.view(num_rows, num_groups, size).sum(-1) == num_kept).all()


def test_2_4_masks_equal_those_of_torch() -> None:
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2, norm=2)
    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    keep = keep_of(layer, "2:4")
    sparsifier.prepare(nn.Sequential(layer), [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    assert torch.equal(keep, layer.weight != 0)  # torch applies its mask at each access


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(8, 6, 3),
        nn.Conv2d(8, 6, 3),
        nn.Conv2d(16, 8, 3, groups=2),
        nn.Conv3d(4, 3, 2),
    ],
    ids=str,
)
def test_input_channels_of_convolutions_are_grouped(layer: nn.Module) -> None:
    weight = layer.get_parameter("weight")
    assert torch.equal(rows(keep_of(layer, "2:4")), by_loops(rows(weight), 2, 4))


@pytest.mark.parametrize("groups", [1, 2])
def test_input_channels_of_transposed_convolutions_come_first(groups: int) -> None:
    layer = nn.ConvTranspose2d(8, 6, 3, groups=groups)
    keep = keep_of(layer, "1:4").transpose(0, 1)
    assert torch.equal(rows(keep), by_loops(rows(layer.weight.transpose(0, 1)), 1, 4))


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        (nn.Linear(8, 3), True),
        (nn.Linear(6, 4), False),
        (nn.Conv2d(8, 8, 3, groups=8), False),
        (nn.Conv2d(8, 8, 3, groups=2), True),
        (nn.ConvTranspose2d(8, 3, 3), True),
        (nn.ConvTranspose2d(8, 8, 3, groups=4), False),
    ],
    ids=str,
)
def test_pattern_fits_if_the_inputs_per_group_are_divisible(layer: nn.Module, fits: bool) -> None:
    assert Pattern(2, 4).fits(PrunableWeight("", "", layer, "weight")) is fits


# --- the rate --------------------------------------------------------------------------------------------------


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]


def three_layers() -> Perceptron:
    """64, 128 and 32 weights; the second layer almost has the pattern, and the third loses most by it."""
    torch.manual_seed(0)
    model = Perceptron([8, 8, 16, 2])
    with torch.no_grad():
        _, second, third = weights_of(model)
        second.view(-1, 4)[:, 1:3] *= 1e-3
        third.fill_(1.0)
    return model


@pytest.mark.parametrize(
    ("requested", "layers"),
    [(0.0, []), (0.1, []), (0.16, [1]), (0.2, [1]), (0.28, [1]), (0.36, [0, 1]), (0.47, [0, 1, 2]), (0.99, [0, 1, 2])],
)
def test_least_damaged_layers_get_the_pattern_until_the_rate_is_nearest(requested: float, layers: list[int]) -> None:
    model = three_layers()
    controller = patterned(model, requested)
    sparse = [number for number, weight in enumerate(weights_of(model)) if num_zeros([weight])]
    assert sparse == layers
    sizes = [weight.numel() for weight in weights_of(model)]
    assert controller.compression_rate == sum(sizes[number] for number in layers) / 2 / sum(sizes)


def test_maximal_rate_includes_the_layers_that_stay_dense() -> None:
    controller = patterned(small_net(), 0.99)  # its first layer has one input channel
    assert controller.maximal_compression_rate == pytest.approx(0.5 * (576 + 32) / 680)
    assert controller.compression_rate == pytest.approx(controller.maximal_compression_rate)
    statistics = controller.statistics()
    assert list(statistics.notes) == ["stem.0.weight"]
    assert "stem.0.weight stays dense, since it has an input dimension not divisible by 4" in statistics.to_str()
    assert patterned(Perceptron([8, 4, 4]), pattern="1:4").maximal_compression_rate == 0.75
    assert "dense" not in MagnitudeSparsityController(small_net()).statistics().to_str()


def test_layer_of_zeros_is_not_damaged() -> None:
    model = three_layers()
    with torch.no_grad():
        weights_of(model)[0].zero_()
    controller = patterned(model)
    controller.compression_rate = 0.2
    assert (controller.model.get_parameter("layers.2.weight") != 0).all()
    assert controller.strip().get_parameter("layers.0.weight").count_nonzero() == 0


# --- training --------------------------------------------------------------------------------------------------


def test_training_keeps_the_pattern_and_changes_the_other_weights() -> None:
    model = small_net()
    controller = patterned(model, 0.4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, sgd(model))
    state = model.state_dict()
    for name in ("conv.weight", "classifier.weight"):
        zero = before[name] == 0
        assert (rows(zero).unflatten(1, (-1, 4)).sum(-1) == 2).all()
        assert torch.equal(state[name] == 0, zero)
        assert not torch.equal(state[name], before[name])
    assert (state["stem.0.weight"] != 0).all()
    assert (rows(controller.strip().get_parameter("conv.weight") == 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_rate_0_restores_the_dense_weights() -> None:
    model = three_layers()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    controller = patterned(model)
    rates = []
    for rate in (0.5, 0.3, 0.5, 0.0):
        controller.compression_rate = rate
        rates.append(controller.compression_rate)
    assert rates == [0.5, pytest.approx(64 / 224), 0.5, 0.0]
    assert_same_bits(dict(controller.strip().named_parameters()), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = three_layers().to(dtype)
    assert patterned(model, 0.5).compression_rate == 0.5
    assert all((weight.view(-1, 4) == 0).sum(1).eq(2).all() for weight in weights_of(model))


# --- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["4:4", "5:4", "0:4", "2/4", "2:4:8", "", "-1:4", "2: 4", "half"])
def test_text_that_is_not_a_pattern_is_an_error(text: str) -> None:
    with pytest.raises(ValidationError, match="N from 1 to M - 1, as in"):
        MagnitudeSparsity(pattern=text)
    with pytest.raises(ConfigurationError, match=r"compression.*pattern"):
        parse_compression({"pattern": text})


def test_model_that_the_pattern_does_not_fit_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"Perceptron has no layer that can have the pattern 2:4: .* divisible by 4"):
        patterned(Perceptron([3, 6, 2]))

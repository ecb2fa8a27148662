"""Filter pruning on a zoo of architectures: masking is the same as cutting, and the rate is exact."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.costs import num_macs, num_parameters
from kedro_aat.compression.filters.cutting import CUT_PLAN, Cut
from kedro_aat.compression.filters.probing import outputs_of, relative_difference
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.session import open_session, run_session
from kedro_aat.testing.controllers import set_reachable
from kedro_aat.testing.training import assert_same_bits
from tests.compression.architectures import ARCHITECTURES, disturb, make, mlp
from tests.compression.filters.pruned import TOLERANCE, Activated, difference, pruned, train

RATES = [0.3, 0.5, 0.8]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_masked_and_cut_outputs_are_equal_and_counts_are_exact(name: str) -> None:
    model, batch = make(name)
    controller = pruned(model, batch)
    other = torch.randint(30, batch.shape) if batch.dtype == torch.int64 else 3 * torch.randn(batch.shape)
    for rate in RATES:
        set_reachable(controller, rate)
        train(model, batch, controller)
        cut, statistics = controller.strip(), controller.statistics()
        assert difference(model, cut, batch) <= TOLERANCE
        assert difference(model, cut, other) <= TOLERANCE
        totals = re.findall(r"(parameters|macs) \d+ -> (\d+)", statistics.to_str())
        assert totals == [("parameters", str(num_parameters(cut))), ("macs", str(num_macs(cut, batch)))]
        assert statistics.rate == controller.compression_rate == 1 - num_parameters(cut) / num_parameters(make(name)[0])
        frame = statistics.as_frame()
        shapes = {name: tuple(p.shape) for name, p in cut.named_parameters()}
        assert frame["parameters"].sum() == num_parameters(cut)
        assert frame["macs"].sum() == num_macs(cut, batch)
        for layer, shape in zip(frame["layer"], frame["shape"], strict=True):
            if shape:
                key = next(key for key in shapes if key.rpartition(".")[0] == layer)
                assert "x".join(map(str, shapes[key])) == shape


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_masked_and_cut_models_train_alike(name: str) -> None:
    """One step of both in training mode from the same weights, with statistics of the batch and no dropout."""
    model, batch = make(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    controller = pruned(model, batch, 0.5)
    cut = controller.strip()
    for trained in (model, cut):
        trained.train()
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.01)
        trained(batch).square().mean().backward()
        optimizer.step()
        trained.eval()
    assert difference(model, cut, batch) <= TOLERANCE


def compare_with_onnx(name: str, rate: float) -> None:
    model, batch = make(name)
    cut = pruned(model, batch, rate).strip()
    answers = run_session(open_session(to_onnx(cut, batch, search=False).SerializeToString()), batch)
    assert relative_difference(outputs_of(model, batch), [answers]) <= TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "vision_transformer",
        pytest.param("mobile", marks=pytest.mark.slow),
        pytest.param("text_transformer", marks=pytest.mark.slow),
    ],
)
def test_cut_model_is_the_same_in_onnxruntime(name: str) -> None:
    compare_with_onnx(name, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_cut_model_is_the_same_in_onnxruntime(name: str, rate: float) -> None:
    compare_with_onnx(name, rate)


def test_masked_channels_are_zero_whatever_the_optimizer_does() -> None:
    model, batch = make("residual")
    controller = pruned(model, batch, 0.5)
    masks = {name: mask for name, mask in model.named_buffers() if name.endswith("_mask")}
    train(model, batch, controller)
    state = model.state_dict()
    norms = [name for name in masks if ".bn1." in name]
    assert {name.rpartition(".")[2] for name in norms} == {"weight_mask", "bias_mask"}
    for name, mask in masks.items():
        assert not state[name.removesuffix("_mask")][mask == 0].any()
        assert state[name.removesuffix("_mask")][mask == 1].all()


def test_statistics_of_a_channel_are_restored_with_it() -> None:
    """Under a mask a running variance falls to 0, which would multiply the restored channel by 300."""
    model, batch = make("residual")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    controller = pruned(model, batch, 0.6)
    kept = model.get_buffer("blocks.0.bn1.weight_mask").bool()
    train(model, batch, controller, num_steps=30)
    assert not kept.all()
    controller.compression_rate = 0.0
    for name in ("running_mean", "running_var"):
        restored, original = model.get_buffer(f"blocks.0.bn1.{name}"), before[f"blocks.0.bn1.{name}"]
        assert torch.equal(restored[~kept], original[~kept])
        assert not torch.equal(restored[kept], original[kept])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dense_weights_are_restored_bit_by_bit(name: str) -> None:
    model, batch = make(name)
    controller = pruned(model, batch)
    for rate in (0.8, 0.4, 0.0):
        set_reachable(controller, rate)
    stripped = controller.strip()
    assert_same_bits(dict(stripped.state_dict()), dict(make(name)[0].state_dict()))
    assert not hasattr(stripped, CUT_PLAN)
    assert controller.cut_plan() == []


def test_strip_in_place_cuts_the_model_itself() -> None:
    model, batch = make("mobile")
    controller = pruned(model, batch, 0.5)
    expected = outputs_of(model, batch)
    assert controller.strip(do_copy=False) is model
    assert relative_difference(expected, outputs_of(model, batch)) <= TOLERANCE
    assert list(model.state_dict()) == list(make("mobile")[0].state_dict())


# --- the rate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_of", ["filters", "parameters", "macs"])
@pytest.mark.parametrize("ranking", ["local", "global"])
def test_achieved_rate_is_near_and_rises_with_the_requested_one(rate_of: str, ranking: str) -> None:
    model, batch = make("residual")
    controller = pruned(model, batch, rate_of=rate_of, ranking=ranking)
    requested = np.linspace(0, controller.maximal_compression_rate - 1e-9, 40)
    achieved = []
    for rate in requested:
        controller.compression_rate = float(rate)
        achieved.append(controller.compression_rate)
    assert achieved == sorted(achieved)
    assert np.abs(np.array(achieved) - requested).max() < 0.06  # half of what a unit of the widest group costs
    set_reachable(controller, 0.999)
    assert controller.compression_rate == controller.maximal_compression_rate
    cut = controller.strip()
    before, after = (
        {
            "parameters": num_parameters(net),
            "macs": num_macs(net, batch),
            "filters": sum(len(m.weight) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)),
        }[rate_of]
        for net in (make("residual")[0], cut)
    )
    assert controller.compression_rate == 1 - after / before


def test_local_ranking_takes_the_same_share_of_every_group() -> None:
    model, batch = make("residual")
    controller = pruned(model, batch, 0.6)
    cuts = [cut for cut in controller.cut_plan() if isinstance(cut, Cut) and cut.kind == "outputs"]
    kept = {cut.layer: len(cut.kept) / cut.size for cut in cuts}
    assert max(kept.values()) - min(kept.values()) < 0.15


def test_global_ranking_removes_the_least_important_of_unequal_filters() -> None:
    model, batch = make("mlp")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
        first = model.get_submodule("0").get_parameter("weight")
        first[:12] = 10.0
    controller = pruned(model, batch, 0.25, ranking="global", rate_of="filters")
    cuts = [cut for cut in controller.cut_plan() if isinstance(cut, Cut) and cut.kind == "outputs"]
    plan = {cut.layer: cut.kept for cut in cuts}
    assert plan["0"][:12] == tuple(range(12))
    assert len(plan["0"]) < 24
    assert "3" not in plan  # all filters are equal: none is below the mean of its group


@pytest.mark.parametrize(("round_to", "minimal"), [(4, 1), (8, 1), (1, 3), (4, 5)])
def test_number_of_kept_channels_is_a_large_enough_multiple(round_to: int, minimal: int) -> None:
    model, batch = make("unet")
    controller = pruned(model, batch, round_to=round_to, minimal_channels=minimal)
    for rate in (0.2, 0.6, 0.99):
        set_reachable(controller, rate)
        for kept, group in zip(controller._kept_units(), controller.groups, strict=True):
            num_kept = np.count_nonzero(kept)
            assert num_kept == group.num_units or (num_kept % round_to == 0 and num_kept >= minimal)
    if round_to == 8:
        assert "8 channels" in controller.not_cut["down1.0"]


def test_rate_is_set_with_few_evaluations_of_the_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make("residual")
    controller = pruned(model, batch)
    num_units = sum(group.num_units for group in controller.groups)
    rate_without, removals = controller._rate_without, []

    def counted(removed: Any) -> float:
        removals.append(removed)
        return rate_without(removed)

    monkeypatch.setattr(controller, "_rate_without", counted)
    for rate in np.linspace(0.1, 0.9, 20):
        controller.compression_rate = float(rate)
    assert len(removals) <= 20 * (math.ceil(math.log2(num_units + 1)) + 2)


# --- scopes, precisions and modes ---------------------------------------------------------------------------------


def test_scopes_keep_outputs_and_let_inputs_follow() -> None:
    model, batch = make("mlp")
    controller = pruned(model, batch, 0.5, ignored_scopes=("3",))
    cut = controller.strip()
    assert "'3'" in controller.not_cut["3"]
    assert isinstance(hidden := cut.get_submodule("3"), nn.Linear)
    assert hidden.out_features == 16
    assert hidden.in_features < 24
    model, batch = make("mlp")
    assert pruned(model, batch, target_scopes=("3",)).not_cut.keys() == {"0", "5"}


def test_scale_of_zero_makes_no_difference() -> None:
    """The last BatchNorm of a residual block is often initialized like this."""
    model, batch = make("residual")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bn2" in name:
                parameter.zero_()
    for importance in ("l2", "batch_norm_scale"):
        controller = pruned(copy.deepcopy(model), batch, 0.5, importance=importance)
        assert difference(controller.model, controller.strip(), batch) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cut_as_well(dtype: torch.dtype) -> None:
    model, batch = make("residual")
    model = model.to(dtype)
    controller = pruned(model, batch, 0.5)
    cut = controller.strip()
    assert {parameter.dtype for parameter in cut.parameters()} == {dtype}
    assert difference(copy.deepcopy(model).float(), copy.deepcopy(cut).float(), batch) <= TOLERANCE


def test_frozen_layers_keep_their_outputs_and_are_named() -> None:
    """Their columns go with the channels that they read, as does what a frozen normalization has for a channel."""
    model, batch = make("mlp")
    model.get_submodule("1").requires_grad_(False)
    model.get_submodule("3").requires_grad_(False)
    controller = pruned(model, batch, 0.5)
    assert controller.not_cut["3"] == "'3' is frozen (requires_grad=False)"
    cut = controller.strip()
    width = len(cut.get_parameter("0.weight"))
    assert width < 24
    assert cut.get_parameter("1.weight").shape == (width,)
    assert cut.get_parameter("3.weight").shape == (16, width)
    frozen = {name for name, parameter in cut.named_parameters() if not parameter.requires_grad}
    assert frozen == {"1.weight", "1.bias", "3.weight", "3.bias"}
    assert difference(model, cut, batch) <= TOLERANCE


def test_a_model_that_is_frozen_as_a_whole_has_nothing_to_cut() -> None:
    model, batch = make("mlp")
    with pytest.raises(ModelError, match=r"no channels that can be cut:\n  - 0: '0' is frozen"):
        pruned(model.requires_grad_(False), batch)


def test_random_state_is_not_changed() -> None:
    model, batch = make("text_transformer")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pruned(model, batch, 0.5).strip()
    assert torch.equal(torch.rand(3), expected)


def test_modules_keep_their_modes() -> None:
    model, batch = make("mobile")
    model.train()
    model.get_submodule("stem").eval()
    modes = [module.training for module in model.modules()]
    controller = pruned(model, batch, 0.5)
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in controller.strip().modules()] == modes


# --- errors -------------------------------------------------------------------------------------------------------


def test_missing_example_input_is_refused() -> None:
    with pytest.raises(ModelError, match="pass example_input"):
        FilterPruningController(mlp(), FilterPruning())


def test_model_with_masks_is_refused() -> None:
    model, batch = make("mlp")
    pruned(model, batch)
    with pytest.raises(ModelError, match="carries masks already"):
        pruned(model, batch)


def test_unknown_scope_is_refused() -> None:
    model, batch = make("mlp")
    with pytest.raises(ConfigurationError, match="matches no layer"):
        pruned(model, batch, ignored_scopes=("head",))


def test_cut_that_changes_outputs_is_refused() -> None:
    """The last check, after the groups were tested: here the model changes between the two."""
    model = disturb(Activated(nn.ReLU()))
    controller = pruned(model, torch.randn(2, 6), 0.5)
    assert isinstance(model, Activated)
    model.activation = nn.Sigmoid()
    with pytest.raises(ModelError, match=r"outputs of the cut Activated differ .*ignored_scopes"):
        controller.strip()

"""Filter pruning on a zoo of architectures: masked is cut, counts are exact, and the least important filters go."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.costs import num_macs, num_parameters
from kedro_aat.compression.filters.cutting import CUT_PLAN, apply_cut_plan
from kedro_aat.compression.filters.probing import outputs_of, relative_difference
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.session import open_session, run_session
from kedro_aat.testing.training import assert_same_bits
from tests.compression.architectures import ARCHITECTURES, make, mlp
from tests.compression.filters.pruned import TOLERANCE, difference, pruned, train

RATES = [0.3, 0.5, 0.8]


# --- masked is cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_masked_and_cut_outputs_are_equal_and_counts_are_exact(name: str) -> None:
    model, batch = make(name)
    controller = pruned(model, batch)
    other = torch.randint(30, batch.shape) if batch.dtype == torch.int64 else 3 * torch.randn(batch.shape)
    for rate in RATES:
        controller.compression_rate = rate
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
    answers = run_session(open_session(to_onnx(cut, batch).SerializeToString()), batch)
    assert relative_difference(outputs_of(model, batch), [answers]) <= TOLERANCE


@pytest.mark.parametrize("name", ["mobile", "vision_transformer", "text_transformer"])
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


def test_statistics_of_a_channel_come_back_with_it() -> None:
    """Under a mask a running variance falls to 0, which would make the channel 300 times as loud."""
    model, batch = make("residual")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    controller = pruned(model, batch, 0.6)
    kept = model.get_buffer("blocks.0.bn1.weight_mask").bool()
    train(model, batch, controller, num_steps=30)
    assert not kept.all()
    controller.compression_rate = 0.0
    for name in ("running_mean", "running_var"):
        now, then = model.get_buffer(f"blocks.0.bn1.{name}"), before[f"blocks.0.bn1.{name}"]
        assert torch.equal(now[~kept], then[~kept])
        assert not torch.equal(now[kept], then[kept])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dense_weights_come_back_bit_by_bit(name: str) -> None:
    model, batch = make(name)
    controller = pruned(model, batch)
    for rate in (0.8, 0.4, 0.0):
        controller.compression_rate = rate
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


# --- the plan --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_plan_brings_a_new_model_to_the_cut_shapes(name: str) -> None:
    model, batch = make(name)
    controller = pruned(model, batch, 0.5)
    cut = controller.strip()
    plan = json.loads(json.dumps(getattr(cut, CUT_PLAN)))
    assert plan == [step.model_dump(mode="json") for step in controller.cut_plan()]
    fresh = apply_cut_plan(make(name, seed=1)[0], plan)
    fresh.load_state_dict(cut.state_dict())
    assert relative_difference(outputs_of(cut, batch), outputs_of(fresh, batch)) == 0


@pytest.mark.parametrize("name", ["residual", "text_transformer", "vision_transformer", "temporal"])
def test_cut_model_can_be_cut_again(name: str) -> None:
    model, batch = make(name)
    once = pruned(model, batch, 0.3).strip()
    twice = pruned(once, batch, 0.4).strip()
    assert num_parameters(twice) < num_parameters(model) * 0.6
    fresh = apply_cut_plan(make(name, seed=1)[0], getattr(twice, CUT_PLAN))
    fresh.load_state_dict(twice.state_dict())
    assert relative_difference(outputs_of(twice, batch), outputs_of(fresh, batch)) == 0


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"layer": "9", "kind": "outputs", "size": 24, "kept": [0]}, "no such layer"),
        ({"layer": "0", "kind": "outputs", "size": 23, "kept": [0]}, "23 outputs of '0'.*with the arguments"),
        ({"layer": "0", "kind": "heads", "size": 24, "kept": [0]}, "24 heads of '0'"),
        ({"layer": "0", "kind": "outputs", "size": 24, "kept": [1, 1]}, "rising"),
        ({"layer": "0", "kind": "outputs", "size": 24, "kept": [24]}, r"\[0, 24\)"),
        ({"layer": "0", "kind": "outputs", "size": 24, "kept": []}, "at least one"),
    ],
)
def test_plan_for_another_model_is_refused(step: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        apply_cut_plan(mlp(), [step])


def test_damaged_plan_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="kind"):
        apply_cut_plan(mlp(), [{"layer": "0", "kind": "rows", "size": 24, "kept": [0]}])


# --- the rate --------------------------------------------------------------------------------------------------


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
    controller.compression_rate = 0.999
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
    kept = {step.layer: len(step.kept) / step.size for step in controller.cut_plan() if step.kind == "outputs"}
    assert max(kept.values()) - min(kept.values()) < 0.15


def test_global_ranking_takes_where_filters_are_alike() -> None:
    model, batch = make("mlp")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
        first = model.get_submodule("0").get_parameter("weight")
        first[:12] = 10.0
    controller = pruned(model, batch, 0.25, ranking="global", rate_of="filters")
    plan = {step.layer: step.kept for step in controller.cut_plan() if step.kind == "outputs"}
    assert plan["0"][:12] == tuple(range(12))
    assert len(plan["0"]) < 24
    assert "3" not in plan  # all alike: none is below the mean of its group


@pytest.mark.parametrize(("round_to", "minimal"), [(4, 1), (8, 1), (1, 3), (4, 5)])
def test_channels_left_are_multiples_and_enough(round_to: int, minimal: int) -> None:
    model, batch = make("unet")
    controller = pruned(model, batch, round_to=round_to, minimal_channels=minimal)
    for rate in (0.2, 0.6, 0.99):
        controller.compression_rate = rate
        for kept, group in zip(controller._kept_units(), controller.groups, strict=True):
            left = np.count_nonzero(kept)
            assert left == group.num_units or (left % round_to == 0 and left >= minimal)
    if round_to == 8:
        assert "8 channels" in controller.not_cut["down1.0"]


def test_rate_is_set_in_milliseconds() -> None:
    model, batch = make("residual")
    controller = pruned(model, batch)
    start = time.perf_counter()
    for rate in np.linspace(0.1, 0.9, 20):
        controller.compression_rate = float(rate)
    assert (time.perf_counter() - start) / 20 < 0.1  # 3 ms; room for a busy machine


# --- importance ------------------------------------------------------------------------------------------------


def scores(controller: FilterPruningController, group: int = 0) -> np.ndarray[Any, Any]:
    return controller._scores()[group]


def test_norms_are_of_all_filters_of_a_unit() -> None:
    model, batch = make("residual")
    controller = pruned(model, batch, importance="l1")
    filters = torch.cat(
        [model.get_parameter(f"{layer}.weight").flatten(1) for layer in ("stem.0", "blocks.0.conv2")], dim=1
    ).detach()
    assert np.allclose(scores(controller), filters.abs().sum(1))
    model, batch = make("residual")
    assert np.allclose(scores(pruned(model, batch, importance="l2")), filters.norm(dim=1))


def test_geometric_median_gives_up_what_others_can_stand_in_for() -> None:
    model, batch = make("mlp")
    weight = model.get_submodule("0").get_parameter("weight").detach()
    with torch.no_grad():
        weight[:20] = weight[:1] + 0.001 * torch.randn(20, 7)  # twenty that are alike
    naive = [sum(float((one - other).norm()) for other in weight) for one in weight]
    controller = pruned(model, batch, importance="geometric_median")
    assert np.allclose(scores(controller), naive, rtol=1e-4)
    assert set(np.argsort(scores(controller))[:4]) <= set(range(20))


def test_batch_norm_scale_ranks_by_the_normalisation_behind() -> None:
    model, batch = make("residual")
    expected = (model.get_parameter("stem.1.weight").abs() + model.get_parameter("blocks.0.bn2.weight").abs()) / 2
    controller = pruned(model, batch, importance="batch_norm_scale")
    assert np.allclose(scores(controller), expected.detach())


def test_taylor_ranks_by_l2_until_it_has_seen_gradients() -> None:
    model, batch = make("mlp")
    controller = pruned(model, batch, importance="taylor")
    twin, _ = make("mlp")
    assert np.array_equal(scores(controller), scores(pruned(twin, batch, importance="l2")))
    controller.scheduler.step()
    model(batch).square().mean().backward()
    weight = model.get_submodule("0").get_parameter("weight")
    assert weight.grad is not None
    controller.scheduler.step()
    expected = (weight * weight.grad).sum(1).square() * 0.1
    assert np.allclose(scores(controller), expected.detach())


def test_taylor_scores_are_gathered_every_fourth_step_and_never_across_epochs() -> None:
    model, batch = make("mlp")
    controller = pruned(model, batch, importance="taylor")
    taylor = model.get_submodule("0").get_buffer("weight_taylor")
    gathered = []
    for num_steps in (6, 3):
        controller.scheduler.epoch_step()
        for step in range(num_steps):
            before = taylor.clone()
            controller.scheduler.step()  # sees the gradients of the step before
            gathered.append((step, not torch.equal(taylor, before)))
            model.zero_grad()
            model(batch).square().mean().backward()
    assert [step for step, is_new in gathered if is_new] == [1, 5, 1]


@pytest.mark.parametrize("way", ["long epochs", "epochs of one step", "gradients cleared too early", "no steps"])
def test_taylor_without_gradients_says_by_what_it_ranks(way: str, caplog: pytest.LogCaptureFixture) -> None:
    model, batch = make("mlp")
    controller = pruned(model, batch, importance="taylor")
    controller.steps_per_epoch = num_steps = 1 if way == "epochs of one step" else 6
    for _ in range(2):
        controller.scheduler.epoch_step()
        for _ in range(num_steps):
            if way == "gradients cleared too early":
                model.zero_grad()
            if way != "no steps":
                controller.scheduler.step()
            model.zero_grad()
            model(batch).square().mean().backward()
    assert ("ranked by l2" in caplog.text) is (way in ("epochs of one step", "gradients cleared too early"))
    caplog.clear()
    controller.compression_rate = 0.5
    controller.strip()
    assert ("ranked by l2" in caplog.text) is (way != "long epochs")


def test_taylor_scores_travel_with_the_model_and_leave_with_the_masks() -> None:
    model, batch = make("mlp")
    controller = pruned(model, batch, importance="taylor")
    train(model, batch, controller)
    fresh = pruned(make("mlp", seed=1)[0], batch, importance="taylor")
    fresh.model.load_state_dict(model.state_dict())
    assert np.array_equal(scores(fresh), scores(controller))
    assert list(controller.strip().state_dict()) == list(make("mlp")[0].state_dict())


def test_overflown_gradients_are_not_counted() -> None:
    model, batch = make("mlp")
    controller = pruned(model, batch, importance="taylor")
    controller.scheduler.step()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    controller.scheduler.step()
    assert np.isfinite(scores(controller)).all()

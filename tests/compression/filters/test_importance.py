"""Scores of units of channels, and the Taylor scores gathered during training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kedro_aat.compression.filters import groups
from kedro_aat.compression.filters.axes import Axis
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.groups import ChannelGroup, Member
from kedro_aat.compression.filters.importance import filter_axes, unit_scores
from tests.compression.architectures import make
from tests.compression.filters.pruned import pruned, train


def scores(controller: FilterPruningController, group: int = 0) -> np.ndarray[Any, Any]:
    return controller._scores()[group]


def test_norms_cover_all_filters_of_a_unit() -> None:
    model, batch = make("residual")
    controller = pruned(model, batch, importance="l1")
    filters = torch.cat(
        [model.get_parameter(f"{layer}.weight").flatten(1) for layer in ("stem.0", "blocks.0.conv2")], dim=1
    ).detach()
    assert np.allclose(scores(controller), filters.abs().sum(1))
    model, batch = make("residual")
    assert np.allclose(scores(pruned(model, batch, importance="l2")), filters.norm(dim=1))


def test_geometric_median_removes_filters_that_others_can_replace() -> None:
    model, batch = make("mlp")
    weight = model.get_submodule("0").get_parameter("weight").detach()
    with torch.no_grad():
        weight[:20] = weight[:1] + 0.001 * torch.randn(20, 7)  # twenty similar filters
    naive = [sum(float((one - other).norm()) for other in weight) for one in weight]
    controller = pruned(model, batch, importance="geometric_median")
    assert np.allclose(scores(controller), naive, rtol=1e-4)
    assert set(np.argsort(scores(controller))[:4]) <= set(range(20))


def test_batch_norm_scale_ranks_by_the_following_normalization() -> None:
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


def test_taylor_scores_are_updated_every_fourth_step_and_never_across_epochs() -> None:
    model, batch = make("mlp")
    controller = pruned(model, batch, importance="taylor")
    taylor = model.get_submodule("0").get_buffer("weight_taylor")
    updates = []
    for num_steps in (6, 3):
        controller.scheduler.epoch_step()
        for step in range(num_steps):
            before = taylor.clone()
            controller.scheduler.step()  # reads the gradients of the previous step
            updates.append((step, not torch.equal(taylor, before)))
            model.zero_grad()
            model(batch).square().mean().backward()
    assert [step for step, is_new in updates if is_new] == [1, 5, 1]


@pytest.mark.parametrize("way", ["long epochs", "epochs of one step", "gradients cleared too early", "no steps"])
def test_taylor_without_gradients_warns_that_it_ranks_by_l2(way: str, caplog: pytest.LogCaptureFixture) -> None:
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


def test_taylor_scores_are_part_of_the_models_state_until_strip() -> None:
    model, batch = make("mlp")
    controller = pruned(model, batch, importance="taylor")
    train(model, batch, controller)
    fresh = pruned(make("mlp", seed=1)[0], batch, importance="taylor")
    fresh.model.load_state_dict(model.state_dict())
    assert np.array_equal(scores(fresh), scores(controller))
    assert list(controller.strip().state_dict()) == list(make("mlp")[0].state_dict())


def test_gradients_that_overflow_do_not_count() -> None:
    model, batch = make("mlp")
    controller = pruned(model, batch, importance="taylor")
    controller.scheduler.step()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    controller.scheduler.step()
    assert np.isfinite(scores(controller)).all()


def test_weights_that_produce_channels() -> None:
    assert filter_axes(nn.Linear(3, 4), "outputs") == [Axis("weight", 0)]
    assert filter_axes(nn.ConvTranspose1d(3, 4, 1), "outputs") == [Axis("weight", 1)]
    gates = [Axis("weight_ih_l0", 0, 3), Axis("weight_hh_l0", 0, 3)]
    assert filter_axes(nn.GRU(3, 4), "hidden_l0") == gates
    assert filter_axes(nn.LayerNorm(4), "channels") == [Axis("weight", 0), Axis("bias", 0)]
    assert filter_axes(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), "outputs") == [Axis("bias", 0)]


@pytest.mark.parametrize("kind", ["l1", "l2", "taylor", "geometric_median"])
def test_units_of_recurrent_layers_and_raw_parameters(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hidden unit has a filter in each gate; all tensors that make a unit are scored together."""
    monkeypatch.setattr(groups, "is_produced", ("hidden_l0", "state:1").__contains__)
    torch.manual_seed(0)
    model: Any = nn.LSTM(3, 4)
    model.state = nn.Parameter(torch.randn(2, 8))
    indices = np.array([[1], [0], [2], [3]])
    pairs = np.array([[0, 4], [1, 5], [2, 6], [3, 7]])
    group = ChannelGroup((Member("", "hidden_l0", indices), Member("", "state:1", pairs)), np.arange(4)[:, None])

    def weight(layer: str, name: str) -> torch.Tensor:
        tensor: torch.Tensor = model.get_parameter(name)
        return tensor.detach()

    def taylor(layer: str, name: str) -> torch.Tensor:
        tensor = weight(layer, name)
        return tensor.square().sum(0 if name == "state" else 1)

    rows = [[gate * 4 + unit for gate in range(4)] for unit in (1, 0, 2, 3)]
    filters = torch.stack(
        [
            torch.cat([model.weight_ih_l0[r].flatten(), model.weight_hh_l0[r].flatten(), model.state[:, p].flatten()])
            for r, p in zip(rows, pairs, strict=True)
        ]
    ).detach()
    expected = {
        "l1": filters.abs().sum(1),
        "l2": filters.norm(dim=1),
        "taylor": filters.square().sum(1),
        "geometric_median": torch.cdist(filters, filters).sum(1),
    }
    torch.testing.assert_close(unit_scores(model, group, kind, weight, taylor), expected[kind])

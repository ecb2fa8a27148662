"""Filter pruning on a zoo of architectures: masked is cut, counts are exact, and what cannot be cut is named."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from kedro_aat.compression.cutting import PLAN, apply_plan
from kedro_aat.compression.filters import FilterPruningController
from kedro_aat.compression.probing import outputs_of, relative_difference
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.export.measure import num_macs, num_parameters
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.session import open_session, run_session
from tests.compression.architectures import ARCHITECTURES, Attention, disturb, make, mlp
from tests.compression.training import assert_same_bits

RATES = [0.3, 0.5, 0.8]
TOLERANCE = 1e-4


def pruned(model: nn.Module, batch: Tensor, rate: float = 0.0, **options: Any) -> FilterPruningController:
    controller = FilterPruningController(model, FilterPruning(**options), example_input=batch)
    controller.disable_scheduler()
    controller.compression_rate = rate
    return controller


def train(model: nn.Module, batch: Tensor, controller: FilterPruningController, num_steps: int = 3) -> None:
    """With everything that could bring a masked weight back: momentum, weight decay, Adam's moments."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(num_steps):
        controller.scheduler.step()
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    model.eval()


def difference(left: nn.Module, right: nn.Module, batch: Tensor) -> float:
    return relative_difference(outputs_of(left, batch), outputs_of(right, batch))


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
        assert statistics.after["parameters"] == num_parameters(cut)
        assert statistics.after["macs"] == num_macs(cut, batch)
        assert statistics.rate == controller.compression_rate == 1 - num_parameters(cut) / num_parameters(make(name)[0])
        frame = statistics.as_frame()
        shapes = {name: tuple(p.shape) for name, p in cut.named_parameters()}
        assert frame["parameters"].sum() == num_parameters(cut)
        assert frame["macs"].sum() == num_macs(cut, batch)
        for layer in statistics.layers:
            if layer.shape_after:
                key = next(key for key in shapes if key.rpartition(".")[0] == layer.name)
                assert shapes[key] == layer.shape_after


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
    assert not hasattr(stripped, PLAN)
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
    plan = json.loads(json.dumps(getattr(cut, PLAN)))
    assert plan == [step.model_dump(mode="json") for step in controller.cut_plan()]
    fresh = apply_plan(make(name, seed=1)[0], plan)
    fresh.load_state_dict(cut.state_dict())
    assert relative_difference(outputs_of(cut, batch), outputs_of(fresh, batch)) == 0


@pytest.mark.parametrize("name", ["residual", "text_transformer", "vision_transformer", "temporal"])
def test_cut_model_can_be_cut_again(name: str) -> None:
    model, batch = make(name)
    once = pruned(model, batch, 0.3).strip()
    twice = pruned(once, batch, 0.4).strip()
    assert num_parameters(twice) < num_parameters(model) * 0.6
    fresh = apply_plan(make(name, seed=1)[0], getattr(twice, PLAN))
    fresh.load_state_dict(twice.state_dict())
    assert relative_difference(outputs_of(twice, batch), outputs_of(fresh, batch)) == 0


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"layer": "9", "kind": "outputs", "size": 24, "kept": [0]}, "no such layer"),
        ({"layer": "0", "kind": "outputs", "size": 23, "kept": [0]}, "23 outputs of '0'.*other arguments"),
        ({"layer": "0", "kind": "heads", "size": 24, "kept": [0]}, "24 heads of '0'"),
        ({"layer": "0", "kind": "outputs", "size": 24, "kept": [1, 1]}, "rising"),
        ({"layer": "0", "kind": "outputs", "size": 24, "kept": [24]}, r"\[0, 24\)"),
        ({"layer": "0", "kind": "outputs", "size": 24, "kept": []}, "at least one"),
    ],
)
def test_plan_for_another_model_is_refused(step: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        apply_plan(mlp(), [step])


def test_damaged_plan_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="kind"):
        apply_plan(mlp(), [{"layer": "0", "kind": "rows", "size": 24, "kept": [0]}])


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
        for kept, group in zip(controller._kept(), controller.groups, strict=True):
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


# --- what is not cut -------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.hidden = nn.Linear(8, 16)
        self.back = nn.Linear(16, 8)
        self.head = nn.Linear(8, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.back(F.relu(self.hidden(self.embedding(x).mean(1)))))
        return out


class Activated(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.third(F.relu(self.second(self.activation(self.first(x)))))
        return out


class FixedWidth(nn.Module):
    """Reshapes to a number of its own, as older attention modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = OldAttention(16, 4)
        self.mlp = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.attention(x))
        return out


class OldAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(batch, length, width)
        out: Tensor = self.proj(x)
        return out


class SeparateHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.head_dim = 3
        self.norm = nn.LayerNorm(12)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(12, 12) for _ in range(3))
        self.out_proj = nn.Linear(12, 12)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (
            layer(y).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = self.head(x.mean(1))
        return out


class WithLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 6, 3, padding=1)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.hidden, self.head = nn.Linear(5, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(F.relu(self.first(x)).transpose(1, 2))
        out: Tensor = self.head(F.relu(self.hidden(states[:, -1])))
        return out


class OtherWidths(nn.Module):
    """Attention whose keys and values have another width than its queries."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 4, kdim=8, vdim=8, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.attention(self.first(x), x, x)[0])
        return out


class OwnGroupNorm(nn.GroupNorm):
    """As projects derive their own normalisations."""


class OwnPReLU(nn.PReLU):
    """Likewise."""


def perceptron(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), *middle, nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def test_heads_of_separate_projections_are_cut() -> None:
    batch = torch.randn(2, 5, 12)
    controller = pruned(disturb(SeparateHeads()), batch, 0.5)
    cut = controller.strip()
    assert isinstance(cut, SeparateHeads)
    assert 1 <= cut.num_heads < 4
    assert cut.q_proj.out_features == cut.k_proj.out_features == cut.out_proj.in_features == 3 * cut.num_heads
    assert difference(controller.model, cut, batch) <= TOLERANCE


REASONS: list[tuple[nn.Module, Tensor, str, str]] = [
    (Tied(), torch.randint(30, (2, 4)), "embedding", "shares a weight with 'head'"),
    (Tied(), torch.randint(30, (2, 4)), "back", "shares a weight"),
    (Activated(nn.Sigmoid()), torch.randn(2, 6), "first", "zero in its place"),
    (Activated(nn.Softplus()), torch.randn(2, 6), "first", "zero in its place"),
    (Activated(nn.Softmax(1)), torch.randn(2, 6), "first", "zero in its place"),
    (Activated(nn.GroupNorm(1, 12)), torch.randn(2, 6), "first", "12 channels in 1 units"),
    (Activated(nn.LayerNorm(12)), torch.randn(2, 6), "first", "'activation' (LayerNorm)"),
    (Activated(nn.LayerNorm(12, elementwise_affine=False)), torch.randn(2, 6), "first", "(LayerNorm)"),
    (Activated(nn.BatchNorm1d(12, affine=False)), torch.randn(2, 6), "first", "without a weight of its own"),
    (FixedWidth(), torch.randn(2, 5, 16), "attention.qkv", "does not run without it"),
    (WithLSTM(), torch.randn(2, 2, 5), "first", "'lstm' (LSTM), which cannot be cut"),
    (WithLSTM(), torch.randn(2, 2, 5), "lstm", "recurrent"),
    (OtherWidths(), torch.randn(2, 5, 8), "first", "'attention' (MultiheadAttention), which cannot be cut"),
    (OtherWidths(), torch.randn(2, 5, 8), "attention", "another width than its queries"),
    (
        nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 12)), nn.ReLU(), *perceptron()[1:], nn.Linear(3, 2)),  # type: ignore[index]
        torch.randn(2, 6),
        "0",
        "parametrization",
    ),
    (nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 8), nn.Linear(8, 2)), torch.randn(2, 6), "0", "it has 1 channels"),
    (perceptron(nn.ReLU()), torch.randn(2, 6), "4", "outputs of the model"),
]


@pytest.mark.parametrize(("model", "batch", "layer", "words"), REASONS, ids=lambda part: str(part)[:24].split("(")[0])
def test_what_cannot_be_cut_is_named_and_the_rest_is_cut(
    model: nn.Module, batch: Tensor, layer: str, words: str
) -> None:
    # Several weights, since with some of them dead ReLUs hide what an activation makes of zero.
    for seed in range(5):
        other = disturb(copy.deepcopy(model), seed)
        assert words in FilterPruningController(other, example_input=batch).not_cut[layer]
    model = disturb(copy.deepcopy(model))
    controller = pruned(model, batch, 0.5)
    assert words in controller.not_cut[layer]
    assert f"not cut: {layer}: " in controller.statistics().to_str()
    cut = controller.strip()
    assert num_parameters(cut) < num_parameters(model)
    assert difference(model, cut, batch) <= TOLERANCE
    weight = getattr(model.get_submodule(layer), "weight", None)
    if isinstance(weight, Tensor):
        assert len(cut.get_submodule(layer).weight) == len(weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("middle", [OwnGroupNorm(4, 12), OwnPReLU(12)], ids=["GroupNorm", "PReLU"])
def test_classes_derived_from_torchs_are_cut_as_those_are(middle: nn.Module) -> None:
    model, batch = disturb(perceptron(middle)), torch.randn(4, 6)
    controller = pruned(model, batch, 0.5)
    cut = controller.strip()
    assert len(cut.get_parameter("0.weight")) < 12
    assert difference(model, cut, batch) <= TOLERANCE


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
    """As the last BatchNorm of a residual block often begins."""
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


def test_frozen_parameters_are_cut_and_stay_frozen() -> None:
    model, batch = make("mlp")
    model.requires_grad_(False)
    cut = pruned(model, batch, 0.5).strip()
    assert num_parameters(cut) < num_parameters(model)
    assert not any(parameter.requires_grad for parameter in cut.parameters())


# --- clear errors ----------------------------------------------------------------------------------------------


class Gives(nn.Module):
    """Returns no tensor that a gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def test_example_input_is_asked_for() -> None:
    with pytest.raises(ModelError, match="pass example_input"):
        FilterPruningController(mlp(), FilterPruning())


def test_example_input_of_the_wrong_shape_is_named_with_the_layer() -> None:
    with pytest.raises(ModelError, match=r"shape \(2, 5\).*fails in '0'"):
        pruned(mlp(), torch.randn(2, 5))


def test_model_that_no_gradient_passes_is_refused() -> None:
    with pytest.raises(ModelError, match="no gradient reaches"):
        pruned(Gives(), torch.randn(2, 6))


def test_model_without_anything_to_cut_is_refused_with_the_reasons() -> None:
    with pytest.raises(ModelError, match=r"no channels that can be cut:\n  - 0: its outputs are outputs"):
        pruned(nn.Sequential(nn.Linear(6, 3)), torch.randn(2, 6))


def test_model_with_masks_is_refused() -> None:
    model, batch = make("mlp")
    pruned(model, batch)
    with pytest.raises(ModelError, match="carries masks already"):
        pruned(model, batch)


def test_unknown_scope_is_refused() -> None:
    model, batch = make("mlp")
    with pytest.raises(ConfigurationError, match="matches no layer"):
        pruned(model, batch, ignored_scopes=("head",))


def test_cut_that_changes_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate behind the trials: here the model changes its mind after it was tried."""
    model = disturb(Activated(nn.ReLU()))
    controller = pruned(model, torch.randn(2, 6), 0.5)
    assert isinstance(model, Activated)
    model.activation = nn.Sigmoid()
    with pytest.raises(ModelError, match=r"other outputs than the masked one.*ignored_scopes"):
        controller.strip()


def test_random_numbers_are_left_alone() -> None:
    model, batch = make("text_transformer")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pruned(model, batch, 0.5).strip()
    assert torch.equal(torch.rand(3), expected)


def test_models_of_every_mode_keep_it() -> None:
    model, batch = make("mobile")
    model.train()
    model.get_submodule("stem").eval()
    modes = [module.training for module in model.modules()]
    controller = pruned(model, batch, 0.5)
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in controller.strip().modules()] == modes

"""Hand-made cut plans for every kind of channels: the cut layer computes what the layer with zeros does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from kedro_aat.compression.filters.axes import axes, num_channels
from kedro_aat.compression.filters.cutting import CUT_PLAN, apply_cut_plan
from kedro_aat.errors import ModelError
from tests.compression.filters.pruned import zeroed

Entry = dict[str, Any]


def cut(layer: str, kind: str, size: int, kept: list[int]) -> Entry:
    return {"layer": layer, "kind": kind, "size": size, "kept": kept}


# --- recurrent layers --------------------------------------------------------------------------------------------

KEPT = [0, 2, 3, 6]
RECURRENT = [
    (layer, options)
    for layer in (nn.GRU, nn.LSTM, nn.RNN)
    for options in (
        {},
        {"bias": False, "batch_first": True},
        {"num_layers": 2},
        {"bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    )
]


class Sequences(nn.Module):
    """A recurrent layer between two linear ones: (B, T, 5) -> (B, T, 3)."""

    def __init__(self, layer: Callable[..., nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.before = nn.Linear(5, 6)
        self.recurrent = layer(6, 8, **options)
        self.head = nn.Linear(16 if self.recurrent.bidirectional else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.recurrent(self.before(x))[0])
        return out


def hidden_plan(model: Sequences, layer: str = "recurrent") -> list[Entry]:
    """Cuts the hidden units of all layers and directions, and what reads them."""
    recurrent = model.recurrent
    both = [*KEPT, *(8 + index for index in KEPT)] if recurrent.bidirectional else KEPT
    kinds = axes(recurrent)
    plan = [cut(layer, kind, 8, KEPT) for kind in kinds if kind.startswith("hidden")]
    plan += [cut(layer, kind, num_channels(recurrent, kind), both) for kind in kinds if kind.startswith("inputs_l")]
    return [*plan, cut("head", "inputs", model.head.in_features, both)]


@pytest.mark.parametrize(("layer", "options"), RECURRENT, ids=lambda part: getattr(part, "__name__", str(part)))
def test_hidden_units_and_inputs_of_recurrent_layers(layer: Callable[..., nn.RNNBase], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, batch = Sequences(layer, **options).eval(), torch.randn(4, 7, 5)
    narrow = [cut("before", "outputs", 6, [1, 2, 5]), cut("recurrent", "inputs", 6, [1, 2, 5])]
    plan = [*narrow, *hidden_plan(model)]
    hidden = [entry for entry in plan if entry["kind"].startswith("hidden")]
    masked = zeroed(model, narrow[0], *hidden)
    small: Any = apply_cut_plan(copy.deepcopy(model), plan)
    assert (small.recurrent.hidden_size, small.recurrent.input_size) == (4, 3)
    torch.testing.assert_close(small(batch), masked(batch), rtol=1e-5, atol=1e-6)
    # It is as good as one that was built with these sizes: it can be copied, loaded, converted and trained.
    built = layer(3, 4, **options)
    built.load_state_dict(small.recurrent.state_dict())
    other = copy.deepcopy(small).double()
    torch.testing.assert_close(other(batch.double()), masked.double()(batch.double()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(built.eval()(batch[..., :3])[0], small.recurrent(batch[..., :3])[0])
    small.train()(batch).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    torch.optim.SGD(small.parameters(), lr=0.1).step()
    torch.testing.assert_close(small.eval()(batch), copy.deepcopy(small)(batch))


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_recurrent_cells(cell: Callable[..., nn.RNNCellBase]) -> None:
    torch.manual_seed(0)
    model, batch = cell(6, 8), torch.randn(4, 6)
    plan = [cut("", "inputs", 6, [0, 3]), cut("", "hidden", 8, KEPT)]
    small: Any = apply_cut_plan(copy.deepcopy(model), plan)
    assert (small.hidden_size, small.input_size) == (4, 2)
    state, wide = None, None
    for _ in range(3):
        wide = zeroed(model, *plan)(batch, wide)
        state = small(batch[:, [0, 3]], state)
        pairs = zip(state, wide, strict=True) if isinstance(state, tuple) else [(state, wide)]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs[:, KEPT])
            assert not theirs[:, [1, 4, 5, 7]].any()


def test_layers_of_a_recurrent_module_keep_as_many_units() -> None:
    model = Sequences(nn.GRU, num_layers=2)
    with pytest.raises(ModelError, match=r"different numbers of hidden units: .*'hidden_l0': 4, 'hidden_l1': 8"):
        apply_cut_plan(model, [entry for entry in hidden_plan(model) if entry["kind"] != "hidden_l1"])
    projected = nn.LSTM(6, 8, proj_size=3)
    assert list(axes(projected)) == ["inputs"]


# --- other layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [2, 4])
def test_transposed_convolutions_in_groups_lose_whole_groups(groups: int) -> None:
    model = nn.ConvTranspose2d(4, 4, 3, groups=groups)
    batch = torch.randn(2, 4, 5, 5)
    batch[:, 2:] = 0
    plan = [cut("", "inputs", 4, [0, 1]), cut("", "outputs", 4, [0, 1])]
    small: Any = apply_cut_plan(copy.deepcopy(model), plan)
    assert small.groups == groups // 2
    torch.testing.assert_close(small(batch[:, :2]), zeroed(model, *plan)(batch)[:, :2])
    assert axes(nn.ConvTranspose2d(4, 8, 3, groups=2)) == {}


def test_groups_keep_equally_many_channels() -> None:
    norm: Any = apply_cut_plan(nn.GroupNorm(2, 8), [cut("", "channels", 8, [0, 3, 4, 5])])
    assert (norm.num_groups, norm.num_channels) == (2, 4)
    norm = apply_cut_plan(nn.GroupNorm(2, 8), [cut("", "channels", 8, [4, 5, 6])])
    assert (norm.num_groups, norm.num_channels) == (1, 3)
    with pytest.raises(ModelError, match="keeps 1 channels of one group of '' and 2 of another"):
        apply_cut_plan(nn.GroupNorm(2, 8), [cut("", "channels", 8, [0, 4, 5])])


@pytest.mark.parametrize(
    ("module", "kind", "attribute", "after"),
    [
        (nn.LayerNorm(8, elementwise_affine=False), "channels", "normalized_shape", (2,)),
        (nn.RMSNorm(8), "channels", "normalized_shape", (2,)),
        (nn.GroupNorm(2, 8, affine=False), "channels", "num_channels", 2),
        (nn.BatchNorm1d(8, affine=False, track_running_stats=False), "channels", "num_features", 2),
        (nn.InstanceNorm1d(8), "channels", "num_features", 2),
        (nn.PReLU(8), "channels", "num_parameters", 2),
        (nn.EmbeddingBag(5, 8), "outputs", "embedding_dim", 2),
        (nn.Bilinear(3, 4, 8), "outputs", "out_features", 2),
        (nn.Bilinear(8, 4, 3), "inputs", "in1_features", 2),
        (nn.Bilinear(3, 8, 4), "inputs2", "in2_features", 2),
    ],
    ids=lambda part: type(part).__name__,
)
def test_sizes_follow_the_cut(module: nn.Module, kind: str, attribute: str, after: Any) -> None:
    assert num_channels(module, kind) == 8
    assert getattr(apply_cut_plan(module, [cut("", kind, 8, [3, 6])]), attribute) == after
    assert num_channels(module, kind) == 2
    repr(module)


def test_modules_without_channels() -> None:
    for module in (nn.LayerNorm((4, 3)), nn.PReLU(), nn.ReLU()):
        assert axes(module) == {}


class Raw(nn.Module):
    """Uses tensors of its own: (B, 7, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.gamma = nn.Parameter(torch.randn(1, 7, 6)), nn.Parameter(torch.randn(6))
        self.weight = nn.Parameter(torch.randn(6, 3))
        self.register_buffer("mean", torch.randn(6))
        self.mean: Tensor
        self.widths, self.width, self.shape = [7, 6], 6, (7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = ((x - self.mean) * self.gamma + self.position).view(-1, self.shape[0] * self.width)
        out: Tensor = (x.view(-1, *self.widths) @ self.weight).mean(1)
        return out


def test_any_other_tensor_is_cut_along_any_dimension() -> None:
    torch.manual_seed(0)
    model, batch, kept = Raw(), torch.randn(4, 7, 6), [0, 2, 5]
    assert set(axes(model)) == {"position:0", "position:1", "position:2", "gamma:0", "weight:0", "weight:1", "mean:0"}
    plan: list[Entry] = [cut("", kind, 6, kept) for kind in ("position:2", "gamma:0", "weight:0", "mean:0")]
    plan += [
        {"layer": "", "attribute": "width", "before": 6, "after": 3},
        {"layer": "", "attribute": "widths", "before": [7, 6], "after": [7, 3]},
        {"layer": "", "attribute": "shape", "before": [7, 6], "after": [7, 3]},
    ]
    small: Any = apply_cut_plan(copy.deepcopy(model), plan)
    assert (small.width, small.widths, small.shape) == (3, [7, 3], (7, 3))
    torch.testing.assert_close(small(batch[..., kept]), zeroed(model, *plan[:3])(batch))
    assert isinstance(small.gamma, nn.Parameter)
    assert not isinstance(small.mean, nn.Parameter)
    stored = json.loads(json.dumps(getattr(small, CUT_PLAN)))
    assert stored == plan
    fresh: Any = apply_cut_plan(Raw(), stored)
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(batch[..., kept]), small(batch[..., kept]))
    with pytest.raises(ModelError, match="changes width of '' from 6 to 4, but it is 3"):
        apply_cut_plan(small, [{"layer": "", "attribute": "width", "before": 6, "after": 4}])


@pytest.mark.parametrize("parametrize", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_weights_that_are_computed_are_cut_where_they_come_from(parametrize: Any) -> None:
    torch.manual_seed(0)
    model, kept = nn.Sequential(parametrize(nn.Linear(5, 6))), [1, 2]
    plan = [
        cut(layer, kind, 6, kept)
        for layer, module in model.named_modules()
        for kind in axes(module)
        if num_channels(module, kind) == 6
    ]
    assert len(plan) == 3
    batch = torch.randn(3, 5)
    expected = model(batch)[:, kept]
    torch.testing.assert_close(apply_cut_plan(model, plan)(batch), expected)


# --- tensors with several names ----------------------------------------------------------------------------------


class Tied(nn.Module):
    """A language model that reads and writes with the same vectors: (B, T) -> (B, T, 9)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.embedding(ids))
        return out


def test_tensors_with_several_names_are_cut_once_and_stay_tied() -> None:
    torch.manual_seed(0)
    model, ids = Tied(), torch.randint(9, (2, 4))
    first = [cut("embedding", "outputs", 6, [0, 1, 4, 5]), cut("head", "inputs", 6, [0, 1, 4, 5])]
    second = [cut("head", "inputs", 4, [1, 2]), cut("embedding", "outputs", 4, [1, 2])]
    expected = zeroed(model, cut("embedding", "outputs", 6, [1, 4]))(ids)
    once: Any = apply_cut_plan(copy.deepcopy(model), first)
    twice: Any = apply_cut_plan(copy.deepcopy(once), second)
    at_once: Any = apply_cut_plan(copy.deepcopy(model), getattr(twice, CUT_PLAN))
    for small in (twice, at_once):
        assert small.head.weight is small.embedding.weight
        assert (small.head.in_features, small.embedding.embedding_dim) == (2, 2)
        torch.testing.assert_close(small(ids), expected)
    with pytest.raises(ModelError, match="6 inputs of 'head'"):
        apply_cut_plan(model, [first[0], cut("head", "inputs", 6, [0, 1, 2, 3])])


# --- plans of earlier versions -----------------------------------------------------------------------------------


class OldAttention(nn.Module):
    """Attention as timm writes it, whose heads had a kind of their own: (B, T, 8) -> (B, T, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.inner_dim = 4, 8
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1) * 2**-0.5).softmax(-1)
        out: Tensor = self.proj((scores @ v).transpose(1, 2).reshape(len(x), -1, self.inner_dim))
        return out


def test_plans_of_earlier_versions_apply() -> None:
    torch.manual_seed(0)
    model, batch = nn.Sequential(OldAttention(), nn.MultiheadAttention(8, 2, batch_first=True)), torch.randn(3, 5, 8)
    plan: list[Entry] = [
        {"layer": "0", "kind": "heads", "size": 4, "kept": [0, 2]},
        {"layer": "1", "kind": "heads", "size": 2, "kept": [1]},
        {"layer": "0.proj", "kind": "inputs", "size": 8, "kept": [0, 1, 4, 5]},
        {"layer": "1.out_proj", "kind": "inputs", "size": 8, "kept": [4, 5, 6, 7]},
        {"layer": "0.qkv", "kind": "outputs", "size": 24, "kept": [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21]},
        {"layer": "1", "kind": "projections", "size": 24, "kept": [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]},
    ]
    masked: Any = zeroed(model, *plan[4:])
    small: Any = apply_cut_plan(copy.deepcopy(model), plan)
    assert (small[0].num_heads, small[0].inner_dim, small[1].num_heads) == (2, 4, 1)
    torch.testing.assert_close(small[0](batch), masked[0](batch))
    expected = masked[1](batch, batch, batch, need_weights=False)[0]
    torch.testing.assert_close(small[1](batch, batch, batch, need_weights=False)[0], expected)

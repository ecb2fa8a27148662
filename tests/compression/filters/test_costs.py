"""Costs after a cut, computed without cutting, equal those of the cut model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.filters.axes import Kind
from kedro_aat.compression.filters.costs import CutCosts, count_products, num_macs, num_parameters
from kedro_aat.compression.filters.cutting import apply_cut_plan
from kedro_aat.compression.filters.groups import ChannelGroup, Member, count_channels, plan_cuts


class Recurrent(nn.Module):
    """Takes named inputs, of which one is no tensor of examples: (B, 7, 5) -> {"logits": (B, 3)}."""

    def __init__(self, layer: Callable[..., nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.before = nn.Linear(5, 6)
        self.recurrent = layer(6, 8, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: float) -> dict[str, Tensor]:
        return {"logits": self.head(self.recurrent(self.before(x))[0][:, -1] * scale)}


class Functional(nn.Module):
    """Raw weights, one with three dimensions that are cut, and one that is shared: (B, 6) -> (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.mixed = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8, 4, 10))
        self.back = nn.Linear(8, 6)
        self.out = nn.Parameter(torch.randn(10, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.into)
        x = torch.einsum("bi,ijk->bjk", x, self.mixed).sum(1) @ self.out
        out: Tensor = self.back(x.relu())
        return out


class Attentive(nn.Module):
    """(B, 5, 12) -> (B, 5, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(x + self.attention(x, x, x, need_weights=False)[0])
        return out


def group(*members: tuple[str, Kind, list[list[int]]]) -> ChannelGroup:
    nodes = np.arange(len(members[0][2]))[:, None]
    return ChannelGroup(tuple(Member(layer, kind, np.array(indices)) for layer, kind, indices in members), nodes)


def singles(number: int) -> list[list[int]]:
    return [[index] for index in range(number)]


def heads_of(rows: int) -> list[list[int]]:
    return [[part * 12 + head * 3 + row for part in range(rows // 12) for row in range(3)] for head in range(4)]


RECURRENT = [
    group(("before", "outputs", singles(6)), ("recurrent", "inputs", singles(6))),
    group(
        ("recurrent", "hidden_l0", singles(8)),
        ("recurrent", "hidden_l1", singles(8)),
        ("recurrent", "inputs_l1", singles(8)),
        ("head", "inputs", singles(8)),
    ),
]
FUNCTIONAL = [
    group(("", "into:0", singles(8)), ("", "mixed:0", singles(8))),
    group(("", "mixed:1", singles(4))),
    group(("", "mixed:2", singles(10)), ("", "out:0", singles(10))),
    group(("", "out:1", singles(8)), ("back", "inputs", singles(8))),
]
ATTENTIVE = [
    group(("attention", "projections", heads_of(36)), ("attention.out_proj", "inputs", heads_of(12))),
    group(("mlp.0", "outputs", singles(20)), ("mlp.2", "inputs", singles(20))),
]
NAMED = {"x": torch.randn(2, 7, 5), "scale": 0.5}
CASES: dict[str, tuple[nn.Module, Any, list[ChannelGroup], list[int]]] = {
    "GRU": (Recurrent(nn.GRU, num_layers=2), NAMED, RECURRENT, [2, 5]),
    "LSTM": (Recurrent(nn.LSTM, num_layers=2, bias=False), NAMED, RECURRENT, [1, 3]),
    "RNN": (Recurrent(nn.RNN, num_layers=2), NAMED, RECURRENT, [0, 7]),
    "raw weights": (Functional(), torch.randn(2, 6), FUNCTIONAL, [3, 1, 6, 5]),
    "attention": (Attentive(), torch.randn(2, 5, 12), ATTENTIVE, [3, 7]),
}


@pytest.mark.parametrize("name", CASES)
def test_costs_after_a_cut(name: str) -> None:
    model, batch, groups, numbers = CASES[name]
    sizes, removed = count_channels(model), np.array(numbers)
    costs = CutCosts(model, batch, groups, sizes)
    small = copy.deepcopy(model)
    kept = [np.arange(each.num_units) >= number for each, number in zip(groups, numbers, strict=True)]
    apply_cut_plan(small, plan_cuts(groups, kept, sizes))
    if name == "attention":
        small.get_submodule("attention").num_heads = 1  # type: ignore[assignment]
    assert costs.total("parameters") == num_parameters(model)
    assert costs.total("macs") == num_macs(model, batch) > 0
    assert costs.left("parameters", removed) == num_parameters(small)
    assert costs.left("macs", removed) == num_macs(small, batch)
    layers = costs.of_layers(removed)
    assert sum(layer.parameters for layer in layers) == num_parameters(small)
    assert sum(layer.macs for layer in layers) == num_macs(small, batch)


def test_recurrent_layers_count_as_filters() -> None:
    model, batch, groups, _ = CASES["GRU"]
    costs = CutCosts(model, batch, groups, count_channels(model))
    assert costs.total("filters") == 6 + 8 + 8 + 3
    assert costs.left("filters", np.array([2, 5])) == 4 + 3 + 3 + 3


def test_products_are_counted_by_weight() -> None:
    model, batch, _, _ = CASES["attention"]
    assert {tuple(product): number for product, number in count_products(model, batch).items()} == {
        ("attention", ("attention", "in_proj_weight")): 5 * 12 * 36,
        ("attention", None): 2 * 5 * 5 * 12,
        ("attention", ("attention.out_proj", "weight")): 5 * 12 * 12,
        ("mlp.0", ("mlp.0", "weight")): 5 * 12 * 20,
        ("mlp.2", ("mlp.2", "weight")): 5 * 12 * 20,
    }


def test_a_model_without_any_product_has_no_rate_of_them() -> None:
    model = nn.EmbeddingBag(5, 8)
    costs = CutCosts(model, torch.tensor([[1, 2]]), [], count_channels(model))
    assert [costs.rate(kind, np.zeros(0, dtype=np.int64)) for kind in ("filters", "parameters", "macs")] == [0, 0, 0]

"""Which channels can be cut, and the reasons why others cannot."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.costs import num_parameters
from kedro_aat.errors import ModelError
from tests.compression.architectures import Attention, disturb, mlp
from tests.compression.filters.pruned import TOLERANCE, Activated, difference, perceptron, pruned


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


class FixedWidth(nn.Module):
    """Reshapes to a fixed width, as older attention modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = FixedWidthAttention(16, 4)
        self.mlp = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.attention(x))
        return out


class FixedWidthAttention(Attention):
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
    """Attention with keys and values of another width than its queries."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 4, kdim=8, vdim=8, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.attention(self.first(x), x, x)[0])
        return out


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
def test_layers_that_cannot_be_cut_are_reported_and_the_rest_is_cut(
    model: nn.Module, batch: Tensor, layer: str, words: str
) -> None:
    # Several sets of weights, since with some of them dead ReLUs hide how an activation changes zero.
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


class WithoutGradient(nn.Module):
    """Returns no tensor that a gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def test_example_input_of_the_wrong_shape_is_named_with_the_layer() -> None:
    with pytest.raises(ModelError, match=r"shape \(2, 5\).*fails in '0'"):
        pruned(mlp(), torch.randn(2, 5))


def test_model_without_gradients_is_refused() -> None:
    with pytest.raises(ModelError, match="no gradient reaches"):
        pruned(WithoutGradient(), torch.randn(2, 6))


def test_model_without_anything_to_cut_is_refused_with_reasons() -> None:
    with pytest.raises(ModelError, match=r"no channels that can be cut:\n  - 0: its outputs are outputs"):
        pruned(nn.Sequential(nn.Linear(6, 3)), torch.randn(2, 6))

"""Which channels can be cut, and the reasons why others cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.costs import num_parameters
from kedro_aat.compression.filters.cutting import Cut
from kedro_aat.compression.filters.probing import outputs_of, relative_difference
from kedro_aat.errors import ModelError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.session import open_session, run_session
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


class Applied(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def activated(function: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor, str]:
    """Three linear layers, with a function after the first; the layer of interest is the first."""
    return Activated(function if isinstance(function, nn.Module) else Applied(function)), torch.randn(4, 6), "first"


def perceptron_of(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


CUT: dict[str, tuple[nn.Module, Tensor, str]] = {
    "sigmoid": activated(nn.Sigmoid()),
    "softplus": activated(nn.Softplus()),
    "GroupNorm in one group": activated(nn.GroupNorm(1, 12)),
    "LayerNorm": activated(nn.LayerNorm(12)),
    "LayerNorm without parameters": activated(nn.LayerNorm(12, elementwise_affine=False)),
    "BatchNorm without parameters": activated(nn.BatchNorm1d(12, affine=False)),
    "vectors of length one": activated(lambda x: F.normalize(x, dim=1)),
    "a width that is asked for": activated(lambda x: x.view(-1, 3, x.shape[1] // 3).flip(1).flatten(1)),
    "tied embedding": (Tied(), torch.randint(30, (2, 4)), "embedding"),
    "before a tied embedding": (Tied(), torch.randint(30, (2, 4)), "back"),
    "before an LSTM": (WithLSTM(), torch.randn(2, 2, 5), "first"),
    "LSTM": (WithLSTM(), torch.randn(2, 2, 5), "lstm"),
    "before attention": (OtherWidths(), torch.randn(2, 5, 8), "first"),
    "attention of other widths": (OtherWidths(), torch.randn(2, 5, 8), "attention"),
    "weight_norm": (perceptron_of(parametrizations.weight_norm(nn.Linear(6, 12))), torch.randn(2, 6), "0"),
}


@pytest.mark.parametrize("name", CUT)
def test_layers_are_cut_whatever_reads_them(name: str) -> None:
    model, batch, layer = CUT[name]
    for seed in range(3):
        other = disturb(copy.deepcopy(model), seed)
        controller = pruned(other, batch, 0.5)
        assert layer not in controller.not_cut
        cut = controller.strip()
        before, after = ([tuple(p.shape) for p in net.get_submodule(layer).parameters()] for net in (other, cut))
        assert before != after
        assert difference(other, cut, batch) <= TOLERANCE
    answers = run_session(open_session(to_onnx(cut, batch, search=False).SerializeToString()), batch)
    assert relative_difference(outputs_of(other, batch), [answers]) <= TOLERANCE


FIXED = torch.linspace(0, 1, 12)
REASONS: dict[str, tuple[nn.Module, Tensor, str, str]] = {
    "softmax": (*activated(nn.Softmax(1)), "'activation' takes the softmax over it and other channels"),
    "mean": (*activated(lambda x: x * x.mean(1, keepdim=True)), "takes the mean over it and other channels"),
    "maximum": (*activated(lambda x: x - x.amax(1, keepdim=True)), "takes the amax over it and other channels"),
    "order": (*activated(lambda x: x.sort(1)[0]), "takes the sort over it and other channels"),
    "running sum": (*activated(lambda x: x.cumsum(1)), "takes the cumsum over it and other channels"),
    "normalization outside of a layer": (*activated(lambda x: F.layer_norm(x, (12,))), "normalizes it together"),
    "unknown operation": (*activated(lambda x: torch.fft.fft(x).real), "_fft_r2c to it, which is not followed"),
    "fixed tensor": (*activated(lambda x: x + FIXED), "combines it with a tensor of fixed size"),
    "fixed shape": (*activated(lambda x: x.view(-1, 3, 4).flip(1).flatten(1)), "does not run without it"),
    "fixed sizes": (*activated(lambda x: torch.cat(x.split([5, 7], 1)[::-1], 1)), "does not run without it"),
    "rolled": (*activated(lambda x: x.roll(1, 1)), "a zero in its place is not the same as its absence"),
    "a number of it": (*activated(lambda x: x * float(x[0, 0])), "takes a single channel of it"),
    "heads of a fixed width": (FixedWidth(), torch.randn(2, 5, 16), "attention.qkv", "does not run without it"),
    "vocabulary": (Tied(), torch.randint(30, (2, 4)), "head", "looks up rows of it"),
    "one channel": (
        nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 8), nn.Linear(8, 2)),
        torch.randn(2, 6),
        "0",
        "it has 1 channels",
    ),
    "frozen": (perceptron_of(nn.Linear(6, 12).requires_grad_(False)), torch.randn(2, 6), "0", "'0' is frozen"),
    "outputs of the model": (perceptron(nn.ReLU()), torch.randn(2, 6), "4", "its outputs are outputs of the model"),
}


@pytest.mark.parametrize("name", REASONS)
def test_layers_that_cannot_be_cut_are_reported_and_the_rest_is_cut(name: str) -> None:
    model, batch, layer, words = REASONS[name]
    # Several sets of weights, since with some of them dead ReLUs hide what an operation does.
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
    assert len(cut.get_parameter(f"{layer}.weight")) == len(model.get_parameter(f"{layer}.weight"))


@pytest.mark.parametrize(
    ("function", "fixed"),
    [(lambda x: torch.cat([x[:, :5], x[:, 5:].sigmoid()], 1), 5), (lambda x: x * x[:, 3:4], 4)],
    ids=["two parts", "one channel"],
)
def test_channels_before_a_fixed_place_stay(function: Callable[[Tensor], Tensor], fixed: int) -> None:
    model, batch, layer = activated(function)
    controller = pruned(disturb(model), batch)
    assert controller.not_cut[layer] == "the forward pass divides it at a fixed place"
    controller.compression_rate = controller.maximal_compression_rate
    kept = next(each.kept for each in controller.cut_plan() if isinstance(each, Cut) and each.layer == layer)
    assert kept[:fixed] == tuple(range(fixed))
    assert len(kept) < 12
    assert difference(controller.model, controller.strip(), batch) <= TOLERANCE


class WithoutGradient(nn.Module):
    """Returns no tensor that a gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = perceptron(nn.ReLU())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def test_example_input_of_the_wrong_shape_is_named_with_the_layer() -> None:
    with pytest.raises(ModelError, match=r"example input of \(2, 5\) .*fails in '0'"):
        pruned(mlp(), torch.randn(2, 5))


def test_models_that_compute_without_gradients_are_cut() -> None:
    model, batch = disturb(WithoutGradient()), torch.randn(2, 6)
    controller = pruned(model, batch, 0.5)
    assert difference(model, controller.strip(), batch) <= TOLERANCE


def test_model_without_anything_to_cut_is_refused_with_reasons() -> None:
    with pytest.raises(ModelError, match=r"no channels that can be cut:\n  - 0: its outputs are outputs"):
        pruned(nn.Sequential(nn.Linear(6, 3)), torch.randn(2, 6))

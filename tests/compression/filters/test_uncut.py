"""Filters that are not cut, and why; what is left as it is, and clear errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.costs import num_parameters
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.errors import ConfigurationError, ModelError
from tests.compression.architectures import Attention, disturb, make, mlp
from tests.compression.filters.pruned import TOLERANCE, difference, pruned

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
    """As projects derive their own normalizations."""


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
    with pytest.raises(ModelError, match=r"outputs of the cut Activated differ .*ignored_scopes"):
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

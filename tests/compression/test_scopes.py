"""Which weights are found in a model, and which of them scopes select."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from kedro_aat.compression.scopes import prunable_weights
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.testing.training import num_zeros
from tests.export.nets import TiedLanguageModel
from tests.nets import Perceptron

# Kind of layer -> a function that makes it, inputs for it, and the names of the weights to prune.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], list[str]]] = {
    "Conv1d": (lambda: nn.Conv1d(2, 6, 3), (torch.randn(2, 2, 9),), ["weight"]),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), (torch.randn(2, 4, 5, 5),), ["weight"]),
    "Conv3d": (lambda: nn.Conv3d(2, 6, 2), (torch.randn(2, 2, 4, 4, 4),), ["weight"]),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 6, 3), (torch.randn(2, 2, 9),), ["weight"]),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 6, 3), (torch.randn(2, 2, 5, 5),), ["weight"]),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 6, 2), (torch.randn(2, 2, 3, 3, 3),), ["weight"]),
    "Linear": (lambda: nn.Linear(7, 6), (torch.randn(2, 7),), ["weight"]),
    "Bilinear": (lambda: nn.Bilinear(3, 4, 6), (torch.randn(2, 3), torch.randn(2, 4)), ["weight"]),
    "GRU": (
        lambda: nn.GRU(4, 6, bidirectional=True),
        (torch.randn(5, 2, 4),),
        ["weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"],
    ),
    "LSTM": (
        lambda: nn.LSTM(4, 6, proj_size=3),
        (torch.randn(5, 2, 4),),
        ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"],
    ),
    "RNN": (lambda: nn.RNN(4, 6), (torch.randn(5, 2, 4),), ["weight_ih_l0", "weight_hh_l0"]),
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(8, 2),
        (torch.randn(5, 2, 8),) * 3,
        ["in_proj_weight", "out_proj.weight"],
    ),
    "MultiheadAttention of other widths": (
        lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
        (torch.randn(5, 2, 8), torch.randn(5, 2, 4), torch.randn(5, 2, 6)),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0),
        (torch.randn(5, 2, 8),),
        ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"],
    ),
    "weight shared by two layers": (
        TiedLanguageModel,
        (torch.randint(20, (2, 5)),),
        ["embedding.weight"],  # its first name, as in the file
    ),
}


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    out: Any = model(*inputs)
    first: Tensor = out[0] if isinstance(out, tuple) else out
    return first


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_of_every_kind_of_layer_are_pruned(kind: str) -> None:
    make, inputs, names = LAYERS[kind]
    torch.manual_seed(0)
    model = make()
    controller = MagnitudeSparsityController(model)
    assert controller.weight_names == names
    weights = [model.get_parameter(name) for name in names]
    dense = [weight.detach().clone() for weight in weights]
    total = sum(weight.numel() for weight in weights)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for rate in (0.3, 0.6):
        controller.compression_rate = rate
        for _ in range(2):
            optimizer.zero_grad()
            run(model, inputs).square().mean().backward()
            optimizer.step()
        assert controller.report().achieved_rate == round(rate * total) / total
    assert num_zeros(weights) == round(0.6 * total)

    model.eval()
    stripped = controller.strip()
    assert torch.equal(run(stripped, inputs), run(model, inputs))
    assert list(stripped.state_dict()) == list(make().state_dict())

    fresh = MagnitudeSparsityController(make())
    fresh.model.load_state_dict(model.state_dict())
    fresh.load_state(controller.get_state())
    assert torch.equal(run(fresh.model.eval(), inputs), run(model, inputs))
    assert all(not torch.equal(before, after) for before, after in zip(dense, weights, strict=True))


def test_shared_weight_is_counted_once_and_stays_shared() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second, nn.Linear(8, 4))
    controller = MagnitudeSparsityController(model)
    assert controller.weight_names == ["0.weight", "3.weight"]
    controller.compression_rate = 0.5
    assert controller.report().achieved_rate == 48 / 96
    stripped = controller.strip()
    assert stripped.get_parameter("0.weight") is stripped.get_submodule("2").weight
    assert model.get_submodule("0").weight is model.get_submodule("2").weight


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()),
        nn.Identity(),
        nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))),
    ],
    ids=["normalization", "nothing", "weight norm"],
)
def test_model_without_prunable_layers_is_an_error(model: nn.Module) -> None:
    with pytest.raises(ModelError, match=f"{type(model).__name__} has no layer that can be pruned"):
        MagnitudeSparsityController(model)


def test_parametrized_layers_are_skipped_with_a_warning_that_says_how_to_mend_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    with caplog.at_level(logging.WARNING):
        weights = prunable_weights(model)
    assert [weight.name for weight in weights] == ["1.weight"]
    assert "0.weight is computed by WeightNorm in every forward pass: call torch.nn.utils.parametrize" in caplog.text
    assert "remove_parametrizations(model.get_submodule('0'), 'weight')" in caplog.text


# --- scopes ----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2, 3)
        self.conv10 = nn.Conv2d(2, 2, 3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.blocks = nn.Sequential(Block(), Block())
        self.classifier = nn.Linear(2, 2)


ALL = [
    *("stem.0", "blocks.0.conv1", "blocks.0.conv10", "blocks.1.conv1", "blocks.1.conv10"),
    "classifier",
]
SCOPES = {
    "stem.0": ["stem.0"],
    "classifier": ["classifier"],
    # a name includes the layers inside it, and no others
    "stem": ["stem.0"],
    "blocks": ALL[1:5],
    "blocks.0": ALL[1:3],
    "blocks.0.conv1": ["blocks.0.conv1"],
    # patterns
    "*": ALL,
    "*.conv1": ["blocks.0.conv1", "blocks.1.conv1"],
    "blocks.?.conv1*": ALL[1:5],
    # regular expressions, for the name or for NNCF's spelling
    "{re}conv1$": ["blocks.0.conv1", "blocks.1.conv1"],
    "{re}^blocks": ALL[1:5],
    r"{re}.*Conv2d\[conv1\]": ["blocks.0.conv1", "blocks.1.conv1"],
    r"{re}NNCFConv2d\[conv1": ALL[1:5],
    r"{re}^Net/Sequential\[blocks\]/Block\[1\]": ALL[3:5],
    r"{re}Block\[0\]/NNCFConv2d\[conv1\]/conv2d_0$": ["blocks.0.conv1"],
    # NNCF's spelling: a layer, its wrapper, the operation in it, and everything inside a container
    "Net/Linear[classifier]": ["classifier"],
    "Net/NNCFLinear[classifier]": ["classifier"],
    "Net/NNCFLinear[classifier]/linear_0": ["classifier"],
    "Net/Sequential[stem]/NNCFConv2d[0]/conv2d_0": ["stem.0"],
    "Net/Sequential[blocks]/Block[0]/NNCFConv2d[conv1]/conv2d_0": ["blocks.0.conv1"],
    "Net/Sequential[blocks]": ALL[1:5],
    "Net/Sequential[blocks]/Block[1]": ALL[3:5],
}


def layers(**scopes: Any) -> list[str]:
    return [weight.layer for weight in prunable_weights(Net(), **scopes)]


@pytest.mark.parametrize("scope", SCOPES)
def test_target_scope_selects_only_its_layers(scope: str) -> None:
    assert layers(target_scopes=[scope]) == SCOPES[scope]


@pytest.mark.parametrize("scope", [scope for scope in SCOPES if SCOPES[scope] != ALL])
def test_ignored_scope_excludes_its_layers(scope: str) -> None:
    assert layers(ignored_scopes=[scope]) == [layer for layer in ALL if layer not in SCOPES[scope]]


def test_several_scopes_at_once() -> None:
    assert layers(ignored_scopes=["stem", "Net/NNCFLinear[classifier]/linear_0", "*.1.conv1"]) == [
        "blocks.0.conv1",
        "blocks.0.conv10",
        "blocks.1.conv10",
    ]
    assert layers(target_scopes=["blocks.0", "classifier"], ignored_scopes=["{re}conv10"]) == [
        "blocks.0.conv1",
        "classifier",
    ]


def test_rate_is_that_of_the_selected_layers() -> None:
    torch.manual_seed(0)
    model = Perceptron([10, 20, 30])
    controller = MagnitudeSparsityController(model, MagnitudeSparsity(ignored_scopes=("layers.1",)))
    controller.compression_rate = 0.5
    assert num_zeros([model.get_parameter("layers.0.weight")]) == 100
    assert num_zeros([model.get_parameter("layers.1.weight")]) == 0
    assert controller.report().achieved_rate == 0.5


def test_scopes_that_match_nothing_are_listed_in_one_error() -> None:
    with pytest.raises(ConfigurationError) as caught:
        layers(
            ignored_scopes=["clasifier", "stem.0", "{re}nothing_like_it"],
            target_scopes=["Net/NNCFConv2d[conv7]/conv2d_0", "blocks.0.conv2", "conv1"],
        )
    mistakes = caught.value.mistakes
    assert len(mistakes) == 5
    assert mistakes[0] == "ignored_scopes: 'clasifier' matches no layer. Did you mean 'classifier'?"
    assert mistakes[1] == "ignored_scopes: '{re}nothing_like_it' matches no layer."
    assert mistakes[2].startswith("target_scopes: 'Net/NNCFConv2d[conv7]/conv2d_0' matches no layer.")
    assert "Did you mean 'blocks.0.conv1" in mistakes[3]
    assert "'conv1'" in mistakes[4]
    assert all(layer in str(caught.value) for layer in ALL)  # the names to choose from


def test_invalid_regular_expression_is_named_in_the_error() -> None:
    with pytest.raises(ConfigurationError, match=r"ignored_scopes: '\{re\}conv\('"):
        layers(ignored_scopes=["{re}conv("])


def test_mistake_in_a_scope_is_found_when_the_controller_is_built() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'classifier'"):
        MagnitudeSparsityController(Net(), MagnitudeSparsity(ignored_scopes=("clasifier",)))


def test_scopes_that_select_nothing_are_an_error() -> None:
    with pytest.raises(ModelError, match="none of the 6 prunable weights"):
        layers(ignored_scopes=["*"])
    with pytest.raises(ModelError, match="none of the 6 prunable weights"):
        layers(target_scopes=["stem"], ignored_scopes=["stem.0"])


def test_scopes_of_a_model_that_is_one_layer() -> None:
    (weight,) = prunable_weights(nn.Linear(2, 2))
    assert weight.name == "weight"
    assert [found.name for found in prunable_weights(nn.Linear(2, 2), target_scopes=["{re}Linear"])] == ["weight"]

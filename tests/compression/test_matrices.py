"""Sparsity reaches the weights wherever they are, and says what it leaves dense and why."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from kedro_aat.compression.matrices import find_matrices
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.verify import count_zeros, verify_onnx
from kedro_aat.testing.training import num_zeros
from tests.compression.language_models import RawMatrices, SmallGpt, TextClassifier

TOKENS = torch.randint(1, 50, (4, 8))

# Kind of model -> a function that makes it, inputs, the sparse weights, and those that are left out.
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, list[str], list[str]]] = {
    "GPT-2": (
        SmallGpt,
        TOKENS,
        ["wte.weight", "c_attn.weight", "c_proj.weight", "fc.weight", "out.weight"],
        ["wpe.weight", "norm.weight"],
    ),
    "raw matrices": (
        RawMatrices,
        torch.randn(4, 8, 16),
        ["proj", "experts", "stack.0", "stack.1", "lora.A", "lora.B"],
        ["pos_embed", "queries", "relative_position_bias_table", "bias", "A_log"],
    ),
    "embeddings": (TextClassifier, TOKENS, ["words.weight", "bag.weight", "head.weight"], []),
}


# Each model and each importance is in the default tests.
PAIRS = [("GPT-2", "lamp"), ("raw matrices", "abs"), ("embeddings", "normed_abs")]


@pytest.mark.parametrize(
    ("kind", "importance"),
    [
        pytest.param(kind, importance, marks=() if (kind, importance) in PAIRS else pytest.mark.slow)
        for kind in MODELS
        for importance in ("lamp", "abs", "normed_abs")
    ],
)
def test_matrices_are_sparse_in_training_stripped_and_in_the_file(kind: str, importance: str) -> None:
    make, inputs, names, left_out = MODELS[kind]
    torch.manual_seed(0)
    model = make()
    settings = MagnitudeSparsity.model_validate({"importance": importance})
    controller = MagnitudeSparsityController(model, settings)
    assert sorted(controller.weight_names) == sorted(names)
    assert sorted(controller.statistics().notes) == sorted(left_out)
    weights = [model.get_parameter(name) for name in names]
    total = sum(weight.numel() for weight in weights)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for rate in (0.3, 0.8):
        controller.compression_rate = rate
        for _ in range(2):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
        assert controller.report().achieved_rate == pytest.approx(rate, abs=1 / total)
    assert all(num_zeros([model.get_parameter(name)]) == 0 for name in left_out)

    model.eval()
    stripped = controller.strip()
    assert torch.equal(stripped(inputs), model(inputs))
    assert list(stripped.state_dict()) == list(make().state_dict())
    file = to_onnx(stripped, inputs)
    verify_onnx(file, stripped, inputs, tolerance=1e-4)
    assert count_zeros(file, controller.weight_names) == (round(0.8 * total), total)

    fresh = MagnitudeSparsityController(make(), settings)
    fresh.model.load_state_dict(model.state_dict())
    fresh.load_state(controller.get_state())
    assert torch.equal(fresh.model.eval()(inputs), model(inputs))


def test_padding_row_stays_zero() -> None:
    model = SmallGpt()
    controller = MagnitudeSparsityController(model)
    controller.compression_rate = 0.5
    model(TOKENS).square().mean().backward()
    controller.compression_rate = 0.0
    assert model.wte.weight[0].count_nonzero() == 0
    assert controller.report().achieved_rate == 16 / sum(
        model.get_parameter(n).numel() for n in controller.weight_names
    )


@pytest.mark.parametrize("scope", ["lm_head", "wte", "wte.weight", "SmallGpt/Linear[lm_head]"])
def test_shared_weight_has_the_names_of_all_its_layers(scope: str) -> None:
    model = SmallGpt()
    assert "wte.weight" not in [each.name for each in find_matrices(model, ignored_scopes=[scope]).weights]
    assert [each.name for each in find_matrices(model, target_scopes=[scope]).weights] == ["wte.weight"]


def test_parameters_of_the_model_itself_are_scopes() -> None:
    found = find_matrices(RawMatrices(), ignored_scopes=["experts", "lora.*"])
    assert [weight.name for weight in found.weights] == ["proj", "stack.0", "stack.1"]
    with pytest.raises(ConfigurationError, match="'expert' matches no layer"):
        find_matrices(RawMatrices(), ignored_scopes=["expert"])


def test_what_a_name_excludes_can_be_included_by_its_name() -> None:
    found = find_matrices(RawMatrices(), target_scopes=["*", "queries", "bias"])
    assert {"queries", "bias"} < {weight.name for weight in found.weights}
    assert list(found.left_out) == ["pos_embed", "relative_position_bias_table", "A_log"]
    assert "wpe.weight" in [each.name for each in find_matrices(SmallGpt(), target_scopes=["*", "wpe"]).weights]


def test_names_of_layers_that_only_sound_like_a_position_or_bias() -> None:
    model = nn.ModuleDict({"pos_ffn": nn.Linear(4, 4), "bias": nn.Linear(4, 4), "norm": nn.Linear(4, 4)})
    assert [each.name for each in find_matrices(model).weights] == ["pos_ffn.weight", "bias.weight", "norm.weight"]


def test_complex_numbers_stay_dense() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_parameter("spectrum", nn.Parameter(torch.randn(8, 8, dtype=torch.complex64)))
    assert "complex64" in find_matrices(model).left_out["spectrum"]


def test_pattern_is_for_layers_whose_input_dimension_is_known() -> None:
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 16))
    controller = MagnitudeSparsityController(model, MagnitudeSparsity(pattern="2:4"))
    assert controller.weight_names == ["1.weight"]
    assert controller.maximal_compression_rate == 0.5
    assert "input dimension is known" in controller.statistics().notes["0.weight"]
    with pytest.raises(ModelError, match="input dimension is known"):
        MagnitudeSparsityController(nn.Embedding(50, 16), MagnitudeSparsity(pattern="2:4"))


# --- a rate of little --------------------------------------------------------------------------------------------


def half_frozen() -> nn.Module:
    model = TextClassifier()
    model.words.requires_grad_(False)
    model.bag.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (
            half_frozen,
            MagnitudeSparsity(),
            "0.30% of the parameters (48 of 16,051) are all that the rate of magnitude_sparsity counts. The others "
            "stay dense: 16,000 in words.weight, bag.weight, which are frozen (requires_grad=False), so",
        ),
        (
            TextClassifier,
            MagnitudeSparsity(target_scopes=("head",)),
            "16,000 in layers that ignored_scopes or target_scopes exclude; 3 in biases, normalizations and other",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 16))),
            MagnitudeSparsity(),
            "80 in 1.weight, which is computed by WeightNorm in every forward pass: call torch.nn.utils.parametrize."
            "remove_parametrizations(model.get_submodule('1'), 'weight') before the compression",
        ),
    ],
    ids=["frozen", "scopes", "parametrized"],
)
def test_rate_of_a_small_share_is_a_warning(
    make: Callable[[], nn.Module], settings: MagnitudeSparsity, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    controller = MagnitudeSparsityController(make(), settings)
    assert [record.levelno for record in caplog.records if words in record.getMessage()] == [logging.WARNING]
    counted, total = controller.rated_parameters
    assert counted < total / 2
    assert f"of {counted:,} weights are zero; the model has {total:,} parameters" in controller.statistics().to_str()


def test_rate_of_most_parameters_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    MagnitudeSparsityController(SmallGpt())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_model_without_matrices_says_what_it_has() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Embedding(8, 4).requires_grad_(False))
    with pytest.raises(ModelError, match=r"(?s)1\.weight is frozen.*0\.weight is computed by WeightNorm"):
        MagnitudeSparsityController(model)

"""Frozen layers stay as they are, and a model that is frozen as a whole is an error before the search."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kedro_aat import create_compressed_model
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.compressible import compressible
from kedro_aat.compression.frozen import frozen_layers, frozen_parameters, trainable_parameters
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.settings import MagnitudeSparsity, parse_compression
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import ModelError
from kedro_aat.training.fingerprints.identity import fingerprint
from tests.nets import SmallNet


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter, as LoRA has it."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features))
        self.lora_B = nn.Parameter(0.1 * torch.randn(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T  # type: ignore[no-any-return]


def half_frozen() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    model[0].requires_grad_(False)
    return model


def test_frozen_weights_stay_dense_and_are_named() -> None:
    model = half_frozen()
    before = model.get_parameter("0.weight").clone()
    controller = MagnitudeSparsityController(model)
    controller.compression_rate = 0.9
    assert controller.weight_names == ["2.weight", "4.weight"]
    assert controller.statistics().notes["0.weight"].startswith("is frozen (requires_grad=False)")
    assert torch.equal(model.get_parameter("0.weight"), before)
    stripped = controller.strip()
    assert frozen_parameters(stripped) == frozen_parameters(model) == ["0.weight", "0.bias"]


def test_target_scopes_do_not_compress_what_is_frozen() -> None:
    with pytest.raises(ModelError, match="is frozen"):
        MagnitudeSparsityController(half_frozen(), MagnitudeSparsity(target_scopes=("0",)))


def test_adapters_are_compressed_and_their_base_is_not() -> None:
    model = nn.Sequential(Adapted(nn.Linear(8, 16)), nn.ReLU(), Adapted(nn.Linear(16, 4)))
    controller = MagnitudeSparsityController(model)
    assert controller.weight_names == ["0.lora_A", "0.lora_B", "2.lora_A", "2.lora_B"]
    assert controller.rated_parameters == (88, 300)
    assert frozen_layers(model) == ["0.base", "2.base"]


@pytest.mark.parametrize("algorithm", ["quantization", "filter_pruning"])
def test_frozen_layers_are_quantized_and_keep_requires_grad_when_cut(algorithm: str) -> None:
    inputs = torch.randn(16, 8)
    controller = build_controller(half_frozen(), parse_compression({"algorithm": algorithm}), example_input=inputs)
    controller.compression_rate = 0.5
    optimizer = torch.optim.SGD(trainable_parameters(controller.model), lr=0.1)
    controller.model(inputs).square().mean().backward()
    optimizer.step()
    stripped = controller.strip()
    assert not stripped.get_parameter("0.weight").requires_grad
    assert torch.isfinite(stripped.eval()(inputs)).all()


@pytest.mark.parametrize("algorithm", ["magnitude_sparsity", "filter_pruning"])
def test_model_that_is_frozen_as_a_whole_is_one_error(algorithm: str) -> None:
    model = SmallNet().requires_grad_(False)
    images = torch.randn(4, 1, 8, 8)
    with pytest.raises(
        ModelError, match=r"^0 of the [\d,]+ parameters of SmallNet can be trained: all of them are froz"
    ):
        build_controller(model, parse_compression({"algorithm": algorithm}), example_input=images)
    with pytest.raises(ModelError, match=r"3 of the layers .* are frozen \(requires_grad=False\)"):
        create_compressed_model(model, {"compression": {"algorithm": algorithm}}, example_input=images)


def test_frozen_model_can_be_quantized_without_training() -> None:
    images = torch.randn(4, 1, 8, 8)
    controller = QuantizationController(SmallNet().requires_grad_(False))
    controller.calibrate([images])
    assert torch.isfinite(controller.strip().eval()(images)).all()


def test_runs_with_other_frozen_layers_are_other_runs() -> None:
    model = half_frozen()
    frozen = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == frozen
    assert fingerprint(model.requires_grad_(True)) != frozen


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        (lambda: nn.utils.weight_norm(nn.Linear(4, 4)), "torch.nn.utils.remove_weight_norm"),
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "torch.nn.utils.remove_spectral_norm"),
        (
            lambda: nn.utils.prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
            "torch.nn.utils.prune.remove",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_hooks_compute_are_an_error_with_the_call_that_mends_it(layer: object, remedy: str) -> None:
    assert callable(layer)
    model = nn.Sequential(nn.Sequential(layer()), nn.Linear(4, 4))
    for algorithm in ("magnitude_sparsity", "filter_pruning", "quantization"):
        with pytest.raises(ModelError) as error:
            build_controller(model, parse_compression({"algorithm": algorithm}), example_input=torch.randn(2, 4))
        call = f"{remedy}(model.get_submodule('0.0'), 'weight')"
        assert "0.0.weight is computed by" in str(error.value)
        assert call in str(error.value)
    exec(call, {"torch": torch, "model": model})  # the advice is right
    assert compressible(model) is model
    assert MagnitudeSparsityController(model).weight_names == ["0.0.weight", "1.weight"]


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_weights_are_named_with_the_call_that_mends_it(name: str) -> None:
    model = nn.Sequential(getattr(nn.utils.parametrizations, name)(nn.Linear(4, 4)), nn.Linear(4, 4))
    controller = MagnitudeSparsityController(model)
    controller.compression_rate = 0.5
    assert controller.weight_names == ["1.weight"]
    note = controller.statistics().notes["0.weight"]
    call = note.partition("call ")[2].partition(" before")[0]
    assert torch.equal(controller.strip()(torch.ones(1, 4)), model(torch.ones(1, 4)))
    stripped = controller.strip()
    exec(call, {"torch": torch, "model": stripped})
    assert MagnitudeSparsityController(stripped).weight_names == ["0.weight", "1.weight"]


def test_parameters_without_a_shape_are_named() -> None:
    with pytest.raises(ModelError, match=r"2 parameters of Sequential have no shape yet \(0\.weight, 0\.bias\): call"):
        build_controller(nn.Sequential(nn.LazyLinear(4)), MagnitudeSparsity())

"""Unusual models and batches, for every algorithm: the result is right, or the error names the cause.

Cases that concern one algorithm only are tested in that algorithm's folder.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import CompressionController
from kedro_aat.compression.settings import (
    Composite,
    CompressionSettings,
    FilterPruning,
    KnowledgeDistillation,
    MagnitudeSparsity,
    Quantization,
)
from kedro_aat.errors import ModelError
from kedro_aat.testing.controllers import set_reachable
from kedro_aat.testing.training import BATCH, sgd, small_net, train
from tests.compression.quantization.quantized import run

INPUTS = BATCH["inputs"]
ALGORITHMS: list[CompressionSettings] = [
    MagnitudeSparsity(),
    MagnitudeSparsity(pattern="2:4"),
    FilterPruning(),
    FilterPruning(importance="taylor"),
    Quantization(),
]
every_algorithm = pytest.mark.parametrize(
    "settings", ALGORITHMS, ids=lambda settings: "-".join([settings.algorithm, *sorted(settings.model_fields_set)])
)


def compressed(model: nn.Module, settings: CompressionSettings, batch: Tensor, rate: float) -> CompressionController:
    controller = build_controller(model, settings, example_input=batch)
    controller.disable_scheduler()
    set_reachable(controller, rate)
    return controller


def assert_strip_keeps_outputs(controller: CompressionController, batch: Tensor) -> nn.Module:
    """The stripped model computes what the model under training does, except for one step of 8 bits."""
    expected = run(controller.model, batch)
    assert expected.isfinite().all()
    stripped = controller.strip()
    atol = 0.02 * float(expected.abs().max()) if controller.name == "quantization" else 1e-5
    torch.testing.assert_close(run(stripped, batch), expected, rtol=1e-4, atol=atol)
    return stripped


# --- layers that cannot be traced ------------------------------------------------------------------------------


class Cubed(torch.autograd.Function):
    """A handwritten autograd function, which cannot be exported."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        cubed: Tensor = x**3
        return cubed

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        slope: Tensor = 3 * x**2 * gradient
        return slope


class WithNumpy(nn.Module):
    """Uses NumPy between two layers, so that it can neither be differentiated nor traced."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().cpu().numpy() * 2)


class WithCubed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        cubed: Tensor = Cubed.apply(x)  # type: ignore[no-untyped-call]
        return cubed


def around(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), middle, nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    )


@every_algorithm
def test_custom_autograd_function_is_supported(settings: CompressionSettings) -> None:
    batch = torch.randn(16, 8)
    controller = compressed(around(WithCubed()), settings, batch, 0.4)
    targets = torch.randint(4, (16,))
    train(controller.model, sgd(controller.model), batch={"inputs": batch, "targets": targets})
    assert_strip_keeps_outputs(controller, batch)


@every_algorithm
def test_layers_around_numpy_are_not_cut_or_named_in_an_error(settings: CompressionSettings) -> None:
    batch = torch.randn(16, 8)
    controller = compressed(around(WithNumpy()), settings, batch, 0.4)
    stripped = assert_strip_keeps_outputs(controller, batch)
    if controller.name == "filter_pruning":  # it is unknown what reads the channels before it, so these stay
        assert stripped.get_parameter("0.weight").shape[0] < 16
        assert stripped.get_parameter("2.weight").shape[0] == 12
        assert stripped.get_parameter("4.weight").shape[1] == 12
    else:
        assert stripped.get_parameter("0.weight").shape == (16, 8)
    assert controller.compression_rate > 0.1


# --- tied weights ----------------------------------------------------------------------------------------------


class TiedAutoencoder(nn.Module):
    """Decodes with the weight of the encoder: two layers share a parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.encode, self.again = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.again.weight = self.encode.weight
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.encode(F.relu(self.first(x))))))
        logits: Tensor = self.head(F.relu(self.hidden(x)))
        return logits


@every_algorithm
def test_tied_weights_stay_tied(settings: CompressionSettings) -> None:
    batch, targets = torch.randn(16, 8), torch.randint(4, (16,))
    model = TiedAutoencoder()
    controller = compressed(model, settings, batch, 0.4)
    assert controller.compression_rate > 0.1
    train(model, sgd(model), batch={"inputs": batch, "targets": targets})
    assert model.again.weight is model.encode.weight
    stripped = assert_strip_keeps_outputs(controller, batch)
    tensors = dict(
        [*stripped.named_parameters(remove_duplicate=False), *stripped.named_buffers(remove_duplicate=False)]
    )
    assert tensors["again.weight"] is tensors["encode.weight"]


# --- the model's own buffers -----------------------------------------------------------------------------------


class Windowed(nn.Module):
    """Has a buffer that is called a mask, like windowed attention."""

    attention_mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 4)
        self.register_buffer("attention_mask", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.hidden(F.relu(self.first(x * self.attention_mask)))))
        return logits


@every_algorithm
def test_buffer_called_mask_is_not_a_compression_mask(settings: CompressionSettings) -> None:
    batch = torch.randn(16, 8)
    controller = compressed(Windowed(), settings, batch, 0.4)
    assert controller.compression_rate > 0.1
    stripped = assert_strip_keeps_outputs(controller, batch)
    assert torch.equal(stripped.get_buffer("attention_mask"), torch.ones(8))


# --- BatchNorm scales of zero ----------------------------------------------------------------------------------


@every_algorithm
@pytest.mark.parametrize("which", [slice(0, 3), slice(None)], ids=["some", "all"])
def test_batch_norm_scales_of_zero_give_finite_results(settings: CompressionSettings, which: slice) -> None:
    model = small_net()
    with torch.no_grad():
        model.get_parameter("stem.1.weight")[which] = 0.0
    controller = compressed(model, settings, INPUTS, 0.5)
    train(model, sgd(model))
    assert all(tensor.isfinite().all() for tensor in controller.model.state_dict().values())
    assert_strip_keeps_outputs(controller, INPUTS)


# --- single channels -------------------------------------------------------------------------------------------


def narrow() -> nn.Sequential:
    """A model with a layer of one channel, and a depthwise convolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU()),
        *(nn.Conv2d(8, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


@every_algorithm
@pytest.mark.parametrize("rate", [0.5, 0.998])
def test_layers_of_one_channel(settings: CompressionSettings, rate: float) -> None:
    model = narrow()
    controller = compressed(model, settings, INPUTS, rate)
    assert controller.compression_rate > 0.01
    train(model, sgd(model))
    stripped = assert_strip_keeps_outputs(controller, INPUTS)
    assert stripped.get_parameter("4.weight").shape[0] == 1


# --- half precision --------------------------------------------------------------------------------------------


@every_algorithm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compressed_or_refused(settings: CompressionSettings, dtype: torch.dtype) -> None:
    model = small_net().to(dtype)
    if isinstance(settings, Quantization):
        with pytest.raises(ModelError, match=r"starts from float32 weights.*model\.float\(\)"):
            compressed(model, settings, INPUTS.to(dtype), 0.5)
        return
    controller = compressed(model, settings, INPUTS.to(dtype), 0.5)
    batch = {"inputs": INPUTS.to(dtype), "targets": BATCH["targets"]}
    train(model, sgd(model), batch=batch)
    stripped = controller.strip()
    assert {parameter.dtype for parameter in stripped.parameters()} == {dtype}
    # Rounding depends on the size of a matrix, so the models are compared in single precision.
    expected = run(copy.deepcopy(model).float(), INPUTS)
    torch.testing.assert_close(run(stripped.float(), INPUTS), expected, rtol=1e-4, atol=1e-4)


# --- several inputs --------------------------------------------------------------------------------------------


class Sum(nn.Module):
    """A model with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.head = nn.Linear(8, 16), nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.left(left) + self.right(right)))
        return logits


@every_algorithm
def test_two_inputs_are_compressed_or_refused(settings: CompressionSettings) -> None:
    model, batch = Sum().eval(), (torch.randn(16, 8), torch.randn(16, 6))
    distilled = Composite(algorithms=(settings, KnowledgeDistillation(type="mse")))  # type: ignore[arg-type]
    if isinstance(settings, FilterPruning):
        with pytest.raises(ModelError, match=r"does not take an example input.*'right'"):
            build_controller(model, settings, example_input=batch[0])
        return
    assert build_controller(Sum(), distilled, example_input=batch).example_input is batch
    controller = build_controller(model, settings, example_input=batch)
    controller.compression_rate = 0.5
    assert controller.compression_rate > 0.1
    with torch.no_grad():
        expected = model(*batch)
        atol = 0.02 * float(expected.abs().max()) if isinstance(settings, Quantization) else 1e-5
        torch.testing.assert_close(controller.strip()(*batch), expected, rtol=1e-4, atol=atol)


# --- inputs of the wrong shape ---------------------------------------------------------------------------------


@every_algorithm
def test_batch_of_the_wrong_shape_is_an_error_and_changes_nothing(settings: CompressionSettings) -> None:
    controller = compressed(small_net(), settings, INPUTS, 0.5)
    expected = run(controller.model, INPUTS)
    with pytest.raises(RuntimeError, match="channels"):
        run(controller.model, torch.randn(2, 3, 8, 8))
    assert torch.equal(run(controller.model, INPUTS), expected)


@every_algorithm
def test_first_batch_of_the_wrong_shape_is_an_error_and_changes_nothing(settings: CompressionSettings) -> None:
    """Quantization uses the first batch that the model accepts, filter pruning the example input."""
    wrong = torch.randn(2, 3, 8, 8)
    model = small_net()
    if isinstance(settings, FilterPruning):
        with pytest.raises(ModelError, match=r"\(2, 3, 8, 8\) torch.float32.*fails in 'stem\.0'"):
            compressed(model, settings, wrong, 0.5)
        assert list(model.state_dict()) == list(small_net().state_dict())
        return
    controller = compressed(model, settings, wrong, 0.5)
    with pytest.raises(RuntimeError, match="channels"):
        run(model, wrong)
    assert run(model, INPUTS).isfinite().all()
    assert_strip_keeps_outputs(controller, INPUTS)

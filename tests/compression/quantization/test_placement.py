"""Which tensors are rounded, in usual and unusual models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.quantization.arithmetic import (
    activation_scales,
    round_activation,
)
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.quantization.layers import (
    quantized_spec,
)
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.testing.training import BATCH
from tests.compression.quantization.quantized import quantized, run, settled
from tests.nets import SmallNet

INPUTS = BATCH["inputs"]


def num_levels(tensor: Tensor) -> int:
    """Number of distinct values."""
    return len(tensor.unique())


def test_tensors_between_quantized_layers_are_rounded_once_for_all_readers() -> None:
    layer_inputs: dict[str, Tensor] = {}
    model = settled(ResidualCNN((4, 8)), INPUTS)
    controller = quantized(model, INPUTS)
    for name in ("blocks.0", "blocks.0.conv1", "blocks.0.shortcut", "classifier"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: layer_inputs.update({name: args[0].detach()})
        )
    run(controller.model, INPUTS)
    assert num_levels(layer_inputs["blocks.0.conv1"]) <= 256
    assert torch.equal(layer_inputs["blocks.0.conv1"], layer_inputs["blocks.0.shortcut"])
    assert num_levels(layer_inputs["classifier"]) <= 256
    assert num_levels(INPUTS) > 256


def test_layer_in_full_precision_has_an_output_in_full_precision() -> None:
    model = settled(SmallNet(), INPUTS)
    outputs: list[Tensor] = []
    model.get_submodule("conv").register_forward_hook(lambda module, args, out: outputs.append(out.detach()))
    controller = quantized(model, INPUTS, ignored_scopes=("conv", "classifier"))
    assert controller.compression_rate == 72 / 680  # of all weights of the model
    run(model, INPUTS)
    expected = F.conv2d(
        run(model.get_submodule("stem"), rounded_inputs(controller, INPUTS)),
        model.get_submodule("conv").get_parameter("weight"),
        model.get_submodule("conv").get_parameter("bias"),
        padding=1,
    )
    assert outputs[-1].shape == expected.shape
    assert num_levels(outputs[-1]) > 256


def rounded_inputs(controller: QuantizationController, inputs: Tensor) -> Tensor:
    (scale,), (zero_point,) = activation_scales(controller._fake.ranges[:1])
    return round_activation(inputs, scale, zero_point)


class ScaledLinear(nn.Linear):
    """Scales, which torch's own linear layer does not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 10


class PaddedConv(nn.Conv2d):
    """Pads, which torch's own convolution would not do here."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class ActivatedNorm(nn.BatchNorm2d):
    """Applies a ReLU, which torch's own BatchNorm does not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class RenamedConv(nn.Conv2d):
    """Does the same as torch's own convolution."""


class TwiceNamedNorm(nn.Module):
    """Its BatchNorm has two names and is called by the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        self.norms = nn.ModuleList([self.norm])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.norms[0](self.first(x)).relu())
        return out


def around(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), *middle, nn.ReLU(), nn.Conv2d(8, 8, 3))


UNUSUAL: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "scaled linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), ScaledLinear(8, 4)), {"1", "3"}),
    "padded convolution": (lambda: around(PaddedConv(8, 8, 3)), {"0", "1", "3"}),
    "activated norm": (lambda: nn.Sequential(nn.Conv2d(1, 8, 3), ActivatedNorm(8), nn.Conv2d(8, 8, 3)), {"0", "2"}),
    "norm that is activated, and last": (lambda: around(nn.Conv2d(8, 8, 1), ActivatedNorm(8)), {"0", "1", "4"}),
    "renamed convolution": (lambda: around(RenamedConv(8, 8, 3), nn.BatchNorm2d(8)), {"0", "1", "4"}),
    "reflected edges": (lambda: around(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), {"0", "1", "3"}),
    "edges from the other side": (
        lambda: around(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
        {"0", "1", "3"},
    ),
    "norm with two names": (TwiceNamedNorm, {"first", "last"}),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_compute_the_same_in_integers(name: str) -> None:
    torch.manual_seed(0)
    make, integer_layers = UNUSUAL[name]
    model = settled(make(), INPUTS)
    plain = run(model, INPUTS)
    controller = quantized(model, INPUTS)
    assert {name.removesuffix(".weight") for name in controller.statistics().as_frame()["layer"]} == integer_layers
    expected = run(model, INPUTS)
    assert (expected - plain).abs().max() < 0.05 * plain.abs().max()
    small = controller.strip()
    assert (run(small, INPUTS) - expected).abs().max() < 0.02 * expected.abs().max()
    spec = quantized_spec(small)
    assert spec is not None
    assert {layer.layer for layer in spec.layers} == integer_layers


@pytest.mark.parametrize("way", ["scaled", "positional", "by keyword"])
def test_weight_that_is_used_outside_of_its_layer_is_held_in_int8(way: str) -> None:
    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.borrowed = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.used.forward(x)
            if way == "scaled":
                return F.linear(x, 2 * self.borrowed.weight)
            return (
                F.linear(x, self.borrowed.weight) if way == "positional" else F.linear(x, weight=self.borrowed.weight)
            )

    inputs = torch.randn(8, 6)
    for ignored in ((), ("borrowed",)):
        controller = quantized(Borrowing(), inputs, ignored_scopes=ignored)
        expected = run(controller.model, inputs)
        small = controller.strip()
        assert ("borrowed.weight" in dict(small.named_buffers())) is (not ignored)
        torch.testing.assert_close(run(small, inputs), expected, rtol=0, atol=1e-3)  # the bias is int32

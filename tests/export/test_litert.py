"""LiteRT's files compute what the model computes, and int8 models are int8 in them. Needs the extra `litert`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.errors import ExportError
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.litert import LitertTarget
from kedro_aat.export.targets.litert_file import Flatbuffer, not_for_microcontrollers
from kedro_aat.export.targets.litert_settings import LitertSettings
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.export.verify import verify_target
from tests.compression.quantization.quantized import Branching, Separable, quantized, run, settled
from tests.export.nets import Recurrent
from tests.nets import Perceptron

pytest.importorskip("litert_converter")

TARGET = LitertTarget()


def write(model: nn.Module, inputs: Tensor, *, integer_io: bool = False) -> TargetFile:
    settings = ExportSettings(litert=LitertSettings(integer_io=integer_io))
    return TARGET.write(model, inputs, settings, None)  # type: ignore[arg-type]  # it reads no ONNX file


def images(channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(64, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def separable() -> nn.Module:
    torch.manual_seed(0)
    return settled(Separable(), images())


@pytest.fixture(scope="module")
def integers(separable: nn.Module) -> nn.Module:
    return quantized(copy.deepcopy(separable), images()).strip().eval()


@pytest.fixture(scope="module")
def integer_file(integers: nn.Module) -> TargetFile:
    return write(integers, images(), integer_io=True)


def test_a_file_in_float32_agrees_with_the_model(separable: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(separable, images())
    assert file.batch_size == 1
    assert (file.inputs, file.outputs) == (("input",), ("output",))
    agreement = verify_target(file, separable, images())
    assert agreement.difference < 1e-5
    assert agreement.batch_sizes == (64, 1)
    assert capfd.readouterr() == ("", "")


def test_every_operator_of_a_quantized_model_is_int8(integer_file: TargetFile) -> None:
    calls = Flatbuffer(integer_file.parts[".tflite"]).calls()
    assert {each for _, _, outputs in calls for each in outputs} == {"INT8"}
    assert "QUANTIZE" not in integer_file.details.operators
    assert "DEQUANTIZE" not in integer_file.details.operators
    layers = [inputs for name, inputs, _ in calls if "CONV" in name or name == "FULLY_CONNECTED"]
    assert layers == [("INT8", "INT8", "INT32")] * 4

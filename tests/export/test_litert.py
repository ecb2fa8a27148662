"""LiteRT's files compute what the model computes, and int8 models are int8 in them. Needs the extra `litert`."""

from __future__ import annotations

import copy
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.quantization.layers import quantized_spec
from kedro_aat.errors import ExportError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.litert import LitertTarget
from kedro_aat.export.targets.litert_file import Flatbuffer
from kedro_aat.export.targets.litert_settings import LitertSettings
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.export.verify import verify_file
from tests.compression.quantization.quantized import Branching, Separable, quantized, run, settled
from tests.export.nets import DEAD, Recurrent, TiedLanguageModel, dead
from tests.export.structured import CASES

pytest.importorskip("litert_converter")

TARGET = LitertTarget()


def write(model: nn.Module, inputs: Tensor, *, integer_io: bool = False) -> TargetFile:
    settings = ExportSettings(litert=LitertSettings(integer_io=integer_io))
    return TARGET.write(model, inputs, settings, to_onnx(model, inputs))


def difference(file: TargetFile, model: nn.Module, inputs: Tensor, tolerance: float = 0.1) -> float:
    return verify_file("LiteRT file", TARGET.read_back(file), model, inputs, tolerance=tolerance).difference


def images(num_examples: int = 64) -> Tensor:
    return torch.randn(num_examples, 3, 16, 16, generator=torch.Generator().manual_seed(0))


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


def test_a_file_in_float32_agrees_with_the_model_at_any_batch_size(
    separable: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(separable, images())
    assert file.batch_size == 1
    assert (file.inputs, file.outputs) == (("input",), ("output",))
    assert file.details.quantized_inputs == {}
    assert difference(file, separable, images(17)) < 1e-5
    assert capfd.readouterr() == ("", "")


def test_every_operator_of_a_quantized_model_is_int8(integer_file: TargetFile) -> None:
    calls = Flatbuffer(integer_file.parts[".tflite"]).calls()
    assert {each for _, _, outputs in calls for each in outputs} == {"INT8"}
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(integer_file.details.operators)
    layers = [inputs for name, inputs, _ in calls if "CONV" in name or name == "FULLY_CONNECTED"]
    assert layers == [("INT8", "INT8", "INT32")] * 4
    assert integer_file.details.not_on_microcontrollers == ()


def test_an_int8_file_has_the_ranges_and_weights_that_were_trained(
    integers: nn.Module, integer_file: TargetFile
) -> None:
    spec = quantized_spec(integers)
    assert spec is not None
    interpreter = import_module("ai_edge_litert.interpreter").Interpreter(model_content=integer_file.parts[".tflite"])
    tensors = interpreter.get_tensor_details()
    scales = {float(each["quantization"][0]): each["quantization"][1] for each in tensors if each["quantization"][0]}
    for tensor in spec.tensors:
        scale = min(scales, key=lambda known: abs(known - tensor.scale))
        assert scale == pytest.approx(tensor.scale, rel=1e-6)
        assert scales[scale] == tensor.zero_point - 128
    layer = integers.get_submodule("pointwise.0")
    (weight,) = [each for each in tensors if tuple(each["shape"]) == (64, 1, 1, 16)]
    parameters = weight["quantization_parameters"]
    assert isinstance(layer._buffers["weight"], Tensor)
    np.testing.assert_array_equal(
        interpreter.get_tensor(weight["index"])[:, 0, 0], layer._buffers["weight"][:, :, 0, 0]
    )
    np.testing.assert_allclose(parameters["scales"], layer.get_parameter("weight_scale").detach(), rtol=1e-6)
    assert not parameters["zero_points"].any()


def test_an_int8_file_differs_by_a_step_of_its_output(integers: nn.Module, integer_file: TargetFile) -> None:
    (port,) = integer_file.details.quantized_outputs.values()
    with torch.no_grad():
        got = TARGET.read_back(integer_file)(images())
    assert (got - run(integers, images())).abs().max() <= 2 * port.scale
    assert difference(integer_file, integers, images()) < 0.02


def test_floats_are_converted_at_the_ends_of_the_file(integers: nn.Module, integer_file: TargetFile) -> None:
    file = write(integers, images())
    assert file.details.quantized_inputs == {}
    assert file.details.quantized_outputs == {}
    calls = Flatbuffer(file.parts[".tflite"]).calls()
    assert calls[0] == ("QUANTIZE", ("FLOAT32",), ("INT8",))
    assert calls[-1] == ("DEQUANTIZE", ("INT8",), ("FLOAT32",))
    with torch.no_grad():
        assert torch.equal(TARGET.read_back(file)(images()), TARGET.read_back(integer_file)(images()))


def test_tensors_of_different_scales_are_joined() -> None:
    torch.manual_seed(0)
    model = quantized(settled(Branching(), images()), images()).strip().eval()
    file = write(model, images(), integer_io=True)
    assert {each for _, _, outputs in Flatbuffer(file.parts[".tflite"]).calls() for each in outputs} == {"INT8"}
    assert difference(file, model, images()) < 0.05


def test_an_average_is_rounded_to_its_trained_range() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 4, 3), nn.Flatten()
    model = quantized(settled(nn.Sequential(*layers), images()), images()).strip().eval()
    file = write(model, images(), integer_io=True)
    assert {each for _, _, outputs in Flatbuffer(file.parts[".tflite"]).calls() for each in outputs} == {"INT8"}
    assert difference(file, model, images()) < 0.02


class Features(nn.Module):
    """A convolution whose result is averaged, and returned too: (B, 3, 16, 16) -> (B, 4) and (B, 8, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x).relu()
        return self.head(x.mean((2, 3))), x


def test_every_reader_of_a_rounded_tensor_gets_its_layout() -> None:
    torch.manual_seed(0)
    model = quantized(Features().eval(), images()).strip().eval()
    assert difference(write(model, images()), model, images(5)) < 0.02


@pytest.mark.parametrize("name", DEAD)
def test_layers_around_what_was_always_zero_in_training_are_int8(name: str) -> None:
    model, inputs = dead(name)
    small = quantized(model, inputs).strip().eval()
    file = write(small, inputs)
    assert difference(file, small, inputs) < 0.02
    layers = [types for kind, types, _ in Flatbuffer(file.parts[".tflite"]).calls() if "CONV" in kind]
    assert {types[:2] for types in layers} == {("INT8", "INT8")}


def test_a_recurrent_layer_is_unrolled() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(8, 5, 8)
    model = Recurrent(nn.GRU(8, 6, batch_first=True)).eval()
    assert difference(write(model, inputs), model, inputs) < 1e-5


def test_tokens_are_taken_as_32_bit_integers() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(20, (4, 6))
    model = TiedLanguageModel().eval()
    assert difference(write(model, tokens), model, tokens) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_any_tensors_are_taken_and_returned(name: str) -> None:
    torch.manual_seed(0)
    kind, inputs, names, _ = CASES[name]
    model = kind().eval()
    file = TARGET.write(model, inputs, ExportSettings(), None)  # type: ignore[arg-type]  # unread
    assert list(file.inputs) == names
    verify_file("LiteRT file", TARGET.read_back(file), model, inputs, tolerance=1e-5)


class WithMean(nn.Module):
    """(B, 4) -> (B, 4) and a number for the whole batch."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.exp(), x.mean()


def test_an_output_without_a_batch_is_refused() -> None:
    with pytest.raises(ExportError, match=r"the output output\.1 of shape \(\) for 2 examples has no axis that grows"):
        TARGET.write(WithMean(), torch.randn(3, 4), ExportSettings(), None)  # type: ignore[arg-type]  # unread
    file = TARGET.write(WithMean(), torch.randn(3, 4), ExportSettings(outputs=["0"]), None)  # type: ignore[arg-type]
    assert file.outputs == ("output.0",)


def test_weights_are_aligned_for_processors_that_need_it(integer_file: TargetFile) -> None:
    content = integer_file.parts[".tflite"]
    model = import_module("ai_edge_litert.schema_py_generated").Model.GetRootAs(content)
    buffers = [model.Buffers(number).DataAsNumpy() for number in range(model.BuffersLength())]
    data = [buffer for buffer in buffers if isinstance(buffer, np.ndarray)]
    start = np.frombuffer(content, np.uint8).ctypes.data
    assert len(data) > 8
    assert all((buffer.ctypes.data - start) % 16 == 0 for buffer in data)


def test_one_run_is_bound(integers: nn.Module, integer_file: TargetFile) -> None:
    run_once = TARGET.bind(integer_file, [images(1).numpy()], num_threads=1)
    run_once()


class Factorizing(nn.Module):
    """(B, 3, 3) -> (B, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = torch.linalg.svdvals(x)
        return values


def test_the_error_names_the_operator_that_litert_lacks() -> None:
    with pytest.raises(
        ExportError, match=r"Factorizing cannot be written for LiteRT because of the operator aten.*svd"
    ):
        TARGET.write(Factorizing(), torch.randn(4, 3, 3), ExportSettings(), None)  # type: ignore[arg-type]  # unread


def test_an_invalid_file_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="LiteRT cannot load its file"):
        TARGET.read_back(TargetFile("litert", {".tflite": b"nothing"}, ("input",), ("output",)))
    assert capfd.readouterr() == ("", "")

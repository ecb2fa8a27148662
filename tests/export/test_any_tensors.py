"""Models with any tensors in and out: compressed, stripped, exported, read back, verified, measured."""

from __future__ import annotations

import copy
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import parse_compression
from kedro_aat.errors import ExportError
from kedro_aat.export import onnx_file
from kedro_aat.export.measure import arrays_of, measure_latency
from kedro_aat.export.memory import peak_memory
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.program import to_program
from kedro_aat.export.session import OnnxModel
from kedro_aat.export.settings import FileSettings
from kedro_aat.export.verify import read_back, verify_onnx, verify_program
from kedro_aat.model_inputs import call_model, named_tensors, take_examples
from tests.export.structured import CASES, Encoder, Heads, TwoInputs, mask, words


def names(values: Any) -> list[str]:
    return [value.name for value in values]


# Others of the same structure are in the default tests.
SLOW = {"positions", "ids", "heads"}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Any, list[str], list[str]]:
    torch.manual_seed(0)
    kind, inputs, given, returned = CASES[request.param]
    return kind().eval(), inputs, given, returned


class LikeTorch(nn.Module):
    """Parts are called as attributes of the modules that torch builds from programs: (B, 3), (B, 3) -> (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.meta, self.graph = nn.Sequential(nn.Linear(3, 8), nn.ReLU()), nn.Linear(3, 8)
        self.code = nn.Parameter(torch.randn(8, 2))

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        out: Tensor = (self.meta(a) * self.graph(a if b is None else b)) @ self.code
        return out


@pytest.mark.parametrize("num_inputs", [1, 2])
def test_parts_of_a_model_may_have_names_that_torch_uses(num_inputs: int) -> None:
    torch.manual_seed(0)
    model = LikeTorch().eval()
    inputs = (torch.randn(4, 3), torch.randn(4, 3))[:num_inputs]
    file = to_onnx(model, inputs)
    assert {"meta.0.weight", "graph.weight", "code"} <= set(names(file.graph.initializer))
    verify_onnx(file, model, inputs, tolerance=1e-5)
    verify_program(to_program(model, inputs), model, inputs, tolerance=1e-5)


def test_a_file_has_a_named_input_and_output_for_each_tensor(case: tuple[nn.Module, Any, list[str], list[str]]) -> None:
    model, inputs, given, returned = case
    file = to_onnx(model, inputs)
    assert (names(file.graph.input), names(file.graph.output)) == (given, returned)
    assert verify_onnx(file, model, inputs, tolerance=1e-5).batch_sizes == (4, 1)
    program = to_program(model, inputs)
    verify_program(program, model, inputs, tolerance=1e-5)

    expected = call_model(model, inputs)
    for runner in (OnnxModel(file), read_back(program)):
        got = call_model(runner, inputs)
        assert [path for path, _ in named_tensors(got)] == [path for path, _ in named_tensors(expected)]
        for (_, left), (_, right) in zip(named_tensors(got), named_tensors(expected), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)

    ((times),) = measure_latency([file], inputs, batch_sizes=[1, 7], seconds=0.01)
    assert set(times) == {1, 7}
    memory = peak_memory(file.SerializeToString(), {3: arrays_of(inputs, 3)})
    assert memory is None or memory[3] > 0


@pytest.mark.parametrize("algorithm", ["magnitude_sparsity", "quantization"])
@pytest.mark.parametrize(
    "name", ["names", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mask", "heads", "mapping"))]
)
def test_a_model_with_any_tensors_is_compressed_and_exported(name: str, algorithm: str) -> None:
    torch.manual_seed(0)
    kind, inputs, _, _ = CASES[name]
    settings = parse_compression({"algorithm": algorithm})
    controller = build_controller(kind(), settings, example_input=inputs)
    if hasattr(controller, "calibrate"):
        controller.calibrate([inputs, take_examples(inputs, slice(2))])
    controller.compression_rate = 0.5
    model = copy.deepcopy(controller).strip().eval()
    tolerance = 1e-5 if algorithm == "magnitude_sparsity" else 0.1
    verify_onnx(to_onnx(model, inputs), model, inputs, tolerance=tolerance)
    verify_program(to_program(model, inputs), model, inputs, tolerance=tolerance)


def test_parts_of_an_output_are_found_by_key_attribute_and_position() -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    file = OnnxModel(to_onnx(model, {"input_ids": words(), "output_hidden_states": True}))
    outputs, expected = file(words(2)), model(words(2), output_hidden_states=True)
    for logits in (outputs["logits"], outputs.logits, outputs[0]):
        torch.testing.assert_close(logits, expected.logits)
    torch.testing.assert_close(outputs.hidden_states[1], expected.hidden_states[1])
    with pytest.raises(AttributeError, match="no output 'loss', but logits, hidden_states"):
        _ = outputs.loss
    with pytest.raises(KeyError, match="no output 'loss'"):
        _ = outputs["loss"]


def test_a_file_is_called_by_position_by_name_or_with_a_structure() -> None:
    torch.manual_seed(0)
    model = TwoInputs().eval()
    left, right = torch.randn(3, 6), torch.randn(3, 4)
    file = OnnxModel(to_onnx(model, (left, right)))
    calls: list[Tensor] = [
        file(left, right),
        file(left, numbers=right),
        file(numbers=right, image=left),
        file({"numbers": right, "image": left}),
        file([left, right]),
    ]
    for got in calls:
        torch.testing.assert_close(got, model(left, right))
    with pytest.raises(ExportError, match=r"takes 2 tensors \(image, numbers\), but got 1"):
        file(left)
    with pytest.raises(ExportError, match="no input 'other', but image, numbers"):
        file(left, other=right)


def test_names_and_outputs_are_chosen_and_the_file_still_answers_like_the_model() -> None:
    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(4, 6)
    settings = FileSettings(input_names=("features",), outputs=("hidden",), output_names=("score",))
    file = to_onnx(model, x, settings)
    assert (names(file.graph.input), names(file.graph.output)) == (["features"], ["score"])
    torch.testing.assert_close(
        OnnxModel(onnx.ModelProto.FromString(file.SerializeToString()))(x).hidden, model(x).hidden
    )
    verify_onnx(file, model, x, tolerance=1e-5)
    verify_program(to_program(model, x, settings), model, x, tolerance=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (FileSettings(outputs=("loss",)), "returns no loss: name some of its outputs.*logits, hidden"),
        (FileSettings(output_names=("a",)), "output_names has 1 names, but there are 2: logits, hidden"),
        (FileSettings(input_names=("body.weight",)), "input_names: body.weight also names another tensor"),
        (FileSettings(dynamic_axes={"image": (1,)}), "dynamic_axes names image, but the inputs are input"),
        (FileSettings(dynamic_axes={"input": (2,)}), "names axis 2 of input, which has 2 axes"),
    ],
    ids=lambda value: None if isinstance(value, FileSettings) else value[:20],
)
def test_wrong_names_are_one_clear_error(settings: FileSettings, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        to_onnx(Heads(), torch.randn(4, 6), settings)


class Reduced(nn.Module):
    """Outputs without a batch, of whole numbers, and of truth values."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.head(x)
        return {
            "label": logits.argmax(1),
            "mean": logits.mean(),
            "is_high": logits[:, 0] > 0,
            "gram": self.head.weight @ self.head.weight.T,
        }


def test_outputs_of_any_type_and_without_a_batch_are_compared() -> None:
    torch.manual_seed(0)
    model, x = Reduced().eval(), torch.randn(40, 6)
    file = to_onnx(model, x)
    assert verify_onnx(file, model, x, tolerance=1e-5).difference < 1e-5
    verify_program(to_program(model, x), model, x, tolerance=1e-5)
    with torch.no_grad():
        model.head.weight[0] = 100.0
    with pytest.raises(ExportError, match="differs from its model"):
        verify_onnx(file, model, x, tolerance=1e-5)


def test_a_model_that_is_too_large_for_a_file_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Encoder()
    num_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(onnx_file, "MOST_BYTES", num_bytes)
    onnx_file.refuse_too_large(model)
    monkeypatch.setattr(onnx_file, "MOST_BYTES", num_bytes - 1)
    monkeypatch.setattr(onnx_file, "trace", None)  # it is not reached
    with pytest.raises(ExportError, match=f"^{num_bytes:,} bytes are the tensors of Encoder"):
        to_onnx(model, {"input_ids": words(), "attention_mask": mask()})

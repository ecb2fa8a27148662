"""A file that takes raw numbers computes what the delivered one computes of inputs that are prepared by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import Tensor, nn

from kedro_aat.errors import ConfigurationError, ExportError
from kedro_aat.export.described import Preprocessing
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.preprocessing import verified_with_preprocessing, with_preprocessing
from kedro_aat.export.session import OnnxModel, open_session

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGES: dict[str, Any] = {"scale": 1 / 255, "mean": MEAN, "std": STD}

SIMPLE = """<ir_version: 8, opset_import: ["" : 18]>
simple (float[batch, 3, 8, 8] input) => (float[batch, 3, 8, 8] output) <float[1] two = {2.0}> {
    output = Mul (input, two)
}"""
WORDS = """<ir_version: 8, opset_import: ["" : 18]>
words (int64[batch, 3] input) => (float[batch, 3] output) { output = Cast <to: int = 1> (input) }"""


def standardized(raw: Any) -> Any:
    return (raw / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))


class TwoInputs(nn.Module):
    """Takes an image and a table row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(5, 2)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return torch.cat([self.conv(image).mean((2, 3)), self.linear(row)], 1)


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return onnx.parser.parse_model(SIMPLE)


@pytest.fixture(scope="module")
def two_inputs() -> onnx.ModelProto:
    torch.manual_seed(0)
    return to_onnx(TwoInputs(), (torch.zeros(2, 3, 8, 8), torch.zeros(2, 5)))


def settings(inputs: dict[str, Any], **more: Any) -> Preprocessing:
    return Preprocessing.model_validate({"inputs": inputs, "in_file": True} | more)


@pytest.mark.parametrize(
    ("scaling", "prepare"),
    [
        (IMAGES, standardized),
        ({"scale": 2.0}, lambda raw: 2 * raw),
        ({"mean": 3.5, "std": 2.0}, lambda raw: (raw - 3.5) / 2),
        ({}, lambda raw: raw),
    ],
)
@pytest.mark.parametrize("raw_type", ["uint8", "float32", "int64"])
def test_outputs_are_those_of_inputs_prepared_by_hand(
    network: onnx.ModelProto, scaling: dict[str, Any], prepare: Any, raw_type: str
) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8)).astype(raw_type)
    file = verified_with_preprocessing(network, settings({"input": scaling | {"raw_type": raw_type}}))
    (given,) = open_session(file.SerializeToString()).get_inputs()
    assert (given.name, given.shape[1:]) == ("raw_input", [3, 8, 8])
    (found,) = open_session(file.SerializeToString()).run(None, {"raw_input": raw})
    by_hand = prepare(raw.astype(np.float64)).astype(np.float32)
    (expected,) = open_session(network.SerializeToString()).run(None, {"input": by_hand})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_only_the_named_input_is_prepared(two_inputs: onnx.ModelProto) -> None:
    file = with_preprocessing(two_inputs, settings({"image": IMAGES | {"raw_type": "uint8"}}))
    assert [value.name for value in file.graph.input] == ["raw_image", "row"]
    image = np.full((2, 3, 8, 8), 200, dtype=np.uint8)
    row = np.ones((2, 5), dtype=np.float32)
    (found,) = open_session(file.SerializeToString()).run(None, {"raw_image": image, "row": row})
    by_hand = standardized(image).astype(np.float32)
    (expected,) = open_session(two_inputs.SerializeToString()).run(None, {"image": by_hand, "row": row})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # It is still called as the model is.
    called = OnnxModel(file)(image=torch.from_numpy(image), row=torch.from_numpy(row))
    np.testing.assert_allclose(called.numpy(), found, rtol=1e-6)


def test_delivered_file_stays_as_it_is(network: onnx.ModelProto) -> None:
    before = network.SerializeToString()
    with_preprocessing(network, settings({"input": IMAGES}))
    assert network.SerializeToString() == before


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": {}}, "names the input image, but the file has input"),
        ({"input": {"mean": [0.5, 0.5]}}, "mean of input has 2 numbers, but axis 1 has 3"),
        ({"input": {"std": [0.5, 0.5], "axis": 4}}, "input has 4 axes, but axis is 4"),
    ],
)
def test_settings_that_do_not_fit_the_file(network: onnx.ModelProto, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        with_preprocessing(network, settings(inputs))


def test_words_are_not_scaled() -> None:
    words = onnx.parser.parse_model(WORDS)
    with pytest.raises(ExportError, match="takes int64, not fractions"):
        with_preprocessing(words, settings({"input": {"scale": 2.0}}))


def test_file_that_differs_is_refused(network: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedro_aat.export.preprocessing.scaled", lambda raw, _: raw.astype(np.float32))
    with pytest.raises(ExportError, match="of the largest output is the difference"):
        verified_with_preprocessing(network, settings({"input": IMAGES}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"in_file": True}, "needs `inputs`"),
        ({"inputs": {"input": {"std": 0.0}}}, "must be above 0, but got 0"),
        ({"inputs": {"input": {"scale": -1.0}}}, "scale"),
    ],
)
def test_mistakes_in_the_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Preprocessing.model_validate(given)

"""The model card's part for each target: what its file takes, and examples that run."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.details import QuantizedPort, TargetDetails
from kedro_aat.export.targets.registry import TARGETS, TargetName, missing, target_of
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.reporting.model_card import model_card
from tests.reporting.runs import onnx_model, summary_of


def card_of(file: TargetFile) -> str:
    return model_card(summary_of("within_budget"), onnx_model(), "model.onnx", others=[file])


def code_of(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def made_up(target: TargetName, parts: Mapping[str, bytes], **details: object) -> TargetFile:
    return TargetFile(target, parts, ("input",), ("output",), 1, TargetDetails.model_validate(details))


LITERT = made_up(
    "litert",
    {".tflite": b"no model"},
    operators=("CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "UNIDIRECTIONAL_SEQUENCE_LSTM"),
    arena_bytes=3200,
    runtime_bytes=1800,
    quantized_inputs={"input": QuantizedPort(dtype="int8", scale=0.1, zero_point=-128)},
    quantized_outputs={"output": QuantizedPort(dtype="int8", scale=0.25, zero_point=3)},
)


def test_what_a_microcontroller_needs() -> None:
    card = card_of(LITERT)
    assert "| name | `model.tflite`, 8 bytes |" in card
    assert f"`{hashlib.sha256(b'no model').hexdigest()}`" in card
    assert "| examples in a run | 1 |" in card
    assert "| memory that its plan takes | 3,200 bytes |" in card
    assert "| memory of a microcontroller's runtime beside it, at most | 1,800 bytes |" in card
    assert "`CONV_2D`, `FULLY_CONNECTED`" in card
    assert "| input | `input` | 1 x 3 | float32 | int8, scale 0.1, zero point -128 |" in card
    assert "round(x / scale) + zero point" in card
    (code,) = code_of(card, "cpp")
    assert "not compiled here" in card
    assert "MicroMutableOpResolver<4>" in code
    assert "kArenaBytes = 9096;" in code
    for added in ("AddConv2D", "AddFullyConnected", "AddMaxPool2D", "AddUnidirectionalSequenceLSTM"):
        assert f"resolver.{added}();" in code
    assert "int8_t* input0" in code


def test_example_of_integers_rounds_and_scales() -> None:
    _, code = code_of(card_of(LITERT), "python")
    # What the runtime does is left out: it takes and gives the integers.
    lines = [line for line in code.splitlines() if "interpreter" not in line.lower() and "run(" not in line]
    body = "\n".join(line for line in lines if not line.startswith("    for "))
    found: dict[str, object] = {}
    head, _, tail = body.partition("outputs[")
    exec(f'{head}\noutputs = {{"output": np.array([[3, 7]], dtype="int8")}}\noutputs[{tail}', found)
    inputs, outputs = found["inputs"], found["outputs"]
    assert isinstance(inputs, dict)
    assert isinstance(outputs, dict)
    assert inputs["input"].dtype == "int8"
    assert inputs["input"].tolist() == [[-128, -123, -118]]  # 0, 0.5 and 1
    assert outputs["output"].tolist() == [[0.0, 1.0]]


def test_file_that_cannot_be_run_here_has_no_outputs() -> None:
    card = card_of(made_up("executorch", {".pte": b"no program"}, operators=("aten::add.out",)))
    assert "The file was not run on them here" in card
    first, second = code_of(card, "python")
    assert "assert_allclose" in first
    assert "assert_allclose" not in second
    assert 'load_program("model.pte")' in second
    assert "from_blob(values0.data(), {1, 3})" in code_of(card, "cpp")[0]


class Words(nn.Module):
    """Numbers of words and their weights -> scores, for any number of words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        scores: Tensor = self.head((self.embedding(ids) * weights[..., None]).sum(1))
        return scores


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("onnx", "pt2")])
def test_the_examples_of_a_target_run(name: TargetName, tmp_path: Path) -> None:
    """Of an image, and of two inputs of two types with an axis of any size."""
    if (reason := missing(name)) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    target, settings = target_of(name), ExportSettings()
    codes: list[str] = []
    image = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), torch.rand(2, 1, 8, 8)
    words = Words(), (torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.rand(2, 3))
    cases: list[tuple[nn.Module, Any]] = [image, words]
    for model, inputs in cases:
        onnx = to_onnx(model.eval(), inputs)
        file = target.write(model, inputs, settings, onnx)
        stem = f"model{len(codes)}"
        for suffix, content in file.parts.items():
            (tmp_path / f"{stem}{suffix}").write_bytes(content)
        card = model_card(summary_of("within_budget"), onnx, f"{stem}.onnx", others=[file])
        codes.append(code_of(card, "python")[1])
        assert codes[-1].count("assert_allclose") == len(file.outputs)
    # In a process of its own, as a reader runs it.
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(codes)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

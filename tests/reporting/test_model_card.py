"""The model card of a file with several inputs and outputs: its example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.reporting.model_card import model_card
from tests.export.structured import CASES
from tests.reporting.runs import summary_of


@pytest.mark.parametrize("name", ["mask", "states", "heads", "mapping"])
def test_the_example_of_a_card_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    kind, inputs, given, returned = CASES[name]
    file = to_onnx(kind(), inputs)
    card = model_card(summary_of("within_budget"), file, "model.onnx")
    assert all(f"`{tensor}`" in card for tensor in (*given, *returned))
    assert "The file has opset 18 and IR version 8: onnxruntime 1.15 and later load it." in card

    onnx.save(file, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    assert list(found["outputs"]) == returned

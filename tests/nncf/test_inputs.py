"""`input_info` describes one tensor or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from kedro_aat import create_compressed_model
from kedro_aat.errors import ConfigurationError
from kedro_aat.nncf.config import InputInfo
from kedro_aat.nncf.inputs import described_inputs
from tests.export.structured import Encoder, TwoInputs


def entries(*values: dict[str, Any]) -> list[InputInfo]:
    return [InputInfo.model_validate(value) for value in values]


def test_one_entry_is_a_tensor_of_zeros() -> None:
    made = described_inputs(entries({"sample_size": [2, 3]}))
    assert torch.equal(made, torch.zeros(2, 3))


def test_entries_are_positional_or_named() -> None:
    first, second = described_inputs(
        entries({"sample_size": [2], "filler": "ones"}, {"sample_size": [3], "type": "long"})
    )
    assert (first.tolist(), second.dtype) == ([1.0, 1.0], torch.int64)
    named = described_inputs(entries({"sample_size": [50], "type": "long", "filler": "random", "keyword": "ids"}))
    assert set(named["ids"].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"sample_size": [1], "type": "complex"}], "type must be float, long, but got 'complex'"),
        ([{"sample_size": [1], "filler": "fives"}], "filler must be zeros, ones, random, but got 'fives'"),
        ([{"sample_size": [1], "keyword": "a"}, {"sample_size": [1]}], "give each entry a keyword, or none"),
    ],
)
def test_mistakes_are_told(values: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        described_inputs(entries(*values))


@pytest.mark.parametrize(
    ("model", "info", "names"),
    [
        (TwoInputs(), [{"sample_size": [2, 6]}, {"sample_size": [2, 4]}], ["image", "numbers"]),
        (
            Encoder(),
            [
                {"sample_size": [2, 5], "type": "long", "keyword": "input_ids"},
                {"sample_size": [2, 5], "type": "long", "filler": "ones", "keyword": "attention_mask"},
            ],
            ["input_ids", "attention_mask"],
        ),
    ],
)
@pytest.mark.parametrize("algorithm", ["magnitude_sparsity", "quantization"])
def test_export_model_writes_a_file_with_all_inputs(
    model: torch.nn.Module, info: list[dict[str, Any]], names: list[str], algorithm: str, tmp_path: Path
) -> None:
    config = {"input_info": info, "compression": {"algorithm": algorithm}}
    controller, _ = create_compressed_model(type(model)(), config)
    controller.export_model(tmp_path / "model.onnx")
    assert [value.name for value in onnx.load(tmp_path / "model.onnx").graph.input] == names

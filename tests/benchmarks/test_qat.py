"""The benchmark beside torchao, on a network and data of a few kilobytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.qat.beside_torchao import train
from benchmarks.qat.files import in_turns, int8_weights, judge, operators
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.pipelines.digits.model import ResidualCNN


@pytest.fixture
def data() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"inputs": torch.rand(64, 1, 8, 8), "targets": torch.randint(10, (64,))}


@pytest.mark.parametrize("engine", ["kedro-aat", "torchao PT2E"])
def test_an_engine_trains_a_model_whose_file_holds_int8(engine: str, data: dict[str, Tensor]) -> None:
    if engine.startswith("torchao"):
        pytest.importorskip(
            "torchao", reason="torchao is not a dependency of this project; pip install torchao==0.18.0"
        )
    model = ResidualCNN(widths=(8,))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finished, seconds = train(model, engine, data, num_epochs=1, seed=0)
    assert set(seconds) == {"CPU s to prepare", "CPU s to finish"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    file = to_onnx(finished, data["inputs"])
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    assert sum(weight.numel() for weight in int8_weights(file)) == weights
    assert "QLinearConv" in operators(file)["onnxruntime, integer"]
    accuracy, loss = judge(file, data)
    assert 0 <= accuracy <= 1
    assert 0 < loss < 10


def test_every_other_turn_goes_backwards() -> None:
    calls: list[str] = []
    turns = in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, seconds=0, repeats=1)  # type: ignore[misc]
    assert len(turns) == 7
    assert calls[:4] == ["b", "a", "a", "b"]
    assert all(set(turn) == {"a", "b"} for turn in turns)

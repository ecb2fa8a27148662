"""A model as files: how they are evaluated, and what is measured."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from kedro_aat.delivery import files as delivery_files
from kedro_aat.delivery.files import Files, evaluate_file, files_of, measure
from kedro_aat.export.measure import Latency
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.training.settings import TrainingSettings

INPUTS = torch.rand(4, 6)
SETTINGS = ExportSettings(batch_sizes=(1, 2), num_threads=3, latency_seconds=0.25)


def onnx_model(name: str) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([], name, [], []))


class FixedMeasurements:
    """Replaces measurements in onnxruntime and OpenVINO; the latency of a file is its position."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.latency_calls: list[tuple[Any, ...]] = []
        self.memory_calls: list[tuple[Any, ...]] = []
        monkeypatch.setattr(delivery_files, "measure_latency", self.measure_latency)
        monkeypatch.setattr(delivery_files, "peak_memory", self.peak_memory)

    def measure_latency(
        self, files: Sequence[object], inputs: Tensor, *, batch_sizes: Sequence[int], num_threads: int, seconds: float
    ) -> list[dict[int, Latency]]:
        self.latency_calls.append((files, inputs, batch_sizes, num_threads, seconds))
        return [
            {size: Latency(number + size / 10, (number + 0.01, number + 0.02), number + 0.001) for size in batch_sizes}
            for number in range(len(files))
        ]

    def peak_memory(self, file: bytes, batches: Mapping[int, Sequence[Any]]) -> dict[int, int]:
        assert all(batch[0].shape == (size, *INPUTS.shape[1:]) for size, batch in batches.items())
        assert not any(np.isin(batch[0], INPUTS.numpy()).any() for batch in batches.values())  # they go to a file
        self.memory_calls.append((file, tuple(batches)))
        return {size: 1000 * size for size in batches}


def test_costs_of_every_model_and_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes = FixedMeasurements(monkeypatch)
    sparse = nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        sparse.weight[0] = 0
    files = [Files(onnx_model("first")), Files(onnx_model("the second one"))]
    serialized = [each.onnx.SerializeToString() for each in files]
    costs = measure([nn.Linear(6, 8, bias=False), sparse], files, INPUTS, SETTINGS)
    assert [each.parameters for each in costs] == [48, 24]
    assert [each.nonzero_parameters for each in costs] == [48, 18]
    assert [each.macs for each in costs] == [48, 24]
    assert [each.onnx_bytes for each in costs] == [len(file) for file in serialized]
    assert [each.onnx_sha256 for each in costs] == [hashlib.sha256(file).hexdigest() for file in serialized]
    assert [each.onnx_gzip_bytes for each in costs] == [len(gzip.compress(file, mtime=0)) for file in serialized]
    assert [each.peak_memory_bytes for each in costs] == [{1: 1000, 2: 2000}] * 2
    assert [each.latency_ms for each in costs] == [{1: 0.1, 2: 0.2}, {1: 1.1, 2: 1.2}]
    assert [each.latency_quartiles_ms for each in costs] == [
        {1: (0.01, 0.02), 2: (0.01, 0.02)},
        {1: (1.01, 1.02), 2: (1.01, 1.02)},
    ]
    assert [each.latency_fastest_ms for each in costs] == [{1: 0.001, 2: 0.001}, {1: 1.001, 2: 1.001}]
    assert [each.openvino_bytes for each in costs] == [None, None]
    assert [each.openvino_latency_ms for each in costs] == [None, None]
    assert [each.openvino_latency_quartiles_ms for each in costs] == [None, None]
    assert [each.openvino_latency_fastest_ms for each in costs] == [None, None]
    assert runtimes.latency_calls == [(serialized, INPUTS, (1, 2), 3, 0.25)]
    assert runtimes.memory_calls == [(file, (1, 2)) for file in serialized]


def openvino_file(weights: bytes) -> TargetFile:
    return TargetFile("openvino", {".xml": b"xml", ".bin": weights}, ("input",), ("output",))


def test_files_of_other_targets_are_timed_in_the_same_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes = FixedMeasurements(monkeypatch)
    openvino = [openvino_file(b"weights"), openvino_file(b"more weights")]
    files = [Files(onnx_model(name), {"openvino": each}) for name, each in zip("ab", openvino, strict=True)]
    costs = measure([nn.Linear(6, 4), nn.Linear(6, 2)], files, INPUTS, SETTINGS)
    assert [each.openvino_bytes for each in costs] == [each.num_bytes for each in openvino] == [10, 15]
    assert [each.latency_ms for each in costs] == [{1: 0.1, 2: 0.2}, {1: 1.1, 2: 1.2}]
    assert [each.openvino_latency_ms for each in costs] == [{1: 2.1, 2: 2.2}, {1: 3.1, 2: 3.2}]
    assert [each.targets["openvino"].latency_ms for each in costs] == [{1: 2.1, 2: 2.2}, {1: 3.1, 2: 3.2}]
    assert [each.openvino_latency_fastest_ms for each in costs] == [{1: 2.001, 2: 2.001}, {1: 3.001, 2: 3.001}]
    (call,) = runtimes.latency_calls
    assert call[0] == [*(each.onnx.SerializeToString() for each in files), *openvino]


@pytest.mark.parametrize("openvino", [True, False])
def test_files_are_those_that_the_settings_ask_for(monkeypatch: pytest.MonkeyPatch, openvino: bool) -> None:
    file, converted, model = onnx_model("exported"), openvino_file(b"weights"), nn.Linear(6, 4)
    settings = SETTINGS.model_copy(update={"openvino": openvino})

    class Converter:
        def write(self, *arguments: object) -> TargetFile:
            assert arguments == (model, INPUTS, settings, file)
            return converted

    def to_onnx(*arguments: object, search: bool) -> onnx.ModelProto:
        assert (arguments, search) == ((model, INPUTS, settings), True)
        return file

    monkeypatch.setattr(delivery_files, "to_onnx", to_onnx)
    monkeypatch.setattr(delivery_files, "target_of", {"openvino": Converter()}.get)
    assert files_of(model, INPUTS, settings) == Files(file, {"openvino": converted} if openvino else {})


class Recorder(nn.Module):
    """Records how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, bool, bool]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        self.calls.append((inputs.device.type, autocast, torch.compiler.is_compiling()))
        return inputs[:, :2]


def test_a_file_is_evaluated_on_the_cpu_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    training = TrainingSettings.model_validate(
        {
            "batch_size": 8,
            "optimizer": "torch.optim.SGD",
            "metric": {
                "class_path": "torchmetrics.classification.MulticlassAccuracy",
                "init_args": {"num_classes": 2, "average": "micro"},
            },
            "precision": "bf16",
            "compile": True,
        }
    ).model_copy(update={"device": "cuda"})
    monkeypatch.setattr(torch, "compile", lambda *arguments, **options: pytest.fail("a file cannot be compiled"))
    inputs = torch.rand(20, 2)
    targets = inputs.argmax(dim=1)
    targets[:5] = 1 - targets[:5]
    file = Recorder()
    evaluation = evaluate_file(file, {"inputs": inputs, "targets": targets}, training)
    assert evaluation.metric == pytest.approx(0.75)
    assert file.calls == [("cpu", False, False)] * 3

"""Made-up models and files, on which `deliver` decides without an export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from kedro_aat.budget import Budget
from kedro_aat.delivery.candidates import Candidate
from kedro_aat.delivery.deliver import Exported, deliver
from kedro_aat.delivery.files import Files
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.measurements import FileAgreement, Measurements
from kedro_aat.delivery.on_device import Device
from kedro_aat.delivery.results import ExportResult
from kedro_aat.errors import ExportError, MetricError
from kedro_aat.export.measure import Latency
from kedro_aat.export.settings import ExportSettings
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.settings import TrainingSettings

DATA = {"inputs": torch.arange(100.0)[:, None], "targets": torch.zeros(100)}
BUDGET = Budget(baseline=0.75, drop=0.25)
TRAINING = TrainingSettings.model_validate(
    {"batch_size": 8, "optimizer": "torch.optim.SGD", "metric": "torchmetrics.classification.BinaryAccuracy"}
)
KINDS = ("onnx", "pt2", "openvino")


class Made(nn.Module):
    """A model of which everything is made up that its files would show."""

    def __init__(self, **properties: Any) -> None:
        super().__init__()
        self.metrics: dict[str, float] = dict.fromkeys(KINDS, 0.7) | properties.pop("metrics", {})
        self.differences: dict[str, float] = dict.fromkeys(KINDS, 0.0) | properties.pop("differences", {})
        self.guards: dict[str, float] = dict.fromkeys(KINDS, 0.8) | properties.pop("guards", {})
        self.bytes: int = properties.pop("bytes", 1000)
        self.parameters_: int = properties.pop("parameters", 100)
        self.macs: int = properties.pop("macs", 10)
        self.fastest: dict[int, float] = properties.pop("fastest", {1: 1.0, 4: 2.0})
        self.median: dict[int, float] = properties.pop("median", {1: 1.5, 4: 3.0})
        self.zeros: tuple[int, int] | None = properties.pop("zeros", None)
        self.spec: str | None = properties.pop("spec", None)
        self.on_device: Any = properties.pop("on_device", None)
        assert not properties

    def SerializeToString(self) -> bytes:  # noqa: N802 as ONNX calls it
        return self.on_device if isinstance(self.on_device, bytes) else json.dumps(self.on_device).encode()


@dataclass
class Tools:
    """Stands for the exporter and the runtimes, and notes with what they were called."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def files_of(self, model: Made, inputs: Tensor, settings: ExportSettings, targets: Sequence[str]) -> Any:
        self.calls.append(("files", model, len(inputs), model.training, "openvino" in targets))
        return Files(model, {"openvino": model} if "openvino" in targets else {})  # type: ignore[arg-type,dict-item]

    def to_program(self, model: Made, inputs: Tensor, settings: ExportSettings) -> Made:
        assert settings.dynamic_axes is None
        assert not model.training
        assert len(inputs) == 64
        return model

    def verify_read(self, read: tuple[str, Made], model: Made, inputs: Tensor, *, tolerance: float) -> FileAgreement:
        return self.verify(*read, model, inputs, tolerance=tolerance)

    def verify(self, kind: str, file: Made, model: Made, inputs: Tensor, *, tolerance: float) -> FileAgreement:
        assert file is model
        assert len(inputs) == 64
        difference = model.differences[kind]
        if difference > tolerance:
            raise ExportError(f"the {kind} file differs")
        return FileAgreement(difference=difference, same_labels=None, batch_sizes=(1,))

    def evaluate_file(
        self, file: tuple[str, Made], data: object, training: TrainingSettings, guards: object = ()
    ) -> Evaluation:
        assert data is DATA
        assert training is TRAINING
        kind, model = file
        if model.metrics[kind] != model.metrics[kind]:
            raise MetricError(f"the metric of the {kind} file is NaN")
        return Evaluation(model.metrics[kind], also={"recall": model.guards[kind]})

    def count_zeros(self, file: Made, names: Sequence[str]) -> tuple[int, int]:
        assert names == ["weight"]
        if file.zeros is None:
            raise ExportError("no such weight in the file")
        return file.zeros

    def measure(
        self, models: Sequence[Made], files: Sequence[Files], inputs: Tensor, settings: ExportSettings
    ) -> list[Measurements]:
        assert [each.onnx for each in files] == list(models)
        assert settings.latency_seconds
        assert len(inputs) == 64
        self.calls.append(("measure", *models))
        return [
            Measurements(
                parameters=model.parameters_,
                nonzero_parameters=1,
                macs=model.macs,
                onnx_bytes=model.bytes,
                onnx_gzip_bytes=1,
                latency_ms=model.median,
                latency_fastest_ms=model.fastest,
            )
            for model in models
        ]

    def measure_latency(
        self, files: Sequence[Made], inputs: Tensor, *, batch_sizes: Sequence[int], num_threads: int, seconds: float
    ) -> list[dict[int, Latency]]:
        assert (batch_sizes, num_threads, seconds) == ([1], 3, 0.25)
        assert len(inputs) == 64
        self.calls.append(("latency", *files))
        return [{1: Latency(file.median[1], (0.0, 0.0), file.fastest[1])} for file in files]


@dataclass
class MadeTarget:
    """Stands for a target, and says which one."""

    name: str

    def read_back(self, file: Made) -> tuple[str, Made]:
        return self.name, file


class MadeProgram(tuple[str, Made]):
    """Stands for a program that was read back."""

    num_bytes = 700

    def __new__(cls, file: Made) -> MadeProgram:
        return super().__new__(cls, ("pt2", file))


BASELINE = Made(bytes=9000)


def made(name: str, rate: float = 0.5, weight_names: Sequence[str] = (), **properties: Any) -> Candidate:
    return Candidate(name, 1, Made(**properties), rate, weight_names, 0.45, 0.01, 7)


def chosen(
    *candidates: Candidate, others: Sequence[Candidate] = (), budget: Budget = BUDGET, **settings: Any
) -> tuple[Exported | None, ExportResult]:
    export = ExportSettings.model_validate(
        {"batch_sizes": (1, 4), "num_threads": 3, "latency_seconds": 0.25, "tolerance": 0.001, **settings}
    )
    return deliver(candidates, iter(others), BASELINE, DATA, budget, TRAINING, export, "The search ended.")


def fast(name: str, milliseconds: float, **properties: Any) -> Candidate:
    return made(name, fastest={1: milliseconds, 4: 0.0}, **properties)


def small_file(number: float) -> Files:
    """An ONNX file that adds a number."""
    value = numpy_helper.from_array(np.full((1, 4), number, np.float32), "number")
    taken, given = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("input", "output")
    )
    node = helper.make_node("Add", ["input", "number"], ["output"])
    graph = helper.make_graph([node], "graph", [taken], [given], [value])
    return Files(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


def device(function: dict[str, Any], folder: Path | None = None, **settings: Any) -> Device:
    """The device that a function stands for; its answers are kept in the folder."""
    export = ExportSettings.model_validate({"measure_with": function, **settings})
    found = Device.of(export, FinishedSteps(folder))
    assert found is not None
    return found

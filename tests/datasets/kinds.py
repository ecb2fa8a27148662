"""What each dataset of files saves, and what tells apart what it loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import plotly.graph_objects as go
import torch
from kedro.io import AbstractDataset

from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.datasets.documents import FigureDataset, MarkdownDataset, PageDataset
from kedro_aat.datasets.exported import ExecutorchDataset, ExportedProgramDataset, OnnxDataset, OpenvinoDataset
from kedro_aat.datasets.imported import ImportedModelDataset
from kedro_aat.datasets.model import ControllerDataset, ModelDataset
from kedro_aat.datasets.tabular import TableDataset
from kedro_aat.datasets.tensors import TensorsDataset
from kedro_aat.export import NotExported
from kedro_aat.export.openvino_file import OpenvinoFiles
from kedro_aat.export.program import to_program
from kedro_aat.export.targets.target import TargetFile
from tests.datasets.saved import INPUTS, built, sparsity_controller


class Kind(NamedTuple):
    """A kind of dataset.

    Attributes:
        dataset: Its class.
        name: Name of its file or folder.
        versions: What is saved, one after the other.
        identity: What tells loaded versions apart.
        arguments: More arguments of the class.
    """

    dataset: Any
    name: str
    versions: Callable[[], list[Any]]
    identity: Callable[[Any], object]
    arguments: dict[str, Any] = {}  # noqa: RUF012  # not modified

    def at(self, folder: Path) -> AbstractDataset[Any, Any]:
        dataset: AbstractDataset[Any, Any] = self.dataset(filepath=str(folder / self.name), **self.arguments)
        return dataset

    def loaded(self, folder: Path) -> object:
        """Identity of what is loaded; None if there is nothing."""
        dataset = self.at(folder)
        return self.seen(dataset.load()) if dataset.exists() else None

    def seen(self, data: Any) -> object:
        """Identity of what was loaded."""
        return data.reason if isinstance(data, NotExported) else self.identity(data)

    def entry(self, filepath: str, **more: Any) -> dict[str, Any]:
        """An entry of a catalog."""
        path = f"{self.dataset.__module__}.{self.dataset.__name__}"
        return {"type": path, "filepath": filepath, **self.arguments, **more}


def with_example(rate: float) -> MagnitudeSparsityController:
    controller = sparsity_controller(rate)
    controller.example_input = INPUTS
    return controller


def onnx_model(operator: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        graph (float[N] input) => (float[N] output) {{ output = {operator}(input) }}"""
    )


NONE = NotExported("no rate was within budget")
KINDS = {
    "model": Kind(
        ModelDataset,
        "model",
        lambda: [built(num_classes=3), built(num_classes=5), NONE],
        lambda model: model.classifier.out_features,
        {"trusted": ["tests"]},
    ),
    "controller": Kind(
        ControllerDataset,
        "controller",
        lambda: [with_example(0.3), sparsity_controller(0.5), with_example(0.5)],
        lambda controller: (controller.report(), controller.example_input is None),
        {"trusted": ["tests"]},
    ),
    "onnx": Kind(
        OnnxDataset,
        "model.onnx",
        lambda: [onnx_model("Relu"), onnx_model("Sigmoid"), NONE],
        lambda model: model.SerializeToString(),
    ),
    "program": Kind(
        ExportedProgramDataset,
        "model.pt2",
        lambda: [*(to_program(built(num_classes=number), INPUTS) for number in (3, 5)), NONE],
        lambda program: program.module()(INPUTS).shape,
        {"trusted": True},
    ),
    "openvino": Kind(
        OpenvinoDataset,
        "model.xml",
        lambda: [OpenvinoFiles(b"<first/>", b"first"), OpenvinoFiles(b"<second/>", b""), NONE],
        lambda files: files,
    ),
    "executorch": Kind(
        ExecutorchDataset,
        "model.pte",
        lambda: [*(TargetFile("executorch", {".pte": part}, ("x",), ("y",)) for part in (b"1", b"2")), NONE],
        lambda file: file,
    ),
    "page": Kind(PageDataset, "page.html", lambda: ["<p>1</p>" * 9000, "<p>2</p>"], lambda text: text),
    "figure": Kind(
        FigureDataset, "figure.json", lambda: [go.Figure(), go.Figure(go.Bar(y=[1])), NONE], lambda data: data.to_json()
    ),
    "tensors": Kind(
        TensorsDataset,
        "split.safetensors",
        lambda: [{"inputs": torch.zeros(size)} for size in (3, 4000)],
        lambda tensors: len(tensors["inputs"]),
        {"backend": "torch"},
    ),
}
# What users' nodes write, and what shares all that it does with one of the others.
MORE_KINDS = {
    "markdown": Kind(MarkdownDataset, "card.md", lambda: ["# 1", "# 2 \N{RIGHTWARDS ARROW}"], lambda text: text),
    "table": Kind(
        TableDataset,
        "split.csv",
        lambda: [{"inputs": torch.ones(n, 2), "targets": torch.zeros(n, dtype=torch.int64)} for n in (2, 3)],
        lambda split: split["inputs"].tolist(),
        {"target": "label", "save_args": {"sep": ";"}, "load_args": {"sep": ";"}},
    ),
    "imported": Kind(
        ImportedModelDataset,
        "weights.pt",
        lambda: [_linear(1), _linear(2)],
        lambda model: model.weight.tolist(),
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 1}},
    ),
}


def _linear(value: float) -> torch.nn.Linear:
    linear = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(linear.weight, value)
    return linear

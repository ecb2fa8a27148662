"""Datasets of exported files."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from kedro.io import AbstractDataset

from kedro_aat.datasets.folder import remove
from kedro_aat.datasets.previews import shape_text, table
from kedro_aat.export import NotExported

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview
    from onnx import ModelProto
    from torch.export import ExportedProgram

    from kedro_aat.export.openvino_file import OpenvinoFiles


class _FileDataset(AbstractDataset[Any, Any]):
    """One file, written under another name and renamed; in place of one that was not exported stands the reason."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)  # by this name Kedro-Viz finds the size
        self._reason = self._filepath.with_name(self._filepath.name + ".not_exported.txt")
        self.metadata = metadata

    def load(self) -> Any:
        """The file's contents, or `NotExported` where a run ended without one."""
        if self._reason.exists() and not self._filepath.exists():
            return NotExported(self._reason.read_text(encoding="utf-8"))
        return self._read()

    def save(self, data: Any) -> None:
        """Writes the file, or why there is none."""
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, NotExported):
            self._remove()
            self._reason.write_text(data.reason, encoding="utf-8")
            return
        self._reason.unlink(missing_ok=True)
        writing = self._filepath.with_name("writing-" + self._filepath.name)
        self._write(data, writing)
        os.replace(writing, self._filepath)

    def preview(self, nrows: int = 100) -> TablePreview:
        """The operators in their order, or why there are none; for Kedro-Viz."""
        if self._filepath.exists():
            return table(["operator", "weights"], self._operators()[:nrows])
        return table(["not exported"], [[self._reason.read_text(encoding="utf-8")]]) if self._reason.exists() else None

    def _operators(self) -> list[tuple[str, str]]:
        raise NotImplementedError  # each format has its own

    def _read(self) -> Any:
        raise NotImplementedError  # each format has its own

    def _write(self, data: Any, path: Path) -> None:
        raise NotImplementedError  # each format has its own

    def _remove(self) -> None:
        remove(self._filepath)

    def _exists(self) -> bool:
        return self._filepath.exists() or self._reason.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class OnnxDataset(_FileDataset):
    """An ONNX model.

    Args:
        filepath: The file.
        metadata: For Kedro-Viz.
    """

    def _read(self) -> ModelProto:
        import onnx

        return onnx.load(str(self._filepath))

    def _operators(self) -> list[tuple[str, str]]:
        graph = self._read().graph
        weights = {each.name: f"{each.name} ({shape_text(each.dims)})" for each in graph.initializer}
        return [
            (node.op_type, ", ".join(weights[name] for name in node.input if name in weights)) for node in graph.node
        ]

    def _write(self, data: ModelProto, path: Path) -> None:
        path.write_bytes(data.SerializeToString())


class ExportedProgramDataset(_FileDataset):
    """A `torch.export` program in PyTorch's own `.pt2` format.

    Args:
        filepath: The file.
        metadata: For Kedro-Viz.
    """

    def _read(self) -> ExportedProgram:
        import torch

        return torch.export.load(self._filepath)

    def _operators(self) -> list[tuple[str, str]]:
        # The program is one text in the archive; torch would read the weights as well.
        with zipfile.ZipFile(self._filepath) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/models/model.json"))
            module = json.loads(archive.read(name))["graph_module"]
        specs = [spec["parameter"] for spec in module["signature"]["input_specs"] if "parameter" in spec]
        weights = {spec["arg"]["name"]: spec["parameter_name"] for spec in specs}
        operators = []
        for node in module["graph"]["nodes"]:
            tensors = [each["arg"].get("as_tensor", {}).get("name") for each in node["inputs"]]
            used = ", ".join(weights[name] for name in tensors if name in weights)
            operators.append((node["target"].removeprefix("torch.ops."), used))
        return operators

    def _write(self, data: ExportedProgram, path: Path) -> None:
        import torch

        torch.export.save(data, path)


class OpenvinoDataset(_FileDataset):
    """OpenVINO's two files: the `.xml` file, and beside it the weights, `.bin` instead of `.xml`.

    Args:
        filepath: The `.xml` file.
        metadata: For Kedro-Viz.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self._weights = self._filepath.with_suffix(".bin")

    def _read(self) -> OpenvinoFiles:
        from kedro_aat.export.openvino_file import OpenvinoFiles

        return OpenvinoFiles(self._filepath.read_bytes(), self._weights.read_bytes())

    def _operators(self) -> list[tuple[str, str]]:
        layers = ElementTree.parse(self._filepath).iterfind("./layers/layer")
        # Weights are operators of their own here, called Const.
        return [(str(layer.get("type")), str(layer.get("name"))) for layer in layers if layer.get("type") != "Const"]

    def _write(self, data: OpenvinoFiles, path: Path) -> None:
        self._remove()  # a crash must not leave the graph of one model with the weights of another
        self._weights.write_bytes(data.weights)
        path.write_bytes(data.graph)

    def _remove(self) -> None:
        super()._remove()
        remove(self._weights)

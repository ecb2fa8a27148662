"""Datasets of exported files: ONNX, `torch.export` and OpenVINO."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, MutableSequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from kedro_aat.datasets.local import LocalDataset
from kedro_aat.datasets.previews import shape_text, table
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.export import NotExported

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview
    from onnx import ModelProto
    from torch.export import ExportedProgram

    from kedro_aat.export.openvino_file import OpenvinoFiles


class _FileDataset(LocalDataset[Any, Any]):
    """One file, which is written under a temporary name and then renamed.

    If nothing was exported, a text file with the reason replaces it.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self._filepath = self._path  # Kedro-Viz looks for this name to show the size of the file
        self._reason = self._filepath.with_name(self._filepath.name + ".not_exported.txt")

    def load(self) -> Any:
        """Reads the file; returns `NotExported` if the run ended without a file."""
        if self._reason.exists() and not self._filepath.exists():
            return NotExported(self._reason.read_text(encoding="utf-8"))
        return self._read()

    def save(self, data: Any) -> None:
        """Writes the file, or the reason why there is none."""
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
        """The operators in their order, or the reason why there are none; for Kedro-Viz."""
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
        self._filepath.unlink(missing_ok=True)

    def _exists(self) -> bool:
        return self._filepath.exists() or self._reason.exists()


class OnnxDataset(_FileDataset):
    """An ONNX model.

    Args:
        filepath: The file.
        metadata: For Kedro-Viz and other plugins.
    """

    def _read(self) -> ModelProto:
        import onnx

        model = onnx.load(str(self._filepath), load_external_data=False)
        # onnxruntime would read any file that the model names.
        if names := list(_names_of_external_tensors(model)):
            raise ModelError(
                f"{self._filepath} refers to other files for {len(names)} of its tensors, such as {names[0]!r}; they "
                "are not read. Save the model as one file: onnx.save(model, path)."
            )
        return model

    def _operators(self) -> list[tuple[str, str]]:
        graph = self._read().graph
        weights = {tensor.name: f"{tensor.name} ({shape_text(tensor.dims)})" for tensor in graph.initializer}
        return [
            (node.op_type, ", ".join(weights[name] for name in node.input if name in weights)) for node in graph.node
        ]

    def _write(self, data: ModelProto, path: Path) -> None:
        path.write_bytes(data.SerializeToString())


def _names_of_external_tensors(message: Any) -> Iterator[str]:
    """Names of the tensors in a part of an ONNX model, at any depth, whose values are in another file."""
    from onnx import TensorProto

    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, MutableSequence) else [value]:
                if isinstance(part, TensorProto) and part.data_location == TensorProto.EXTERNAL:
                    yield part.name
                yield from _names_of_external_tensors(part)


class ExportedProgramDataset(_FileDataset):
    """A `torch.export` program in PyTorch's own `.pt2` format.

    Args:
        filepath: The file.
        trusted: Whether the file may be loaded. It contains pickles and expressions, with which `torch.export.load`
            runs any code that is in the file.
        metadata: For Kedro-Viz and other plugins.
    """

    def __init__(self, *, filepath: str, trusted: bool = False, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        if not isinstance(trusted, bool):
            raise ConfigurationError("trusted", [f"must be true or false, but got {trusted!r}"])
        self._trusted = trusted

    def _read(self) -> ExportedProgram:
        import torch

        if self._filepath.exists() and not self._trusted:
            raise ModelError(
                f"{self._filepath} was not loaded: loading a .pt2 file runs any code that is in it. Load the model "
                "folder or the ONNX file of the same run instead, which run none (in the catalog of `kedro aat init`: "
                "compressed_model, compressed_onnx). If you know where the file comes from, add this line to its "
                "catalog entry:\n  trusted: true"
            )

        return torch.export.load(self._filepath)

    def _operators(self) -> list[tuple[str, str]]:
        # The program is one text in the archive; torch would also read the weights.
        with zipfile.ZipFile(self._filepath) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/models/model.json"))
            module = json.loads(archive.read(name))["graph_module"]
        specs = [spec["parameter"] for spec in module["signature"]["input_specs"] if "parameter" in spec]
        weights = {spec["arg"]["name"]: spec["parameter_name"] for spec in specs}
        operators = []
        for node in module["graph"]["nodes"]:
            tensors = [value["arg"].get("as_tensor", {}).get("name") for value in node["inputs"]]
            used_weights = ", ".join(weights[name] for name in tensors if name in weights)
            operators.append((node["target"].removeprefix("torch.ops."), used_weights))
        return operators

    def _write(self, data: ExportedProgram, path: Path) -> None:
        import torch

        torch.export.save(data, path)


class OpenvinoDataset(_FileDataset):
    """OpenVINO's two files: the graph as `.xml`, and the weights with the same stem as `.bin`.

    Args:
        filepath: The `.xml` file.
        metadata: For Kedro-Viz and other plugins.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self._weights = self._filepath.with_suffix(".bin")

    def _read(self) -> OpenvinoFiles:
        from kedro_aat.export.openvino_file import OpenvinoFiles

        return OpenvinoFiles(self._filepath.read_bytes(), self._weights.read_bytes())

    def _operators(self) -> list[tuple[str, str]]:
        layers = ElementTree.parse(self._filepath).iterfind("./layers/layer")
        # OpenVINO represents weights as operators of type Const.
        return [(str(layer.get("type")), str(layer.get("name"))) for layer in layers if layer.get("type") != "Const"]

    def _write(self, data: OpenvinoFiles, path: Path) -> None:
        self._remove()  # a crash must not leave the graph of one model with the weights of another
        self._weights.write_bytes(data.weights)
        path.write_bytes(data.graph)

    def _remove(self) -> None:
        super()._remove()
        self._weights.unlink(missing_ok=True)

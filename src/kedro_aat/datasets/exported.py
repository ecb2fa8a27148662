"""Datasets of exported files: ONNX, `torch.export`, OpenVINO, ExecuTorch and LiteRT."""

from __future__ import annotations

import base64
import io
import itertools
import json
import zipfile
from collections.abc import Iterator, MutableSequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree import ElementTree

from kedro.io import Version
from kedro.io.core import VersionNotFoundError

from kedro_aat.datasets.files import GroupDataset
from kedro_aat.datasets.previews import open_small, require_small, shape_text, table
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.export import NotExported
from kedro_aat.export.targets.registry import TARGETS, TargetName, not_asked_for
from kedro_aat.storage import FileGroup

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview
    from onnx import ModelProto
    from torch.export import ExportedProgram

    from kedro_aat.export.openvino_file import OpenvinoFiles
    from kedro_aat.export.targets.target import TargetFile

_MAX_ONNX_BYTES = 1 << 30  # of a file to show; it contains the weights


class _FileDataset(GroupDataset[Any, Any]):
    """Files in one format, or a text file with the reason if nothing was exported; they are replaced together.

    Attributes:
        OPTIONAL: Name of the target whose files are written on request only; None if every run writes them.
    """

    OPTIONAL: ClassVar[TargetName | None] = None

    @property
    def loads_without_file(self) -> bool:
        """Whether no file stands for one that was not asked for; of a versioned entry, no version at all."""
        if self.OPTIONAL is None or self._version is None:
            return self.OPTIONAL is not None
        # An entry that a later version of this package added has no versions yet, and the export need not be repeated.
        return self._version.load is None and not self._has_versions()

    def load(self) -> Any:
        """Reads the file; returns `NotExported` if the run ended without a file, or none was asked for."""
        is_there = not self.loads_without_file or (self._version is None and self._present(self._get_load_path()))
        if self.OPTIONAL is not None and not is_there:
            return not_asked_for(self.OPTIONAL)
        with self._reading_group() as files:
            if (reason := self._reason(files)) is not None:
                return NotExported(reason)
            return self._read(*(files.path(name) for name in self._formats(self._get_load_path())))

    def save(self, data: Any) -> None:
        """Writes the file, or the reason why there is none.

        Raises:
            StorageError: The file system refuses, or another process is writing the file.
        """
        path = self._get_save_path()
        if not isinstance(data, NotExported):
            self._replace(dict(zip(self._formats(path), self._contents(data), strict=True)))
        elif data.is_asked or self._version is not None:  # Kedro wants each version of a run to exist
            self._replace({_reason_of(path): data.reason.encode()})
        else:
            self._replace({})

    def preview(self, nrows: int = 100) -> TablePreview:
        """The operators in their order, or the reason why there are none; for Kedro-Viz."""
        if not self.exists():
            return None
        with self._reading_group(is_shown=True) as files:
            if (reason := self._reason(files)) is not None:
                return table(["not exported"], [[reason]])
            path = files.path(self._formats(self._get_load_path())[0])
            return table(["operator", "weights"], itertools.islice(self._operators(path), nrows))

    def _has_versions(self) -> bool:
        try:
            self.resolve_load_version()
        except VersionNotFoundError:
            return False
        return True

    def _operators(self, path: Path) -> Iterator[tuple[str, str]]:
        raise NotImplementedError  # each format has its own

    def _read(self, *paths: Path) -> Any:
        raise NotImplementedError  # each format has its own

    def _contents(self, data: Any) -> tuple[bytes, ...]:
        raise NotImplementedError  # each format has its own

    def _formats(self, path: PurePosixPath) -> tuple[str, ...]:
        """Names of the files of the format."""
        return (path.name,)

    def _reason(self, files: FileGroup) -> str | None:
        """Why there is no file; None if there is one, or nothing at all."""
        path = self._get_load_path()
        is_missing = not files.has(self._formats(path)[0]) and files.has(_reason_of(path))
        return files.path(_reason_of(path)).read_text(encoding="utf-8") if is_missing else None

    def _names(self, path: PurePosixPath) -> tuple[str, ...]:
        return (*self._formats(path), _reason_of(path))

    def _is_folder(self) -> bool:
        return False

    def _exists_at(self, path: str) -> bool:
        at = PurePosixPath(path)
        return not self._present(at).isdisjoint({self._formats(at)[0], _reason_of(at)})


def _reason_of(path: PurePosixPath) -> str:
    return f"{path.name}.not_exported.txt"


class OnnxDataset(_FileDataset):
    """An ONNX model.

    Args:
        filepath: The file, here or at an address such as `s3://bucket/model.onnx`.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
        metadata: For Kedro-Viz and other plugins.
    """

    def _read(self, *paths: Path) -> ModelProto:
        import onnx

        model = onnx.load(str(paths[0]), load_external_data=False)
        # onnxruntime would read any file that the model names.
        if names := list(_names_of_external_tensors(model)):
            raise ModelError(
                f"{self.where} refers to other files for {len(names)} of its tensors, such as {names[0]!r}; they "
                "are not read. Save the model as one file: onnx.save(model, path)."
            )
        return model

    def _operators(self, path: Path) -> Iterator[tuple[str, str]]:
        import onnx

        with open_small(path, _MAX_ONNX_BYTES) as file:
            graph = onnx.load(file, load_external_data=False).graph
        weights = {tensor.name: f"{tensor.name} ({shape_text(tensor.dims)})" for tensor in graph.initializer}
        for node in graph.node:
            yield node.op_type, ", ".join(weights[name] for name in node.input if name in weights)

    def _contents(self, data: ModelProto) -> tuple[bytes, ...]:
        return (data.SerializeToString(),)


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
        filepath: The file, as for `OnnxDataset`.
        trusted: Whether the file may be loaded. It contains pickles and expressions, with which `torch.export.load`
            runs any code that is in the file.
        save_args: More arguments of `torch.export.save`, such as `pickle_protocol`.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
        metadata: For Kedro-Viz and other plugins.
    """

    def __init__(
        self,
        *,
        filepath: str,
        trusted: bool = False,
        save_args: dict[str, Any] | None = None,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            filepath=filepath, version=version, credentials=credentials, fs_args=fs_args, metadata=metadata
        )
        if not isinstance(trusted, bool):
            raise ConfigurationError("trusted", [f"must be true or false, but got {trusted!r}"])
        self._trusted = trusted
        self._save_args = save_args or {}

    def _read(self, *paths: Path) -> ExportedProgram:
        import torch

        if paths[0].exists() and not self._trusted:
            raise ModelError(
                f"{self.where} was not loaded: loading a .pt2 file runs any code that is in it. Load the model "
                "folder or the ONNX file of the same run instead, which run none (in the catalog of `kedro aat init`: "
                "compressed_model, compressed_onnx). If you know where the file comes from, add this line to its "
                "catalog entry:\n  trusted: true"
            )

        return torch.export.load(paths[0])

    def _operators(self, path: Path) -> Iterator[tuple[str, str]]:
        # The program is one text in the archive; torch would also read the weights.
        with zipfile.ZipFile(path) as archive:
            (part,) = (part for part in archive.infolist() if part.filename.endswith("/models/model.json"))
            require_small(path, part.file_size)  # zipfile reads no more than this size
            module = json.loads(archive.read(part))["graph_module"]
        specs = [spec["parameter"] for spec in module["signature"]["input_specs"] if "parameter" in spec]
        weights = {spec["arg"]["name"]: spec["parameter_name"] for spec in specs}
        for node in module["graph"]["nodes"]:
            tensors = [value["arg"].get("as_tensor", {}).get("name") for value in node["inputs"]]
            used_weights = ", ".join(weights[name] for name in tensors if name in weights)
            yield node["target"].removeprefix("torch.ops."), used_weights

    def _contents(self, data: ExportedProgram) -> tuple[bytes, ...]:
        import torch

        archive = io.BytesIO()
        torch.export.save(data, archive, **self._save_args)
        return (archive.getvalue(),)


class OpenvinoDataset(_FileDataset):
    """OpenVINO's two files: the graph as `.xml`, and the weights with the same stem as `.bin`.

    Args:
        filepath: The `.xml` file, as for `OnnxDataset`.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
        metadata: For Kedro-Viz and other plugins.
    """

    OPTIONAL = "openvino"

    def _formats(self, path: PurePosixPath) -> tuple[str, ...]:
        return path.name, path.with_suffix(".bin").name

    def _read(self, *paths: Path) -> OpenvinoFiles:
        from kedro_aat.export.openvino_file import OpenvinoFiles

        return OpenvinoFiles(*(path.read_bytes() for path in paths))

    def _operators(self, path: Path) -> Iterator[tuple[str, str]]:
        with open_small(path) as file:
            layers = ElementTree.parse(file).iterfind("./layers/layer")
        for layer in layers:
            if layer.get("type") != "Const":  # OpenVINO represents weights as operators of this type
                yield str(layer.get("type")), str(layer.get("name"))

    def _contents(self, data: OpenvinoFiles) -> tuple[bytes, ...]:
        return data.graph, data.weights


class TargetDataset(_FileDataset):
    """A file for a target such as ExecuTorch, and beside it a JSON file that says how to run it.

    Reading it runs no code that is in it: the runtime that loads it later does, and knows only operators.

    Attributes:
        TARGET: Name of the target.
    """

    TARGET: ClassVar[TargetName]

    def _formats(self, path: PurePosixPath) -> tuple[str, ...]:
        return path.name, f"{path.name}.json"

    def _read(self, *paths: Path) -> TargetFile:
        from pydantic import TypeAdapter, ValidationError

        from kedro_aat.export.targets.target import TargetFile

        contents, description = (path.read_bytes() for path in paths)
        try:
            described = json.loads(description)
            parts = {TARGETS[self.TARGET].suffixes[0]: base64.b64encode(contents).decode()}
            file = TypeAdapter(TargetFile).validate_python({**described, "target": self.TARGET, "parts": parts})
        except (ValueError, TypeError, ValidationError) as error:
            raise ModelError(
                f"{self.where}.json does not describe the file: {error}. It is written with the file; export it again."
            ) from error
        return file

    def _operators(self, path: Path) -> Iterator[tuple[str, str]]:
        with open_small(path.with_name(f"{path.name}.json")) as file:
            for operator in json.load(file)["details"]["operators"]:
                yield str(operator), ""

    def _contents(self, data: TargetFile) -> tuple[bytes, ...]:
        from kedro_aat.export.targets.target import TargetFile

        if not isinstance(data, TargetFile) or data.target != self.TARGET:
            raise ModelError(f"{self.where} takes a file for {TARGETS[self.TARGET].title}, but got {data!r:.60}.")
        (contents,) = data.parts.values()
        return contents, data.description


class ExecutorchDataset(TargetDataset):
    """An ExecuTorch program (`.pte`), with what it takes and returns beside it as JSON.

    Args:
        filepath: The file, as for `OnnxDataset`.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
        metadata: For Kedro-Viz and other plugins.
    """

    TARGET = OPTIONAL = "executorch"


class LitertDataset(TargetDataset):
    """A LiteRT model (`.tflite`), with what it takes and returns beside it as JSON.

    Args:
        filepath: The file, as for `OnnxDataset`.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
        metadata: For Kedro-Viz and other plugins.
    """

    TARGET = OPTIONAL = "litert"

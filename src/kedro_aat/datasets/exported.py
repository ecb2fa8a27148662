"""Datasets of exported files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset

from kedro_aat.datasets.folder import remove
from kedro_aat.export.exported import NotExported

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

    from kedro_aat.export.openvino_file import OpenvinoFiles


class _FileDataset(AbstractDataset[Any, Any]):
    """One file, written under another name and renamed; in place of one that was not exported stands the reason."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._path = Path(filepath)
        self._reason = self._path.with_name(self._path.name + ".not_exported.txt")
        self.metadata = metadata

    def load(self) -> Any:
        """The file's contents, or `NotExported` where a run ended without one."""
        if self._reason.exists() and not self._path.exists():
            return NotExported(self._reason.read_text())
        return self._read()

    def save(self, data: Any) -> None:
        """Writes the file, or why there is none."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, NotExported):
            self._remove()
            self._reason.write_text(data.reason)
            return
        self._reason.unlink(missing_ok=True)
        writing = self._path.with_name("writing-" + self._path.name)
        self._write(data, writing)
        os.replace(writing, self._path)

    def _read(self) -> Any:
        raise NotImplementedError  # each format has its own

    def _write(self, data: Any, path: Path) -> None:
        raise NotImplementedError  # each format has its own

    def _remove(self) -> None:
        remove(self._path)

    def _exists(self) -> bool:
        return self._path.exists() or self._reason.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}


class OnnxDataset(_FileDataset):
    """An ONNX model.

    Args:
        filepath: The file.
        metadata: For Kedro-Viz.
    """

    def _read(self) -> ModelProto:
        import onnx

        return onnx.load(str(self._path))

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

        return torch.export.load(self._path)

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
        self._weights = self._path.with_suffix(".bin")

    def _read(self) -> OpenvinoFiles:
        from kedro_aat.export.openvino_file import OpenvinoFiles

        return OpenvinoFiles(self._path.read_bytes(), self._weights.read_bytes())

    def _write(self, data: OpenvinoFiles, path: Path) -> None:
        self._remove()  # a crash must not leave the graph of one model with the weights of another
        self._weights.write_bytes(data.weights)
        path.write_bytes(data.graph)

    def _remove(self) -> None:
        super()._remove()
        remove(self._weights)

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


class _FileDataset(AbstractDataset[Any, Any]):
    """One file, written under another name and renamed; `NotExported` removes it."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._path = Path(filepath)
        self.metadata = metadata

    def save(self, data: Any) -> None:
        """Writes the file."""
        if isinstance(data, NotExported):
            remove(self._path)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        writing = self._path.with_name("writing-" + self._path.name)
        self._write(data, writing)
        os.replace(writing, self._path)

    def _write(self, data: Any, path: Path) -> None:
        raise NotImplementedError

    def _exists(self) -> bool:
        return self._path.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}


class OnnxDataset(_FileDataset):
    """An ONNX model.

    Args:
        filepath: The file.
        metadata: For Kedro-Viz.
    """

    def load(self) -> ModelProto:
        """The model."""
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

    def load(self) -> ExportedProgram:
        """The program."""
        import torch

        return torch.export.load(self._path)

    def _write(self, data: ExportedProgram, path: Path) -> None:
        import torch

        torch.export.save(data, path)

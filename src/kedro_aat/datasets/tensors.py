"""A dataset of named tensors in one file, such as the `inputs` and `targets` of a split."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from kedro.io import DatasetError, Version
from safetensors import SafetensorError

from kedro_aat.datasets.files import FileDataset
from kedro_aat.datasets.previews import read_tensor_info, tensor_table
from kedro_aat.errors import DataError

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview


class TensorsDataset(FileDataset[dict[str, Any], dict[str, Any]]):
    """A safetensors file.

    Args:
        filepath: The file, here or at an address such as `s3://bucket/train.safetensors`.
        backend: Library of the tensors, such as `torch` or `numpy`.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
        metadata: For Kedro-Viz and other plugins.

    Raises:
        DatasetError: The library is not installed.
    """

    def __init__(
        self,
        *,
        filepath: str | os.PathLike[str],
        backend: str = "numpy",
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            filepath=filepath, version=version, credentials=credentials, fs_args=fs_args, metadata=metadata
        )
        try:
            import_module(f"safetensors.{backend}")
        except ImportError as error:
            raise DatasetError(f"The backend {backend!r} cannot be imported ({error}); install it.") from None
        self._backend = backend

    def load(self) -> dict[str, Any]:
        """Reads the tensors, in the order of their names: safetensors gives them in another one in each process."""
        with self._reading() as path:
            tensors: dict[str, Any] = self._library.load(path.read_bytes())
        return dict(sorted(tensors.items()))

    def save(self, data: dict[str, Any]) -> None:
        """Writes tensors or arrays; one becomes the other if the library in use asks for it.

        Raises:
            DataError: Something is neither a tensor nor an array.
            StorageError: The file system refuses, or another process is writing the file.
        """
        if self._backend in ("numpy", "torch"):
            data = {name: self._whole(name, part) for name, part in data.items()}
        if self._backend == "torch" and len({part.untyped_storage().data_ptr() for part in data.values()}) < len(data):
            data = {name: part.clone() for name, part in data.items()}  # safetensors refuses parts of one memory, too
        with self._writing() as new:
            try:
                self._library.save_file(data, str(new))  # takes less memory than to make its bytes first
            except SafetensorError as error:
                raise OSError(str(error)) from error

    def preview(self, nrows: int = 100) -> TablePreview:
        """Names, shapes and types of the tensors; for Kedro-Viz."""
        if not self.exists():
            return None
        with self._reading(is_shown=True) as path:
            return tensor_table(read_tensor_info(path), nrows)

    def _whole(self, name: str, part: Any) -> Any:
        """An array or a tensor as one of the library in use, with its numbers in their order.

        A column, every second row or a transposed table is a view: of a tensor safetensors refuses it, and of an array
        0.8.0 writes other numbers.
        """
        if not hasattr(part, "__array__"):
            raise DataError(f"{name} is a {type(part).__name__}: give an array of NumPy or a tensor of torch.")
        if self._backend == "numpy":
            return np.require(part.detach().cpu() if hasattr(part, "detach") else part, requirements="C")
        import torch

        is_tensor = isinstance(part, torch.Tensor)
        return part.contiguous() if is_tensor else torch.from_numpy(np.require(part, requirements=["C", "W"]))

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "backend": self._backend}

    @property
    def _library(self) -> ModuleType:
        return import_module(f"safetensors.{self._backend}")

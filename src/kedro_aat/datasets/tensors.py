"""A dataset of named tensors in one file, such as the `inputs` and `targets` of a split."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import Version
from kedro_datasets_experimental.safetensors import SafetensorsDataset
from safetensors import SafetensorError

from kedro_aat.datasets.local import KedroFileDataset, require_kedro_path
from kedro_aat.datasets.previews import read_tensor_info, tensor_table

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview


class TensorsDataset(KedroFileDataset, SafetensorsDataset):  # type: ignore[misc]  # untyped in kedro-datasets
    """A safetensors file that is replaced whole, with a preview.

    Args:
        filepath: The file, here or, with a protocol such as `s3://`, elsewhere.
        backend: Library of the tensors, such as `torch` or `numpy`.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
        metadata: For Kedro-Viz and other plugins.
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
            filepath=require_kedro_path(filepath),
            backend=backend,
            version=version,
            credentials=credentials,
            fs_args=fs_args,
            metadata=metadata,
        )

    def load(self) -> dict[str, Any]:
        """Reads the tensors, in the order of their names: safetensors gives them in another one in each process."""
        tensors: dict[str, Any] = SafetensorsDataset.load.__wrapped__(self)  # whose errors Kedro has not wrapped yet
        return dict(sorted(tensors.items()))

    def save(self, data: dict[str, Any]) -> None:
        """Writes the tensors.

        Raises:
            StorageError: The file system refuses, or another process is writing the file.
        """
        backend = import_module(f"safetensors.{self._backend}")
        if self._backend == "torch":  # a column or a transposed table is a view, which safetensors refuses
            data = {name: tensor.contiguous() for name, tensor in data.items()}
        with self._new_file() as path:
            if self._protocol != "file":
                with self._fs.open(path, **self._fs_open_args_save) as file:
                    file.write(backend.save(data))
                return
            try:
                backend.save_file(data, path)  # takes less memory
            except SafetensorError as error:
                raise OSError(str(error)) from error

    def preview(self, nrows: int = 100) -> TablePreview:
        """Names, shapes and types of the tensors, if the file is on this machine; for Kedro-Viz."""
        if self._protocol != "file" or not self.exists():
            return None
        return tensor_table(read_tensor_info(Path(self._get_load_path())), nrows)

"""Tensors by name in one file, such as the `inputs` and `targets` of a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kedro_datasets_experimental.safetensors import SafetensorsDataset

from kedro_aat.datasets.previews import tensor_table, tensors_in

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview


class TensorsDataset(SafetensorsDataset):  # type: ignore[misc]  # untyped in kedro-datasets
    """A safetensors file with a preview; takes what `safetensors.SafetensorsDataset` takes."""

    def preview(self, nrows: int = 100) -> TablePreview:
        """Names, shapes and types, of a file on this machine."""
        if self._protocol != "file" or not self.exists():
            return None
        return tensor_table(tensors_in(Path(self._get_load_path())), nrows)

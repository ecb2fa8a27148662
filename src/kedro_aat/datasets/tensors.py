"""A dataset of named tensors in one file, such as the `inputs` and `targets` of a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kedro_datasets_experimental.safetensors import SafetensorsDataset

from kedro_aat.datasets.arguments import RecordedArguments
from kedro_aat.datasets.previews import read_tensor_info, tensor_table

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview


class TensorsDataset(RecordedArguments, SafetensorsDataset):  # type: ignore[misc]  # untyped in kedro-datasets
    """A safetensors file with a preview; takes the arguments of `safetensors.SafetensorsDataset`."""

    def preview(self, nrows: int = 100) -> TablePreview:
        """Names, shapes and types of the tensors, if the file is on this machine; for Kedro-Viz."""
        if self._protocol != "file" or not self.exists():
            return None
        return tensor_table(read_tensor_info(Path(self._get_load_path())), nrows)

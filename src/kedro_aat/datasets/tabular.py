"""Tables as training data: one column is the target, the others are the inputs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from kedro.io import AbstractDataset, DatasetError

from kedro_aat.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from kedro_datasets._typing import TablePreview
    from torch import Tensor


class TableDataset(AbstractDataset[Never, "dict[str, Tensor]"]):
    """A CSV or Parquet file as `{"inputs": (N, columns) float32, "targets": (N,)}`; for reading alone.

    Numbers are taken as they are: put them on one scale in the node that writes the table, or in the model.

    Args:
        filepath: A `.csv` or `.parquet` file.
        target: The column to predict. Whole numbers become int64, as classes are; fractions become float32; texts
            become their position in `classes`.
        columns: The inputs, in the order in which the model takes them; None for all others in the table's order.
        classes: The texts that stand in the target column; needed for texts, so that all splits number them alike.
        metadata: For Kedro-Viz.
    """

    def __init__(
        self,
        *,
        filepath: str,
        target: str,
        columns: list[str] | None = None,
        classes: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._path = Path(filepath)
        self._target = target
        self._columns = columns
        self._classes = classes
        self.metadata = metadata

    def load(self) -> dict[str, Tensor]:
        """Reads the table.

        Raises:
            DataError: Names the columns that are not there, hold no numbers or have gaps.
        """
        import torch

        frame = self._read()
        given = [column for column in frame.columns if column != self._target]
        columns = given if self._columns is None else self._columns
        self._check(frame, columns)
        inputs = torch.from_numpy(frame[columns].to_numpy(dtype="float32", copy=True))
        return {"inputs": inputs, "targets": self._targets(frame[self._target])}

    def preview(self, nrows: int = 5) -> TablePreview:
        """The first rows; for Kedro-Viz."""
        return self._read(nrows).to_dict(orient="split") if self._exists() else None

    def _read(self, nrows: int | None = None) -> pd.DataFrame:
        import pandas as pd

        if self._path.suffix == ".csv":
            return pd.read_csv(self._path, nrows=nrows)
        if self._path.suffix == ".parquet":
            return pd.read_parquet(self._path) if nrows is None else _first_rows(self._path, nrows)
        raise DataError(f"{self._path}: a table is read from .csv or .parquet; convert it to one of these.")

    def _check(self, frame: pd.DataFrame, columns: list[str]) -> None:
        from pandas.api.types import is_bool_dtype, is_numeric_dtype

        if self._target in columns:
            raise DataError(
                f"{self._path}: {self._target} is the target and among the inputs, which it would give away; take it "
                "out of `columns` in the catalog entry."
            )
        if not columns or frame.empty:
            raise DataError(f"{self._path} has no {'rows' if columns else f'columns beside {self._target}'}.")
        wanted = [*columns, self._target]
        if missing := [column for column in wanted if column not in frame.columns]:
            there = ", ".join(map(str, frame.columns))
            raise DataError(f"{self._path} has no column {', '.join(missing)}; it has {there}.")
        infinite = [math.inf, -math.inf]
        if gaps := [name for name in wanted if (frame[name].isna() | frame[name].isin(infinite)).any()]:
            raise DataError(
                f"{self._path} has empty or infinite cells in {', '.join(gaps)}: fill them, or leave out those rows."
            )
        types = {column: frame[column].dtype for column in columns}
        texts = [str(name) for name, kind in types.items() if not (is_numeric_dtype(kind) or is_bool_dtype(kind))]
        if texts:
            raise DataError(
                f"{self._path} has no numbers in {', '.join(texts)}: encode these columns as numbers, or name the "
                "inputs under `columns` in the catalog entry."
            )

    def _targets(self, column: pd.Series[Any]) -> Tensor:
        import torch
        from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype

        if self._classes is not None:
            if strange := sorted(set(map(str, column.unique())) - set(map(str, self._classes))):
                raise DataError(
                    f"{self._path}: {self._target} holds {', '.join(strange)}, which is not among `classes`; add it "
                    "to the catalog entries of all splits."
                )
            numbers = {str(name): number for number, name in enumerate(self._classes)}
            return torch.tensor([numbers[str(value)] for value in column], dtype=torch.int64)
        if is_integer_dtype(column.dtype) or is_bool_dtype(column.dtype):
            return torch.from_numpy(column.to_numpy(dtype="int64", copy=True))
        if is_float_dtype(column.dtype):
            return torch.from_numpy(column.to_numpy(dtype="float32", copy=True))
        raise DataError(
            f"{self._path}: {self._target} holds texts. Name them in their order under `classes` in the catalog entry "
            "of every split, so that all splits number them alike."
        )

    def save(self, data: Never) -> None:
        """Refuses: a table is written by pandas."""
        raise DatasetError(
            "A TableDataset only reads. Write the table with an entry of its own, of type pandas.CSVDataset or "
            "pandas.ParquetDataset and with the same filepath."
        )

    def _exists(self) -> bool:
        return self._path.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path), "target": self._target}


def _first_rows(path: Path, nrows: int) -> pd.DataFrame:
    """Of a Parquet file, without reading the others."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        batch = next(file.iter_batches(batch_size=nrows), None)
        frame: pd.DataFrame = (file.schema_arrow.empty_table() if batch is None else batch).to_pandas()
    return frame

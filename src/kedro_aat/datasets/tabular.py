"""Tables as training data: one column is the target, the others are the inputs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kedro_aat.datasets.local import ReadOnlyDataset
from kedro_aat.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from kedro_datasets._typing import TablePreview
    from torch import Tensor


class TableDataset(ReadOnlyDataset["dict[str, Tensor]"]):
    """A CSV or Parquet file as `{"inputs": (N, columns) float32, "targets": (N,)}`; read-only.

    Numbers are not scaled: scale them in the node that writes the table, or in the model.

    Args:
        filepath: A `.csv` or `.parquet` file.
        target: The column to predict. Integers become int64 (classes), floating-point numbers become float32, and
            texts become their position in `classes`.
        columns: The input columns, in the order that the model expects; None for all other columns of the table, in
            its order.
        groups: A column of numbers or texts that says which rows depend on each other, such as those of one patient. It
            is no input, but loaded as int64 (N,) under its own name, for `certificate.group`; None for none.
        classes: The texts in the target column; required for texts, so that all splits number them in the same way.
        metadata: For Kedro-Viz and other plugins.
    """

    REFUSAL: ClassVar[str] = (
        "A TableDataset is read-only. Write the table with a separate entry that has the same filepath and the "
        "type pandas.CSVDataset or pandas.ParquetDataset."
    )

    def __init__(
        self,
        *,
        filepath: str,
        target: str,
        columns: list[str] | None = None,
        groups: str | None = None,
        classes: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self._target = target
        self._columns = columns
        self._groups = groups
        self._classes = classes

    def load(self) -> dict[str, Tensor]:
        """Reads the table.

        Raises:
            DataError: Columns are missing, are not numbers, or have empty cells; the message names them.
        """
        import torch

        frame = self._read()
        others = [column for column in frame.columns if column not in (self._target, self._groups)]
        columns = others if self._columns is None else self._columns
        self._check(frame, columns)
        inputs = torch.from_numpy(frame[columns].to_numpy(dtype="float32", copy=True))
        tensors = {"inputs": inputs, "targets": self._targets(frame[self._target])}
        return tensors if self._groups is None else {self._groups: self._numbered(frame[self._groups])} | tensors

    def preview(self, nrows: int = 5) -> TablePreview:
        """The first rows; for Kedro-Viz."""
        return self._read(nrows).to_dict(orient="split") if self._exists() else None

    def _read(self, nrows: int | None = None) -> pd.DataFrame:
        import pandas as pd

        if self._path.suffix == ".csv":
            return pd.read_csv(self._path, nrows=nrows)
        if self._path.suffix == ".parquet":
            return pd.read_parquet(self._path) if nrows is None else _first_rows(self._path, nrows)
        raise DataError(f"{self._path}: a table must be a .csv or .parquet file; convert it to one of these.")

    def _check(self, frame: pd.DataFrame, columns: list[str]) -> None:
        from pandas.api.types import is_bool_dtype, is_numeric_dtype

        if self._target in columns:
            raise DataError(
                f"{self._path}: {self._target} is both the target and an input, so the model would see the answer; "
                "remove it from `columns` in the catalog entry."
            )
        if not columns or frame.empty:
            raise DataError(f"{self._path} has no {'rows' if columns else f'columns besides {self._target}'}.")
        required = [*columns, self._target, *([] if self._groups is None else [self._groups])]
        if missing := [column for column in required if column not in frame.columns]:
            existing = ", ".join(map(str, frame.columns))
            raise DataError(f"{self._path} has no column {', '.join(missing)}; it has {existing}.")
        infinite = [math.inf, -math.inf]
        if gaps := [name for name in required if (frame[name].isna() | frame[name].isin(infinite)).any()]:
            raise DataError(
                f"{self._path} has empty or infinite cells in {', '.join(gaps)}: fill them, or remove those rows."
            )
        types = {column: frame[column].dtype for column in columns}
        texts = [str(name) for name, kind in types.items() if not (is_numeric_dtype(kind) or is_bool_dtype(kind))]
        if texts:
            raise DataError(
                f"{self._path} has texts in {', '.join(texts)}: encode these columns as numbers, or list the input "
                "columns under `columns` in the catalog entry."
            )

    def _targets(self, column: pd.Series[Any]) -> Tensor:
        import torch
        from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype

        if self._classes is not None:
            if unknown := sorted(set(map(str, column.unique())) - set(map(str, self._classes))):
                raise DataError(
                    f"{self._path}: {self._target} contains {', '.join(unknown)}, which is not among `classes`; add it "
                    "to the catalog entries of all splits."
                )
            numbers = {str(name): number for number, name in enumerate(self._classes)}
            return torch.tensor([numbers[str(value)] for value in column], dtype=torch.int64)
        if is_integer_dtype(column.dtype) or is_bool_dtype(column.dtype):
            return torch.from_numpy(column.to_numpy(dtype="int64", copy=True))
        if is_float_dtype(column.dtype):
            return torch.from_numpy(column.to_numpy(dtype="float32", copy=True))
        raise DataError(
            f"{self._path}: {self._target} contains texts. List them in order under `classes` in the catalog entry of "
            "every split, so that all splits number them in the same way."
        )

    @staticmethod
    def _numbered(column: pd.Series[Any]) -> Tensor:
        """The numbers of the groups that rows belong to, as they are if they are integers."""
        import torch
        from pandas.api.types import is_integer_dtype

        numbers = column if is_integer_dtype(column.dtype) else column.rank(method="dense")
        return torch.from_numpy(numbers.to_numpy(dtype="int64", copy=True))

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "target": self._target}


def _first_rows(path: Path, nrows: int) -> pd.DataFrame:
    """Reads the first rows of a Parquet file, without the other rows."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        batch = next(file.iter_batches(batch_size=nrows), None)
        frame: pd.DataFrame = (file.schema_arrow.empty_table() if batch is None else batch).to_pandas()
    return frame

"""Tables as training data: one column is the target, the others are the inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import Version

from kedro_aat.datasets.files import FileDataset
from kedro_aat.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from kedro_datasets._typing import TablePreview
    from numpy.typing import NDArray
    from torch import Tensor

_SUFFIXES = (".csv", ".parquet")


class TableDataset(FileDataset["Mapping[str, Tensor | NDArray[Any]]", "dict[str, Tensor]"]):
    """A CSV or Parquet file as `{"inputs": (N, columns) float32, "targets": (N,)}`.

    A node that returns such a mapping, of tensors or arrays, writes the table. Numbers are not scaled: scale them in
    the node that writes the table, or in the model.

    Args:
        filepath: A `.csv` or `.parquet` file, here or at an address such as `s3://bucket/train.csv`.
        target: The column to predict. Integers become int64 (classes), floating-point numbers become float32, and
            texts become their position in `classes`.
        columns: The input columns, in the order that the model expects; None for all other columns of the table, in
            its order. A table that is written without them has `input_0`, `input_1` and so on.
        groups: A column of numbers or texts that says which rows depend on each other, such as those of one patient. It
            is no input, but loaded as int64 (N,) under its own name, for `certificate.group`; None for none.
        classes: The texts in the target column; required for texts, so that all splits number them in the same way.
        load_args: More arguments of `pandas.read_csv` or `pandas.read_parquet`, such as `{sep: ";", decimal: ","}`.
        save_args: More arguments of `to_csv` or `to_parquet` of a DataFrame.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
        metadata: For Kedro-Viz and other plugins.
    """

    def __init__(
        self,
        *,
        filepath: str,
        target: str,
        columns: list[str] | None = None,
        groups: str | None = None,
        classes: list[str] | None = None,
        load_args: dict[str, Any] | None = None,
        save_args: dict[str, Any] | None = None,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            filepath=filepath, version=version, credentials=credentials, fs_args=fs_args, metadata=metadata
        )
        self._target = target
        self._columns = columns
        self._groups = groups
        self._classes = classes
        self._suffix = self._filepath.suffix
        self._load_args = load_args or {}
        self._save_args = save_args or {}

    def load(self) -> dict[str, Tensor]:
        """Reads the table.

        Raises:
            DataError: Columns are missing, are not numbers, or have empty cells; the message names them.
        """
        with self._reading() as path:
            return self._read_split(path)

    def save(self, data: Mapping[str, Tensor | NDArray[Any]]) -> None:
        """Writes the table, with the names of the entry; `load` then returns the same mapping.

        Args:
            data: `inputs` (N, columns), saved as float32, and `targets` (N,): whole numbers, saved as int64 or as the
                texts that they number in `classes`, or others, saved as float32.

        Raises:
            DataError: It is no such mapping, or the file would not give the same back.
            StorageError: The file system refuses, or another process is writing the file.
        """
        import torch

        given = self._split(data)
        for mistake in self._path_mistakes():
            raise DataError(mistake)
        frame = self._frame(given)
        with self._writing() as new:
            if new.suffix == ".csv":
                frame.to_csv(new, **{"index": False, **self._save_args})
            else:
                frame.to_parquet(new, **{"index": False, **self._save_args})
            try:
                same = all(torch.equal(given[name], values) for name, values in self._read_split(new).items())
                reason = "other values"
            except DataError as error:
                same, reason = False, str(error)
            if not same:
                raise DataError(
                    f"{self.where}: the table would not be read as it is written ({reason}). In a .csv file, texts "
                    "such as NA or 01 are read as something else: write a .parquet file, or choose other names for "
                    "columns and classes."
                )

    def save_mistakes(self, name: str) -> list[str]:
        """Lists why nothing could be saved.

        Args:
            name: Key to report the mistakes under, such as the name of the catalog entry.
        """
        return [f"{name}: {mistake}" for mistake in self._path_mistakes()]

    def _path_mistakes(self) -> list[str]:
        if self._suffix not in _SUFFIXES:
            return [f"{self.where}: a table must be a .csv or .parquet file; give another filepath."]
        if self._is_at_a_folder():
            return [f"{self.where} is a folder, so no table is written there: give another path, or move it away."]
        return []

    def _split(self, data: Mapping[str, Tensor | NDArray[Any]]) -> dict[str, Tensor]:
        """What `load` will give back for what is saved; raises a `DataError` if nothing would be the same."""
        import torch

        if not isinstance(data, Mapping):
            raise DataError(
                f"{self.where} takes what it gives, {{'inputs': (N, columns), 'targets': (N,)}}, but got a "
                f"{type(data).__name__}. From a DataFrame, return {{'inputs': frame[columns].to_numpy(), 'targets': "
                f"frame[{self._target!r}].to_numpy()}}."
            )
        names = ["inputs", "targets", *([] if self._groups is None else [self._groups])]
        if set(data) != set(names):
            given = ", ".join(map(str, data)) or "neither"
            raise DataError(f"{self.where} takes {' and '.join(names)}, but got {given}.")
        inputs, targets = (self._numbers(name, data[name]) for name in ("inputs", "targets"))
        if inputs.ndim != 2 or targets.ndim != 1 or len(inputs) != len(targets) or not inputs.numel():
            raise DataError(
                f"{self.where}: inputs are {tuple(inputs.shape)} and targets {tuple(targets.shape)}, but a table holds "
                "inputs (N, columns) and targets (N,), with at least one row and one column."
            )
        if self._columns is not None and inputs.shape[1] != len(self._columns):
            raise DataError(
                f"{self.where}: inputs have {inputs.shape[1]} columns, but `columns` of the catalog entry names "
                f"{len(self._columns)}: {', '.join(map(str, self._columns))}."
            )
        inputs = inputs.to(torch.float32)
        targets = targets.to(torch.float32 if targets.is_floating_point() else torch.int64)
        for name, values in (("inputs", inputs), ("targets", targets)):
            if num_wrong := int((~values.isfinite()).sum()):
                raise DataError(f"{num_wrong} {name} for {self.where} are NaN or beyond float32: fill or remove them.")
        if self._classes is not None:
            if targets.is_floating_point():
                raise DataError(f"{self.where}: targets must be whole numbers, since the entry has `classes`.")
            if num_wrong := int(((targets < 0) | (targets >= len(self._classes))).sum()):
                raise DataError(
                    f"{num_wrong} targets for {self.where} are not the number of one of its {len(self._classes)} "
                    "`classes`, which are numbered from 0."
                )
        if self._groups is None:
            return {"inputs": inputs, "targets": targets}
        groups = self._numbers(self._groups, data[self._groups])
        if groups.shape != targets.shape or groups.is_floating_point():
            raise DataError(
                f"{self.where}: {self._groups} must be one whole number for each of {len(targets)} rows, but got "
                f"{tuple(groups.shape)} of {groups.dtype}."
            )
        return {self._groups: groups.to(torch.int64), "inputs": inputs, "targets": targets}

    def _numbers(self, name: str, values: Tensor | NDArray[Any]) -> Tensor:
        import numpy as np
        import torch

        if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
            return torch.from_numpy(np.ascontiguousarray(values))
        if isinstance(values, torch.Tensor) and not values.is_complex():
            return values.detach().cpu()
        kind = f"an array of {values.dtype}" if hasattr(values, "dtype") else f"a {type(values).__name__}"
        raise DataError(f"{self.where}: {name} must be a tensor or an array of numbers, but got {kind}.")

    def _frame(self, split: Mapping[str, Tensor]) -> pd.DataFrame:
        import pandas as pd

        unnamed = (
            name for name in map("input_{}".format, itertools.count()) if name not in (self._target, self._groups)
        )
        columns = self._columns or list(itertools.islice(unnamed, split["inputs"].shape[1]))
        inputs, targets = split["inputs"].numpy(), split["targets"].numpy()
        if self._suffix == ".csv":  # all digits of a float64, since pandas reads a float64 and may miss the last
            inputs = inputs.astype("float64")
            targets = targets.astype("float64") if targets.dtype == "float32" else targets
        frame = pd.DataFrame(inputs, columns=columns)
        texts = None if self._classes is None else list(map(str, self._classes))
        frame[self._target] = targets if texts is None else [texts[number] for number in targets]
        if self._groups is not None:
            frame[self._groups] = split[self._groups].numpy()
        return frame

    def _read_split(self, path: Path) -> dict[str, Tensor]:
        import torch

        frame = self._read(path)
        others = [column for column in frame.columns if column not in (self._target, self._groups)]
        columns = others if self._columns is None else self._columns
        self._check(frame, columns)
        inputs = torch.from_numpy(frame[columns].to_numpy(dtype="float32", copy=True))
        tensors = {"inputs": inputs, "targets": self._targets(frame[self._target])}
        return tensors if self._groups is None else {self._groups: self._numbered(frame[self._groups])} | tensors

    def preview(self, nrows: int = 5) -> TablePreview:
        """The first rows; for Kedro-Viz."""
        if not self.exists():
            return None
        with self._reading(is_shown=True) as path:
            return self._read(path, nrows).to_dict(orient="split")

    def _read(self, path: Path, nrows: int | None = None) -> pd.DataFrame:
        import pandas as pd

        if path.suffix == ".csv":
            frame: pd.DataFrame = pd.read_csv(path, **{"nrows": nrows, **self._load_args})
            return frame
        if path.suffix == ".parquet":
            return pd.read_parquet(path, **self._load_args) if nrows is None else _first_rows(path, nrows)
        raise DataError(f"{self.where}: a table must be a .csv or .parquet file; convert it to one of these.")

    def _check(self, frame: pd.DataFrame, columns: list[str]) -> None:
        from pandas.api.types import is_bool_dtype, is_numeric_dtype

        if self._target in columns:
            raise DataError(
                f"{self.where}: {self._target} is both the target and an input, so the model would see the answer; "
                "remove it from `columns` in the catalog entry."
            )
        if not columns or frame.empty:
            raise DataError(f"{self.where} has no {'rows' if columns else f'columns besides {self._target}'}.")
        required = [*columns, self._target, *([] if self._groups is None else [self._groups])]
        if missing := [column for column in required if column not in frame.columns]:
            existing = ", ".join(map(str, frame.columns))
            raise DataError(f"{self.where} has no column {', '.join(missing)}; it has {existing}.")
        infinite = [math.inf, -math.inf]
        if gaps := [name for name in required if (frame[name].isna() | frame[name].isin(infinite)).any()]:
            raise DataError(
                f"{self.where} has empty or infinite cells in {', '.join(gaps)}: fill them, or remove those rows."
            )
        types = {column: frame[column].dtype for column in columns}
        texts = [str(name) for name, kind in types.items() if not (is_numeric_dtype(kind) or is_bool_dtype(kind))]
        if texts:
            raise DataError(
                f"{self.where} has texts in {', '.join(texts)}: encode these columns as numbers, or list the input "
                "columns under `columns` in the catalog entry."
            )

    def _targets(self, column: pd.Series[Any]) -> Tensor:
        import torch
        from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype

        if self._classes is not None:
            if unknown := sorted(set(map(str, column.unique())) - set(map(str, self._classes))):
                raise DataError(
                    f"{self.where}: {self._target} contains {', '.join(unknown)}, which is not among `classes`; add it "
                    "to the catalog entries of all splits."
                )
            numbers = {str(name): number for number, name in enumerate(self._classes)}
            return torch.tensor([numbers[str(value)] for value in column], dtype=torch.int64)
        if is_integer_dtype(column.dtype) or is_bool_dtype(column.dtype):
            return torch.from_numpy(column.to_numpy(dtype="int64", copy=True))
        if is_float_dtype(column.dtype):
            return torch.from_numpy(column.to_numpy(dtype="float32", copy=True))
        raise DataError(
            f"{self.where}: {self._target} contains texts. List them in order under `classes` in the catalog entry of "
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

"""Datasets at a path on this machine, and folders that are replaced as a whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Never, TypeVar

from kedro.io import AbstractDataset, DatasetError

from kedro_aat.datasets.arguments import RecordedArguments

_Saved = TypeVar("_Saved")
_Loaded = TypeVar("_Loaded")


class LocalDataset(RecordedArguments, AbstractDataset[_Saved, _Loaded]):
    """Base of datasets that are one file or one folder on this machine.

    Args:
        filepath: The file or folder.
        metadata: For Kedro-Viz and other plugins; not used here.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._path = Path(filepath)
        self.metadata = metadata

    def _exists(self) -> bool:
        return self._path.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}


class ReadOnlyDataset(LocalDataset[Never, _Loaded]):
    """Base of datasets that no node can save.

    Attributes:
        REFUSAL: The message of the error, which says what to do instead.
    """

    REFUSAL: ClassVar[str]

    def save(self, data: Never) -> None:
        """Refuses."""
        raise DatasetError(self.REFUSAL)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a new folder that takes the place of `target` when the block ends without an error.

    A reader never sees a partly written folder, and a crash leaves the old folder or the new one.
    """
    writing, old = target.with_name(target.name + ".writing"), target.with_name(target.name + ".old")
    if old.exists() and not target.exists():  # a crash between the two renames below
        old.rename(target)
    remove(writing)
    writing.mkdir(parents=True)
    try:
        yield writing
    except BaseException:
        remove(writing)
        raise
    remove(old)
    if target.exists():
        target.rename(old)
    writing.rename(target)
    remove(old)


def remove(path: Path) -> None:
    """Removes a file or a folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

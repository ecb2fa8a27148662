"""What datasets of files share: paths, and files that are replaced as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Never, TypeVar

from kedro.io import AbstractDataset, DatasetError
from kedro.io.core import get_filepath_str, get_protocol_and_path

from kedro_aat.datasets.arguments import RecordedArguments
from kedro_aat.datasets.damage import ReportsDamage
from kedro_aat.storage import local_path, replacing

_Saved = TypeVar("_Saved")
_Loaded = TypeVar("_Loaded")


class LocalDataset(ReportsDamage, RecordedArguments, AbstractDataset[_Saved, _Loaded]):
    """Base of datasets that are one file or one folder on this machine.

    Args:
        filepath: The file or folder.
        metadata: For Kedro-Viz and other plugins; not used here.

    Raises:
        StorageError: The path has a protocol such as `s3://`.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._path = local_path(filepath)
        self.metadata = metadata

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self._path

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


class KedroFileDataset(ReportsDamage, RecordedArguments):
    """Base, before a class of kedro-datasets, of datasets whose file is replaced whole if it is on this machine."""

    @contextmanager
    def _new_file(self: Any) -> Iterator[str]:
        """Yields the path to write to; the file there takes its place when the block ends without an error."""
        path = get_filepath_str(self._get_save_path(), self._protocol)
        if self._protocol == "file" and "a" not in self._fs_open_args_save["mode"]:
            with replacing(Path(path)) as new:
                yield str(new)
        else:
            yield path
        self._invalidate_cache()


def require_kedro_path(filepath: str | os.PathLike[str]) -> str:
    """Returns a path for a class of kedro-datasets.

    Raises:
        StorageError: Kedro would take it for a local folder of that name, such as `simplecache::s3:`.
    """
    text = os.fspath(filepath)
    protocol, _ = get_protocol_and_path(text)
    return str(local_path(text)) if protocol in ("file", "local") else text

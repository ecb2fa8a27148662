"""What all datasets of files share: paths here and in other storages, versions, and files that are replaced whole."""

from __future__ import annotations

import inspect
import os
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Never, TypeVar

from kedro.io import AbstractVersionedDataset, DatasetError, Version

from kedro_aat.datasets.arguments import RecordedArguments
from kedro_aat.datasets.damage import ReportsDamage
from kedro_aat.datasets.previews import require_small
from kedro_aat.datasets.remote import RemoteGroup, place_of
from kedro_aat.errors import ConfigurationError, DataError, StorageError
from kedro_aat.storage import FileGroup, replacing

_MOST_VERSIONS = 5  # in a message

_Saved = TypeVar("_Saved")
_Loaded = TypeVar("_Loaded")


class FileDataset(ReportsDamage, RecordedArguments, AbstractVersionedDataset[_Saved, _Loaded]):
    """Base of datasets that are one file or one folder, here or in any storage that fsspec knows.

    Subclasses read and write files on this machine: those of another storage are copied to a temporary folder first, or
    from there.

    Args:
        filepath: The file or folder: a path on this machine, or an address such as `s3://bucket/name`. None for none.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system; `open_args_load` and `open_args_save` are for its `open`, in
            storages other than this machine's.
        metadata: For Kedro-Viz and other plugins; not used here.

    Raises:
        StorageError: The address is not one.
        ConfigurationError: An address of the web, or no file, is to have versions.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "save" not in vars(cls):  # Kedro would wrap it once more, and each wrapper makes a version of its own
            cls.save = inspect.unwrap(cls.save)  # type: ignore[method-assign]  # as Kedro does
        super().__init_subclass__(**kwargs)

    def __init__(
        self,
        *,
        filepath: str | os.PathLike[str] | None,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._place = place_of("" if filepath is None else filepath, credentials, fs_args)
        # Kedro, Kedro-Viz and our own checks look for these names.
        self._protocol, self._fs = self._place.protocol, self._place.system
        self.metadata = metadata
        self._has_file = filepath is not None
        path: Any = self._place.path if self._has_file else None
        super().__init__(path, version, exists_function=self._exists_at, glob_function=self._versions_at)
        if version is not None and (path is None or self._protocol.startswith("http")):
            raise ConfigurationError("versioned", [f"{self.where} cannot have versions; remove `versioned`"])

    @property
    def where(self) -> str:
        """The path or address, for messages; of a versioned entry, that of all versions."""
        return "no file" if not self._has_file else self._place.url(self._filepath)

    @property
    def local_path(self) -> Path | None:
        """Where the present file or folder is on this machine; None if it is elsewhere, or there is no version yet."""
        if not self._place.is_here or not self._has_file or (self._version is not None and not self.exists()):
            return None
        return Path(self._get_load_path())

    @contextmanager
    def _reading(self, *, is_shown: bool = False) -> Iterator[Path]:
        """Yields the path of the file on this machine, or of a temporary copy.

        Args:
            is_shown: Whether it is for a preview, for which no large file is copied.
        """
        path = self._get_load_path()
        if self._place.is_here:
            self._require_version(path)
            yield Path(path)
            return
        with tempfile.TemporaryDirectory(prefix="kedro-aat-") as folder:
            copy = Path(folder) / path.name
            with self._place.reading(path):
                if not self._place.has(path):
                    raise DataError(self._nothing_at(path))
                if is_shown:
                    require_small(self.where, self._place.size(path))
                self._place.download(path, copy)
            yield copy

    @contextmanager
    def _writing(self) -> Iterator[Path]:
        """Yields a path on this machine to write to; that file takes the place of the dataset's if no error comes."""
        path = self._get_save_path()
        if self._place.is_here:
            with replacing(Path(path)) as new:
                yield new
            return
        with tempfile.TemporaryDirectory(prefix="kedro-aat-") as folder:
            new = Path(folder) / path.name
            yield new
            with self._place.writing(path):
                self._place.upload(new, path)

    def _nothing_at(self, path: PurePosixPath) -> str:
        """Says that nothing is saved at the path of a version, or of the dataset, and which versions there are."""
        nothing = f"Nothing is saved at {self._place.url(path)}."
        versions = [] if self._version is None else sorted(self._place.listed(PurePosixPath(self._filepath)))
        if not versions:
            return f"{nothing} Correct the path, or run what writes it."
        return f"{nothing} The latest versions are {', '.join(versions[: -_MOST_VERSIONS - 1 : -1])}; name one of them."

    def _require_version(self, path: PurePosixPath) -> None:
        if self._version is not None and not self._exists_at(str(path)):
            raise DataError(self._nothing_at(path))

    def _is_at_a_folder(self) -> bool:
        """Whether a folder on this machine is where a file would be written."""
        return self._place.is_here and self._version is None and Path(self._filepath).is_dir()

    def _exists(self) -> bool:
        return not self._has_file or self._exists_at(str(self._get_load_path()))

    def _exists_at(self, path: str) -> bool:
        """Whether something is saved at the path of a version, or of the dataset."""
        return self._place.has(PurePosixPath(path))

    def _versions_at(self, pattern: str) -> list[str]:
        """Where each version would be; `pattern` is the path of a version `*`."""
        folder, name = PurePosixPath(pattern).parent.parent, PurePosixPath(pattern).name
        return [str(folder / version / name) for version in self._place.listed(folder)]

    def _release(self) -> None:
        super()._release()
        self._fs.invalidate_cache()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self.where if self._has_file else None, "version": self._version}


class GroupDataset(FileDataset[_Saved, _Loaded]):
    """Base of datasets of several files, which are replaced together."""

    @abstractmethod
    def _names(self, path: PurePosixPath) -> tuple[str, ...]:
        """Names of all files of a version at a path, first the one without which there is nothing."""

    def _is_folder(self) -> bool:
        """Whether the path is a folder of these files alone; otherwise they are beside each other at the path."""
        return True

    def save_mistakes(self, name: str) -> list[str]:
        """Lists why nothing could be saved.

        Args:
            name: Key to report the mistakes under, such as the name of the catalog entry.
        """
        try:
            path = self._get_save_path()
            with self._place.reading(path):
                return [f"{name}: {mistake}" for mistake in self._group(path).mistakes()]
        except (DatasetError, StorageError) as error:
            return [f"{name}: {error}"]

    def _replace(self, files: Mapping[str, bytes]) -> None:
        """Writes the files in place of the present ones."""
        self._group(self._get_save_path()).replace(files)

    @contextmanager
    def _reading_group(self, *, is_shown: bool = False) -> Iterator[FileGroup]:
        """Yields the files on this machine, or temporary copies; see `_reading`."""
        path = self._get_load_path()
        group = self._group(path)
        if isinstance(group, FileGroup):
            self._require_version(path)
            yield group
            return
        with self._place.reading(path):
            if not self._exists_at(str(path)):
                raise DataError(self._nothing_at(path))
        with tempfile.TemporaryDirectory(prefix="kedro-aat-") as folder:
            with self._place.reading(path):
                if is_shown:
                    require_small(self.where, group.size())
                group.download(Path(folder))
            yield FileGroup(Path(folder), self._names(path), copy_of=self._place.url(self._folder(path)))

    def _present(self, path: PurePosixPath) -> set[str]:
        """Names of the files that are at a path."""
        group = self._group(path)
        if isinstance(group, FileGroup):
            return {name for name in self._names(path) if group.has(name)}
        return group.present()

    def _folder(self, path: PurePosixPath) -> PurePosixPath:
        return path if self._is_folder() else path.parent

    def _group(self, path: PurePosixPath) -> FileGroup | RemoteGroup:
        names, folder = self._names(path), self._folder(path)
        if self._place.is_here:
            return FileGroup(Path(folder), names, "" if self._is_folder() else path.name)
        return RemoteGroup(self._place, folder, names, is_alone=self._is_folder())


class ReadOnlyDataset(FileDataset[Never, _Loaded]):
    """Base of datasets that no node can save.

    Attributes:
        REFUSAL: The message of the error, which says what to do instead.
    """

    REFUSAL: ClassVar[str]

    def save(self, data: Never) -> None:
        """Refuses."""
        raise DatasetError(self.REFUSAL)

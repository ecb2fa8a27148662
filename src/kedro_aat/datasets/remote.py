"""Files in another storage, such as a bucket: objects are replaced whole, and a folder counts once its marker is there.

An object store has neither locks nor a way to rename a folder. So the first file of a group is its marker: it is
removed before the others change, and written after them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
from fsspec import AbstractFileSystem

from kedro_aat.errors import StorageError
from kedro_aat.remote import file_system, remote_errors, without_password
from kedro_aat.storage import local_path, others_mistake

_URL = re.compile(r"(?P<protocol>[A-Za-z][\w+.-]*)://")
_NOT_ONE_URL = re.compile(r"(?!file:|local:)[A-Za-z][\w+.-]+:(?::|/(?!/))", re.IGNORECASE)
_HERE = ("file", "local")
_WITH_ADDRESS = ("http", "https")  # whose file systems take whole addresses as paths

OpenArguments = dict[str, Any]


class Place(NamedTuple):
    """Where a dataset is.

    Attributes:
        protocol: Such as `file` or `s3`.
        system: The file system.
        path: Path in it.
        load: More arguments of its `open` for reading.
        save: More arguments of its `open` for writing.
        root: Start of all addresses in it, such as `s3://` or `sftp://me@host/`.
    """

    protocol: str
    system: AbstractFileSystem
    path: PurePosixPath
    load: OpenArguments
    save: OpenArguments
    root: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine."""
        return self.protocol == "file"

    def text(self, path: PurePosixPath) -> str:
        """A path as the file system takes it."""
        return f"{self.protocol}://{path}" if self.protocol in _WITH_ADDRESS else path.as_posix()

    def address(self, path: PurePosixPath) -> str:
        """A path as a catalog entry takes it."""
        return str(path) if self.is_here else f"{self.root}{path.as_posix().lstrip('/')}"

    def url(self, path: PurePosixPath) -> str:
        """A path for messages, without a password."""
        return str(path) if self.is_here else without_password(self.address(path))

    def reading(self, path: PurePosixPath) -> AbstractContextManager[None]:
        """Turns what another storage refuses while a path is read into one error of ours."""
        return nullcontext() if self.is_here else remote_errors(self.url(path), "read it", kind=StorageError)

    def writing(self, path: PurePosixPath) -> AbstractContextManager[None]:
        """The same while it is written."""
        return nullcontext() if self.is_here else remote_errors(self.url(path), "write it", kind=StorageError)

    def has(self, path: PurePosixPath) -> bool:
        """Whether a file or a folder is there; unlike `exists` of fsspec, errors such as a wrong key are raised."""
        if self.is_here:
            return Path(path).exists()
        self.system.invalidate_cache()  # other processes write there, too
        try:
            self.system.info(self.text(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def listed(self, folder: PurePosixPath) -> set[str]:
        """Names of what is in a folder; empty if there is no such folder."""
        if self.is_here:
            return set(os.listdir(folder)) if Path(folder).is_dir() else set()
        self.system.invalidate_cache()
        try:
            found = self.system.ls(self.text(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return set()
        paths = {PurePosixPath(each) for each in found}
        return {each.name for each in paths if each.name and each.parts[-2:] != folder.parts[-2:]}

    def size(self, path: PurePosixPath) -> int:
        """Bytes of a file; 0 if the storage does not say."""
        return self.system.size(self.text(path)) or 0

    def download(self, path: PurePosixPath, target: Path) -> None:
        """Copies a file to this machine."""
        if self.load:
            with self.system.open(self.text(path), **{"mode": "rb", **self.load}) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
        else:
            self.system.get_file(self.text(path), str(target))

    def upload(self, content: bytes | Path, path: PurePosixPath) -> None:
        """Writes a file there; without `save`, an upload that fails leaves the file that was there."""
        if self.save:
            with self.system.open(self.text(path), **{"mode": "wb", **self.save}) as file:
                file.write(content.read_bytes() if isinstance(content, Path) else content)
        elif isinstance(content, Path):
            self.system.put_file(str(content), self.text(path))
        else:
            self.system.pipe_file(self.text(path), content)
        self.system.invalidate_cache()

    def remove(self, path: PurePosixPath) -> None:
        """Removes a file."""
        self.system.rm_file(self.text(path))
        self.system.invalidate_cache()


def place_of(
    filepath: str | os.PathLike[str], credentials: Mapping[str, Any] | None, fs_args: Mapping[str, Any] | None
) -> Place:
    """Opens the file system of a path.

    Args:
        filepath: A path on this machine, `file:///...`, or an address such as `s3://bucket/name`.
        credentials: Arguments of the file system.
        fs_args: More arguments of the file system; `open_args_load` and `open_args_save` are those of its `open`.

    Raises:
        StorageError: The address has several parts, or one slash.
    """
    text = os.fspath(filepath)
    options = {**deepcopy(dict(credentials or {})), **deepcopy(dict(fs_args or {}))}
    load, save = options.pop("open_args_load", None) or {}, options.pop("open_args_save", None) or {}
    url = _URL.match(text)
    if _NOT_ONE_URL.match(text):
        raise StorageError(
            f"{without_password(text)} cannot be used: give a path on this machine, or an address with two slashes and "
            "one protocol, such as s3://bucket/folder/name."
        )
    if url is None or url["protocol"].lower() in _HERE:
        system = fsspec.filesystem("file", **{"auto_mkdir": True, **options})
        return Place("file", system, PurePosixPath(local_path(text)), load, save)
    protocol = url["protocol"].lower()
    system, found = file_system(text, options)
    path = PurePosixPath(found.removeprefix(f"{protocol}://"))
    rest, own = text[url.end() :].rstrip("/"), path.as_posix().lstrip("/")
    host = rest.removesuffix(own) if rest.endswith(f"/{own}") else ""  # of sftp and others, whose paths are without it
    return Place(protocol, system, path, load, save, f"{protocol}://{host}")


class RemoteGroup:
    """Files of one folder in another storage that are replaced together.

    While they are replaced, the first of the names is missing. So an upload that was cut off is no saved group, and the
    next one continues from nothing.

    Args:
        place: The storage.
        folder: The folder in it.
        names: Names of all files that the group can have, first its marker.
        is_alone: Whether the folder holds nothing else; then others' files in it are refused.
    """

    def __init__(self, place: Place, folder: PurePosixPath, names: tuple[str, ...], *, is_alone: bool) -> None:
        self._place = place
        self._folder = folder
        self._names = names
        self._is_alone = is_alone

    def present(self) -> set[str]:
        """Names of the files that are there."""
        return self._place.listed(self._folder) & set(self._names)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(self._place.size(self._folder / name) for name in self.present())

    def download(self, target: Path) -> None:
        """Copies all files into a folder on this machine."""
        present = self.present()
        for name in self._names:  # not what is listed, which could name any path
            if name in present:
                self._place.download(self._folder / name, target / name)

    def replace(self, files: Mapping[str, bytes]) -> None:
        """Replaces all files of the group; those that are not among `files` are removed.

        Raises:
            StorageError: The storage refuses, or others' files are in the way.
        """
        with self._place.writing(self._folder):
            for mistake in self.mistakes():
                raise StorageError(mistake)
            left = self.present()
            stale = [name for name in self._names if name in left and name not in files]
            marker, *others = self._names
            if marker not in files:
                self._upload(files, others)
                self._remove(stale)
                return
            if marker in left and (len(files) > 1 or stale):
                self._remove([marker])
            self._remove(stale)
            self._upload(files, [*others, marker])

    def remove(self) -> None:
        """Removes all files of the group; raises the errors of `replace`."""
        self.replace({})

    def mistakes(self) -> list[str]:
        """Says what of others is in the folder, if the group has it to itself."""
        if not self._is_alone:
            return []
        names = {name for name in self._place.listed(self._folder) if not name.startswith(".")}
        return others_mistake(self._place.url(self._folder), names, self._names)

    def _upload(self, files: Mapping[str, bytes], order: list[str]) -> None:
        for name in order:
            if name in files:
                self._place.upload(files[name], self._folder / name)

    def _remove(self, names: list[str]) -> None:
        for name in names:
            self._place.remove(self._folder / name)

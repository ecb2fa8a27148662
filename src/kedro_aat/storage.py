"""Files on this machine that survive a crash at any moment: they are replaced whole, and flushed to disk."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from kedro_aat.disk import disk_errors, hold, new_file, sync
from kedro_aat.errors import StorageError
from kedro_aat.remote import without_password

_PROTOCOL = re.compile(r"(?P<name>[A-Za-z][\w+.-]+):(?=:|/)")  # a Windows drive has one letter
_FILE_URL = re.compile(r"(?:file|local):(?://(?:localhost)?)?(?P<path>/(?!/).*)", re.IGNORECASE)

# Endings of hidden names beside the files that are replaced. Only this module uses such names.
_NEW = ".kedro-aat-new-"  # the start of the name of a folder with files that are being written
_PENDING = ".kedro-aat-pending"  # a folder with files that are complete, but not all of them in their places
_LOCK = ".kedro-aat-lock"
_REMOVED = ".removed"  # in a pending folder: there is no file of this name any more

_MAX_LISTED = 5  # files of others in a message


def local_path(path: str | Path) -> Path:
    """Returns a path on this machine; `file:///folder` is `/folder`.

    Raises:
        StorageError: The path has another protocol, such as `s3://`, or is relative after `file://`.
    """
    text = os.fspath(path)
    if (url := _FILE_URL.fullmatch(text)) is not None:
        return Path(url["path"])
    if (protocol := _PROTOCOL.match(text)) is None:
        return Path(text)
    shown = without_password(text)
    if protocol["name"].lower() in ("file", "local"):
        raise StorageError(f"{shown} is not an absolute path: write file:///folder/name, or a path without file://.")
    raise StorageError(
        f"{shown} cannot be used, because only paths on this machine are supported so far: give a local path, such as "
        "data/06_models/name, and copy what a run writes there."
    )


def is_local_path(path: str | Path) -> bool:
    """Whether a path is on this machine."""
    text = os.fspath(path)
    protocol = _PROTOCOL.match(text)
    return protocol is None or protocol["name"].lower() in ("file", "local")


def is_ours(path: Path) -> bool:
    """Whether a path is a hidden one that this module makes beside the files that it replaces."""
    return path.name.startswith(".") and any(mark in path.name for mark in (_NEW, _PENDING, _LOCK))


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields the path of a new file, which takes the place of `target` if the block ends without an error.

    Raises:
        StorageError: The file system refuses, or another process is writing `target`.
    """
    with _locked(target.parent, target.name, target), new_file(target) as new:
        yield new


class FileGroup:
    """Files of one folder that are replaced together: after a crash, all of them are old or all are new.

    New files are first written to a hidden folder. Its renaming is the instant at which the new files replace the old
    ones: from then on, `path` finds them in the hidden folder, from which they are moved to their places. If a crash
    interrupts that, the next `replace` continues.

    Args:
        folder: The folder, which is created if needed.
        names: Names of all files that the group can have.
        prefix: Start of the hidden names, which tells the groups of one folder apart. A group without it has the
            folder to itself: others' files in it are refused.
        copy_of: Address of the folder of which `folder` is a copy, for messages; empty if it is none.
    """

    def __init__(self, folder: Path, names: tuple[str, ...], prefix: str = "", *, copy_of: str = "") -> None:
        self.folder = folder
        self._copy_of = copy_of
        self._names = names
        self._prefix = prefix
        self._pending = folder / _hidden(prefix, _PENDING)

    def path(self, name: str) -> Path:
        """Returns where a file is now; nothing is there if the group was saved without it."""
        waiting = (self._pending / name, self._pending / f"{name}{_REMOVED}")
        is_waiting = self._is_pending() and any(path.exists() for path in waiting)
        return waiting[0] if is_waiting else self.folder / name

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self.path(name).exists()

    def shown(self, name: str) -> str:
        """A file's path for messages; of a copy, the address of the original."""
        return f"{self._copy_of}/{name}" if self._copy_of else str(self.path(name))

    def replace(self, files: Mapping[str, bytes]) -> None:
        """Replaces all files of the group; those that are not among `files` are removed.

        Raises:
            StorageError: The file system refuses, another process is writing these files, or others' files are in
                the way. Either all old files are in use then, or all new ones.
        """
        for mistake in self.mistakes():
            raise StorageError(mistake)
        with _writing(self.folder, self._prefix) as new:
            self._move_pending()
            for name in self._names:
                path = new / (name if name in files else f"{name}{_REMOVED}")
                path.write_bytes(files.get(name, b""))
                sync(path)
            sync(new)
            new.rename(self._pending)
            sync(self.folder)
            self._move_pending()

    def remove(self) -> None:
        """Removes all files of the group, and the folder if nothing is left in it; raises the errors of `replace`."""
        if os.path.lexists(self.folder):
            self.replace({})
            with suppress(OSError):  # it is a link, or has hidden files
                self.folder.rmdir()

    def mistakes(self) -> list[str]:
        """Says what of others is where the files go: folders, and any files if the group has its folder to itself."""
        if folders := [path for name in self._names if (path := self.folder / name).is_dir()]:
            return [f"{folders[0]} is a folder, so no file is written there: give another path, or move it away."]
        if self._prefix or not self.folder.is_dir():
            return []
        # Hidden files are left alone: file managers, network file systems and Git's users put them anywhere.
        names = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        return others_mistake(self.folder, names, self._names)

    def _is_pending(self) -> bool:
        """Whether there is a folder with complete files.

        Raises:
            StorageError: It is a link, which this module never makes: files of another folder would be moved.
        """
        if self._pending.is_symlink():
            raise StorageError(f"{self._pending} is a link, which is not followed. Remove it.")
        return self._pending.is_dir()

    def _move_pending(self) -> None:
        """Moves complete files to their places."""
        if not self._is_pending():
            return
        for name in self._names:
            if (self._pending / name).exists():
                (self._pending / name).replace(self.folder / name)
            elif (removed := self._pending / f"{name}{_REMOVED}").exists():
                (self.folder / name).unlink(missing_ok=True)
                removed.unlink()
        sync(self.folder)
        self._pending.rmdir()


def others_mistake(folder: object, names: Collection[str], own: Collection[str]) -> list[str]:
    """Says which names in a folder are not its own; empty if all are.

    Args:
        folder: The folder, for the message.
        names: What is in it.
        own: What may be in it.
    """
    others = sorted(set(names).difference(own))
    if not others:
        return []
    listed = ", ".join([*others[:_MAX_LISTED], *(["..."] if len(others) > _MAX_LISTED else [])])
    return [
        f"{len(others)} other {'entry' if len(others) == 1 else 'entries'} in {folder}: {listed}. It may hold only "
        f"{', '.join(own)}, so nothing is written: give a folder of its own, or move the others away."
    ]


@contextmanager
def _locked(folder: Path, prefix: str, target: Path) -> Iterator[bool]:
    """Holds the lock of `target`; yields False if the file system has no locks."""
    with disk_errors(target, kind=StorageError):
        _make_folder(folder)
        with hold(folder / _hidden(prefix, _LOCK), target, wait=False) as is_locked:
            yield is_locked


@contextmanager
def _writing(folder: Path, prefix: str) -> Iterator[Path]:
    """Yields a new hidden folder for files of a group; only one process at a time gets one."""
    with _locked(folder, prefix, folder / prefix) as is_locked:
        if is_locked:
            for path in folder.iterdir():
                if path.name.startswith(_hidden(prefix, _NEW)):  # left by a crash
                    shutil.rmtree(path, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=_hidden(prefix, _NEW), dir=folder))
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _hidden(prefix: str, ending: str) -> str:
    return f".{prefix}{ending}" if prefix else ending


def _make_folder(folder: Path) -> None:
    """Creates a folder, its parents, and the target of a link that leads nowhere yet."""
    missing = Path(os.path.realpath(folder))
    folders = [path for path in (missing, *missing.parents) if not path.is_dir()]
    for path in reversed(folders):
        path.mkdir(exist_ok=True)
        sync(path.parent)

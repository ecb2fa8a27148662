"""A copy of a checkpoint store in a remote folder, from which another machine goes on.

    <mirror>/<run>/...              as in the store: checkpoints, the journal, run.json, finished, seconds
    <mirror>/<run>/mirror.json      which upload was the last one
    <mirror>/finished_steps/...     and the other folders that runs share

`uploads` writes it. A checkpoint is whole if its manifest is there and its checksums are right, as in the store.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem

from kedro_aat.disk import disk_errors, hold, sync
from kedro_aat.errors import HeldError
from kedro_aat.remote import explained, file_system, remote_errors, without_password
from kedro_aat.training.checkpoints.files import numbers_in

logger = logging.getLogger(__name__)

SHARED = ("finished_steps", "estimates", "rehearsals", "ledgers")  # folders that runs share, beside them
RUN, MARKER = "run.json", "mirror.json"
# Hidden files of a store: what the mirror has of a run, and of the shared folders.
STATE = ".mirror"
_HIDDEN = "."
_FETCHING = ".fetching-"  # begins the names of folders for what is being copied here
MANIFEST = re.compile(r"checkpoint-(\d{6,})/manifest\.json")

# Size and time of change of a file that was copied; None if it is not known what was.
Copied = dict[str, tuple[int, int] | None]


@dataclass(frozen=True)
class MirrorState:
    """What a disk knows of a mirror.

    Attributes:
        upload: Identifies the last upload; None if there was none.
        copied: What the mirror has, by path.
    """

    upload: str | None
    copied: Copied

    @classmethod
    def read(cls, folder: Path) -> MirrorState:
        """Reads it from a folder; empty if there is none."""
        try:
            known = json.loads((folder / STATE).read_bytes())
            copied = {str(name): (int(size), int(time)) for name, (size, time) in known["copied"].items()}
            return cls(str(known["upload"]), {**copied})
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return cls(None, {})

    def write(self, folder: Path) -> None:
        """Writes it into a folder. If it is lost, files are copied once more."""
        copied = {name: each for name, each in self.copied.items() if each is not None}
        # The name is new, since another process of the same store may write it at the same time.
        new = folder / f"{STATE}-{uuid.uuid4().hex}"
        try:
            new.write_text(json.dumps({"upload": self.upload, "copied": copied}))
            new.replace(folder / STATE)
        finally:
            new.unlink(missing_ok=True)


class Mirror:
    """A remote folder with a copy of a store. A handle, which is cheap to copy.

    Args:
        url: The folder, such as `s3://bucket/checkpoints`.
        options: Credentials and other arguments of fsspec's class.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self._url = url.rstrip("/")
        self._options = dict(options or {})
        file_system(self._url, self._options)  # a protocol that is unknown is an error before anything runs

    @property
    def shown(self) -> str:
        """The folder, without a password."""
        return without_password(self._url)

    def folder(self) -> tuple[AbstractFileSystem, str]:
        """The file system, and the path in it."""
        return file_system(self._url, self._options)

    @contextmanager
    def opened(self) -> Iterator[tuple[AbstractFileSystem, str]]:
        """Yields the file system and the path in it; what the storage refuses is an error of ours."""
        with remote_errors(self._url, "read the mirror of the checkpoints"):
            yield self.folder()

    def files(self, *names: str) -> dict[str, int]:
        """Sizes of all files below a folder, by their path in it."""
        with self.opened() as (fs, root):
            folder = "/".join((root, *names))
            fs.invalidate_cache()
            try:
                found = fs.find(folder, detail=True)
            except FileNotFoundError:
                return {}
            start = len(fs._strip_protocol(folder).rstrip("/")) + 1
            return {str(path)[start:]: int(info.get("size") or 0) for path, info in found.items()}

    @contextmanager
    def outline(self) -> Iterator[Path]:
        """Yields a temporary folder with the runs of the mirror: run.json, marks, and empty checkpoints."""
        with tempfile.TemporaryDirectory(prefix="kedro-aat-") as name:
            found = self.files()
            records = {path for path in found if PurePosixPath(path).name == RUN and path.count("/") == 1}
            runs = {path.partition("/")[0] for path in records}
            with self.opened() as (fs, root):
                contents = fs.cat([f"{root}/{path}" for path in sorted(records)]) if records else {}
                for path, text in contents.items():
                    run = str(path).split("/")[-2]
                    (Path(name) / run).mkdir()
                    (Path(name) / run / RUN).write_bytes(text)
            for path in found:
                run, _, inner = path.partition("/")
                if run in runs and inner == "finished":
                    (Path(name) / run / inner).touch()
                elif run in runs and MANIFEST.fullmatch(inner):
                    (Path(name) / run / inner).parent.mkdir(parents=True)
            yield Path(name)

    def last_upload(self, run: str) -> str | None:
        """Identifies the last upload of a run; None if there was none."""
        with self.opened() as (fs, root):
            try:
                return str(json.loads(fs.cat_file(f"{root}/{run}/{MARKER}"))["upload"])
            except (FileNotFoundError, ValueError, LookupError, TypeError):
                return None

    def fetch(self, root: Path, run: str) -> None:
        """Copies a run of the mirror into a store, unless the store has the same or more of it.

        Args:
            root: Folder of the store.
            run: Name of the run's folder.

        Raises:
            CheckpointError: If the mirror cannot be read, or the disk cannot be written.
        """
        folder = root / run
        here = numbers_in(folder)
        upload = self.last_upload(run)
        if here and MirrorState.read(folder).upload == upload:
            return
        files = self.files(run)
        there = [int(match[1]) for match in map(MANIFEST.fullmatch, files) if match]
        if not there or (here and max(here) >= max(there)):
            return
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            new = Path(tempfile.mkdtemp(prefix=_FETCHING, dir=root))
            try:
                self._download(run, files, new, upload)
                if folder.exists():
                    with hold(folder / ".lock", folder, wait=False):
                        folder.rename(new / ".replaced")
                (new / run).rename(folder)
                sync(root)
            except HeldError:  # another process goes on with the run of this disk
                return
            finally:
                shutil.rmtree(new, ignore_errors=True)
        logger.info("%s: checkpoints up to number %d come from the mirror %s.", folder, max(there), self.shown)

    def _download(self, run: str, files: Mapping[str, int], new: Path, upload: str | None) -> None:
        copied: Copied = {}
        with self.opened() as (fs, root):
            for path in sorted(files):
                if path == MARKER:
                    continue
                target = new / run / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # removed meanwhile, with a checkpoint that is not needed any more
                    fs.get_file(f"{root}/{run}/{path}", str(target))
                    sync(target)
                    copied[path] = stamp_of(target)
        MirrorState(upload, copied).write(new / run)

    def remove(self, run: str) -> None:
        """Removes a run, first what identifies it, so that a removal that is cut off leaves no run.

        Raises:
            CheckpointError: If the mirror cannot be written.
        """
        with remote_errors(self._url, "remove a run from the mirror of the checkpoints"):
            fs, root = file_system(self._url, self._options)
            for path in (f"{root}/{run}/{RUN}", f"{root}/{run}"):
                with suppress(FileNotFoundError):
                    fs.rm(path, recursive=True)

    def fetch_shared(self, root: Path) -> None:
        """Copies what runs share and this disk lacks into a store.

        Raises:
            CheckpointError: If the mirror cannot be read, or the disk cannot be written.
        """
        known = dict(MirrorState.read(root).copied)
        for name in SHARED:
            for inner in self.files(name):
                path, target = f"{name}/{inner}", root / name / inner
                if target.exists() or path in known:  # or it was removed here, and will be there
                    continue
                with disk_errors(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    # A folder of its own, since other processes may copy the same file at the same time.
                    with tempfile.TemporaryDirectory(prefix=_FETCHING, dir=root) as new:
                        with self.opened() as (fs, folder):
                            fs.get_file(f"{folder}/{path}", f"{new}/{target.name}")
                        (Path(new) / target.name).replace(target)
                    known[path] = stamp_of(target)
        if known:
            with disk_errors(root):
                MirrorState("shared", known).write(root)

    def push_shared(self, root: Path) -> None:
        """Copies what runs share into the mirror, and removes there what was removed here; a failure is a warning."""
        try:
            known = dict(MirrorState.read(root).copied)
            present = {name: stamp for folder in SHARED for name, stamp in present_in(root, folder).items()}
            changed = {name: stamp for name, stamp in present.items() if known.get(name) != stamp}
            gone = known.keys() - present.keys()
            if not changed and not gone:
                return
            with self.opened() as (fs, folder):
                for name in sorted(changed):
                    with suppress(FileNotFoundError):  # removed meanwhile
                        fs.put_file(str(root / name), f"{folder}/{name}")
                for name in sorted(gone):
                    with suppress(FileNotFoundError):
                        fs.rm_file(f"{folder}/{name}")
            MirrorState("shared", {**present}).write(root)
        except Exception as error:
            logger.warning("%s", failure(self.shown, error, root), extra={"markup": False})


def failure(mirror: str, error: Exception, folder: Path) -> str:
    """What a failed upload means, and what to do.

    Args:
        mirror: The mirror, as it may be shown.
        error: Why it failed.
        folder: Where everything is.
    """
    cause = explained(error.__cause__ if error.__cause__ is not None else error)
    return (
        f"The mirror {mirror} lacks what was saved last ({cause}). The run goes on, and everything is in {folder}. "
        "Each save tries again; until one succeeds, another machine would go on from an older checkpoint. Check that "
        "the mirror can be reached, its space, and the `credentials` and `fs_args` of checkpoint_store."
    )


def present_in(root: Path, folder: str = "") -> dict[str, tuple[int, int]]:
    """The files below a folder that are mirrored, by their path from `root`, with size and time of change."""
    found = {}
    for path in (root / folder).rglob("*"):
        inner = path.relative_to(root)
        if not any(part.startswith(_HIDDEN) for part in inner.parts):
            with suppress(OSError):  # it was removed meanwhile
                if path.is_file():
                    found[inner.as_posix()] = stamp_of(path)
    return found


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of change of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns

"""A store of checkpoints that a crash at any moment leaves usable.

    root/<run>/run.json                    what the run is: its configuration, for people to read
    root/<run>/checkpoint-000012/          one folder a checkpoint
        model.safetensors                  tensors of the model's state_dict
        training.pt                        optimizer, scheduler, controller and RNG state (weights_only)
        state.json                         search state, counters, history
        manifest.json                      checksums of the files above, written last

A checkpoint is written under a temporary name, flushed to disk and renamed. One that is torn or damaged fails
its checksums and is passed over with a warning. Nothing here is ever unpickled into arbitrary objects.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import re
import shutil
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from kedro_aat.errors import CheckpointError
from kedro_aat.tensors import load_tensors, serialize_tensors

logger = logging.getLogger(__name__)

_CONTAINERS = {dict, OrderedDict, Counter, list, tuple, set, torch.Size}
_PLAIN = {int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device}
_FILES = {"model.safetensors", "training.pt", "state.json"}
_NAME = re.compile(r"checkpoint-(\d{6,})")


@dataclass
class Checkpoint:
    """All that a run needs to go on from an epoch boundary.

    Attributes:
        number: Counts the validations of the run, from 0.
        model: The model's `state_dict`.
        training: Whatever else holds tensors; plain containers, numbers, strings and tensors only.
        state: Plain JSON data.
        folder: Where it lies; set when it is read.
    """

    number: int
    model: dict[str, Any]
    training: dict[str, Any]
    state: dict[str, Any]
    folder: Path | None = None


class CheckpointStore:
    """A folder of runs. A handle: it holds no open file and is cheap to copy."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def open(self, identity: Mapping[str, Any], *, reuse_finished: bool = True) -> RunCheckpoints:
        """The checkpoints of the run with this identity, locked for this process.

        The same identity finds the same run again, so that it goes on where it stood.

        Args:
            identity: JSON data (and paths) that tells this run from others: configuration, seed, hashes of the inputs.
            reuse_finished: Whether a run that ended is returned too; otherwise a new one is begun beside it.

        Raises:
            CheckpointError: If another process is at work on this run and `reuse_finished` is set.
        """
        text = json.dumps(identity, sort_keys=True, indent=2, default=_path_as_text)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        attempt = 1
        while True:
            folder = self.root / (digest if attempt == 1 else f"{digest}-{attempt}")
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                if reuse_finished:
                    raise CheckpointError(
                        f"Another process is at work on the run in {folder}. Wait for it or stop it."
                    ) from None
            else:
                run = RunCheckpoints(folder, lock)
                if reuse_finished or not run.is_finished:
                    if not (folder / "run.json").exists():
                        (folder / "run.json").write_text(text)
                    return run
                run.close()
            attempt += 1

    def numbers_of(self, run: str) -> list[int]:
        """Numbers of the checkpoints of a run, by its folder's name; none if there is no such run."""
        return _numbers_in(self.root / run)

    def load(self, run: str, number: int) -> Checkpoint:
        """Reads a checkpoint of a run that has ended.

        Raises:
            CheckpointError: If it is missing, torn or damaged.
        """
        return _read(_path_in(self.root / run, number), number)


class RunCheckpoints:
    """The checkpoints of one run. A context manager that holds the run's lock."""

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder = folder
        self._lock = lock
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        for torn in folder.glob(".writing-*"):
            shutil.rmtree(torn)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes have the run, when all is on disk."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._lock.release()

    @property
    def is_finished(self) -> bool:
        """Whether the search of this run came to its end."""
        return (self.folder / "finished").exists()

    def finish(self) -> None:
        """Notes that the search came to its end."""
        self.wait()
        (self.folder / "finished").touch()

    @property
    def numbers(self) -> list[int]:
        """Numbers of the checkpoints on disk, rising; a damaged one is among them until it is read."""
        self.wait()
        return _numbers_in(self.folder)

    def save(
        self,
        checkpoint: Checkpoint,
        dump: Callable[[Path], object] | None = None,
        *,
        keep: Collection[int] | None = None,
        wait: bool = True,
    ) -> None:
        """Writes a checkpoint, all of it or nothing.

        Args:
            checkpoint: What to write.
            dump: Writes files of the user's own into the folder it is given, and returns the path of the
                one to load them from.
            keep: Numbers of the checkpoints that stay beside this one when it is on disk; None keeps all.
            wait: Whether to return only when it is on disk. Otherwise it is taken as it is now and written while
                training goes on; whatever else is asked of this object waits for it.

        Raises:
            CheckpointError: If `training` holds objects that could not be read back safely.
        """
        self.wait()
        target = self._path(checkpoint.number)
        writing = self.folder / f".writing-{checkpoint.number:06d}"
        require_plain(checkpoint.training, "training")
        if writing.exists():  # left by a save that failed
            shutil.rmtree(writing)
        writing.mkdir()
        state = dict(checkpoint.state)
        if dump is not None:
            state["dumped"] = _relative_to(dump(writing), writing)
        if not wait:  # what is written must not change while training goes on
            checkpoint = replace(checkpoint, model=_copied(checkpoint.model), training=_copied(checkpoint.training))
        self._pending = self._writer.submit(self._write, writing, replace(checkpoint, state=state), target, keep)
        if wait:
            self.wait()

    def _write(self, writing: Path, checkpoint: Checkpoint, target: Path, keep: Collection[int] | None) -> None:
        training = io.BytesIO()
        torch.save(checkpoint.training, training)
        contents = {
            "model.safetensors": serialize_tensors(checkpoint.model),
            "training.pt": training.getvalue(),
            "state.json": json.dumps(checkpoint.state, allow_nan=False).encode(),
        }
        # Files of the user's own are there already.
        checksums = {str(path.relative_to(writing)): _checksum(path.read_bytes()) for path in _files_in(writing)}
        checksums |= {name: _checksum(written) for name, written in contents.items()}
        contents["manifest.json"] = json.dumps(checksums, indent=1).encode()
        for name, written in contents.items():
            (writing / name).write_bytes(written)
        for path in (*_files_in(writing), writing):
            _sync(path)
        if target.exists():  # a damaged checkpoint that the run went back behind
            shutil.rmtree(target)
        writing.rename(target)
        _sync(self.folder)
        if keep is not None:
            self._remove_all_but({target, *map(self._path, keep)})

    def wait(self) -> None:
        """Waits until all is on disk, and raises what went wrong on the way."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load(self, number: int) -> Checkpoint:
        """Reads a checkpoint.

        Raises:
            CheckpointError: If it is missing, torn or damaged.
        """
        self.wait()
        return _read(self._path(number), number)

    def latest(self) -> Checkpoint | None:
        """The last checkpoint that can be read, None if there is none."""
        for number in reversed(self.numbers):
            try:
                return self.load(number)
            except CheckpointError as error:
                logger.warning("%s. The checkpoint before it is used.", error)
        return None

    def keep_only(self, numbers: Collection[int]) -> None:
        """Removes all checkpoints but these."""
        self.wait()
        self._remove_all_but({self._path(number) for number in numbers})

    def _remove_all_but(self, kept: set[Path]) -> None:
        for path in {self._path(number) for number in _numbers_in(self.folder)} - kept:
            shutil.rmtree(path)

    def _path(self, number: int) -> Path:
        return _path_in(self.folder, number)


def _path_in(folder: Path, number: int) -> Path:
    return folder / f"checkpoint-{number:06d}"


def _read(folder: Path, number: int) -> Checkpoint:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if not isinstance(manifest, dict) or not manifest.keys() >= _FILES:
            raise CheckpointError(f"{folder} is damaged: its manifest does not list what belongs to a checkpoint")
        damaged = [name for name, checksum in manifest.items() if _checksum((folder / name).read_bytes()) != checksum]
        if damaged:
            raise CheckpointError(f"{folder} is damaged: the checksum of {', '.join(damaged)} is wrong")
        return Checkpoint(
            number=number,
            model=load_tensors(folder / "model.safetensors"),
            training=torch.load(folder / "training.pt", map_location="cpu", weights_only=True),
            state=json.loads((folder / "state.json").read_text()),
            folder=folder,
        )
    except (OSError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def _numbers_in(folder: Path) -> list[int]:
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir()) if folder.exists() else ()
    return sorted(int(match[1]) for match in found if match)


def _copied(value: Any) -> Any:
    """A nested state with its tensors copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Counter):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(part) for part in value)
    return value


def require_plain(value: Any, where: str) -> None:
    """Checks that a state can be read back without running code.

    Raises:
        CheckpointError: Names the first thing that is neither tensor, number, string nor plain container.
    """
    if isinstance(value, Mapping) and type(value) in _CONTAINERS:
        for key, part in value.items():
            require_plain(key, where)
            require_plain(part, f"{where}.{key}")
    elif type(value) in _CONTAINERS:
        for index, part in enumerate(value):
            require_plain(part, f"{where}[{index}]")
    elif type(value) not in _PLAIN and not isinstance(value, Tensor):
        raise CheckpointError(
            f"{where} of a checkpoint is a {type(value).__qualname__}, which could not be read back without running "
            "code. Let get_state() and state_dict() return tensors, numbers, strings and plain containers."
        )


def _path_as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise CheckpointError(f"the configuration holds {value!r}, by which a run could not be found again")


def _relative_to(written: object, folder: Path) -> str:
    """The path that a user's function returned, relative where it lies inside `folder`."""
    if not isinstance(written, str | Path):
        raise CheckpointError(f"dump_checkpoint_fn must return the path of what it wrote, but returned {written!r}")
    path, folder = Path(written).resolve(), folder.resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _checksum(contents: bytes) -> str:
    # CRC-32 and size find a torn or damaged file; a stronger hash would cost more than all else here.
    return f"crc32:{zlib.crc32(contents):08x}:{len(contents)}"


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

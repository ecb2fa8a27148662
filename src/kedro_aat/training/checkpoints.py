"""A store of checkpoints that stays usable after a crash at any moment.

    root/<run>/run.json                    identity of the run: its configuration, for people to read
    root/<run>/checkpoint-000012/          one folder per checkpoint
        model.safetensors                  tensors of the model's state_dict
        training.pt                        optimizer, scheduler, controller and RNG state (weights_only)
        state.json                         search state, counters, history
        manifest.json                      checksums of the files above, written last

A checkpoint is written under a temporary name, flushed to disk and renamed. A torn or damaged one fails its checksums
and is skipped with a warning. Nothing is ever unpickled into arbitrary objects.
"""

from __future__ import annotations

import copy
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
from torch.utils._pytree import tree_map

from kedro_aat.errors import CheckpointError
from kedro_aat.tensors import load_tensors, serialize_tensors

logger = logging.getLogger(__name__)

_CONTAINERS = {dict, OrderedDict, Counter, list, tuple, set, torch.Size}
_PLAIN = {int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device}
_FILES = {"model.safetensors", "training.pt", "state.json"}
_NAME = re.compile(r"checkpoint-(\d{6,})")


@dataclass
class Checkpoint:
    """Everything that a run needs to continue from an epoch boundary.

    Attributes:
        number: Number of the checkpoint; counts the validations of the run from 0.
        model: The model's `state_dict`.
        training: Other state with tensors; plain containers, numbers, strings and tensors only.
        state: Plain JSON data.
        folder: Folder of the checkpoint; set when it is read.
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

        The same identity finds the same run again, which then continues.

        Args:
            identity: JSON data (and paths) that identifies the run: configuration, seed, hashes of the inputs.
            reuse_finished: Whether to return a finished run; otherwise a new run begins beside it.

        Raises:
            CheckpointError: If another process holds this run and `reuse_finished` is set.
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
                        f"Another process holds the run in {folder}. Wait until it ends, or stop it."
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
        """Reads a checkpoint of a finished run.

        Args:
            run: Name of the run's folder.
            number: Number of the checkpoint.

        Raises:
            CheckpointError: If it is missing, torn or damaged.
        """
        return _read(_path_in(self.root / run, number), number)


class RunCheckpoints:
    """The checkpoints of one run; a context manager that holds the run's lock."""

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
        """Waits until everything is on disk, then releases the run's lock."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._lock.release()

    @property
    def is_finished(self) -> bool:
        """Whether the search of this run has ended."""
        return (self.folder / "finished").exists()

    def finish(self) -> None:
        """Records that the search has ended."""
        self.wait()
        (self.folder / "finished").touch()

    @property
    def numbers(self) -> list[int]:
        """Numbers of the checkpoints on disk, ascending, including damaged ones."""
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
        """Writes a checkpoint, completely or not at all.

        Args:
            checkpoint: The checkpoint.
            dump: Writes the user's own files into a folder, and returns the path to load them from.
            keep: Numbers of the checkpoints to keep besides this one; None keeps all.
            wait: Whether to return only when the checkpoint is on disk. Otherwise a copy of it is written while
                training continues, and every other method waits for it.

        Raises:
            CheckpointError: If `training` holds objects that could not be read back safely.
        """
        self.wait()
        target = self._path(checkpoint.number)
        writing = self.folder / f".writing-{checkpoint.number:06d}"
        require_plain(checkpoint.training, "training")
        if writing.exists():  # left by a failed save
            shutil.rmtree(writing)
        writing.mkdir()
        state = dict(checkpoint.state)
        if dump is not None:
            state["dumped"] = _relative_to(dump(writing), writing)
        if not wait:  # the copy must not change while training continues
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
        # The user's own files are already there.
        checksums = {str(path.relative_to(writing)): _checksum(path.read_bytes()) for path in _files_in(writing)}
        checksums |= {name: _checksum(written) for name, written in contents.items()}
        contents["manifest.json"] = json.dumps(checksums, indent=1).encode()
        for name, written in contents.items():
            (writing / name).write_bytes(written)
        for path in (*_files_in(writing), writing):
            _sync(path)
        if target.exists():  # a damaged checkpoint that the run is replacing
            shutil.rmtree(target)
        writing.rename(target)
        _sync(self.folder)
        if keep is not None:
            for path in {*map(self._path, _numbers_in(self.folder))} - {target, *map(self._path, keep)}:
                shutil.rmtree(path)

    def wait(self) -> None:
        """Waits until everything is on disk, and raises any error of the writer."""
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
        """The last readable checkpoint; None if there is none."""
        for number in reversed(self.numbers):
            try:
                return self.load(number)
            except CheckpointError as error:
                logger.warning("%s. Using the checkpoint before it.", error)
        return None

    def _path(self, number: int) -> Path:
        return _path_in(self.folder, number)


def _path_in(folder: Path, number: int) -> Path:
    return folder / f"checkpoint-{number:06d}"


def _read(folder: Path, number: int) -> Checkpoint:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if not isinstance(manifest, dict) or not manifest.keys() >= _FILES:
            raise CheckpointError(f"{folder} is damaged: its manifest does not list all files of a checkpoint")
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


def _copied(state: Any) -> Any:
    """A copy of a nested state, with its tensors on the CPU."""
    return tree_map(
        lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else copy.copy(leaf), state
    )


def require_plain(value: Any, where: str) -> None:
    """Checks that a state can be read back without running code.

    Args:
        value: The state.
        where: Name of the state, for the message.

    Raises:
        CheckpointError: If it holds anything but tensors, numbers, strings and plain containers.
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
            f"{where} of a checkpoint is a {type(value).__qualname__}, which cannot be read back without running "
            "code. Let get_state() and state_dict() return tensors, numbers, strings and plain containers."
        )


def _path_as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise CheckpointError(f"the configuration holds {value!r}, which cannot identify a run")


def _relative_to(written: object, folder: Path) -> str:
    """The path that a user's function returned, relative to `folder` if it lies inside."""
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

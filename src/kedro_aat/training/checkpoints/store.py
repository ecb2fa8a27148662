"""A store of checkpoints that stays usable after a crash at any moment.

    root/<run>/run.json                    identity of the run, all its settings, and the version that wrote it
    root/<run>/checkpoint-000012/          one folder per checkpoint; see `files`
    root/<run>/finished                    the search has ended
    root/<run>/seconds                     wall time that it has used; see `stopwatch`
    root/file_hashes.json                  hashes of the data's files, if the data tell them

A checkpoint is written under a temporary name, flushed to disk and renamed. A torn or damaged one is skipped with a
warning.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kedro_aat.disk import IS_READ_ONLY, disk_errors, hold, sync
from kedro_aat.errors import CheckpointError, DamagedCheckpointError, HeldError, MissingRunError
from kedro_aat.storage import local_path
from kedro_aat.training.checkpoints.changes import log_changes
from kedro_aat.training.checkpoints.files import (
    Checkpoint,
    copied,
    numbers_in,
    path_in,
    read,
    relative_to,
    require_plain,
    write,
)
from kedro_aat.training.checkpoints.upgrades import AfterUpgrade, RunRecord, alike, as_json, choose_run

logger = logging.getLogger(__name__)

NO_RUN = "There is no run with these settings, model and data yet. Run the pipeline first, with the same settings."


class CheckpointStore:
    """A folder of runs. A handle: it holds no open file and is cheap to copy."""

    def __init__(self, root: str | Path) -> None:
        self.root = local_path(root)

    @property
    def file_hashes(self) -> Path:
        """File that keeps the hashes of the data's files."""
        return self.root / "file_hashes.json"

    def open(
        self,
        identity: Mapping[str, Any],
        *,
        ingredients: Mapping[str, Any] | None = None,
        reuse_finished: bool = True,
        after_upgrade: AfterUpgrade | None = None,
        may_differ: Collection[str] = (),
        create: bool = True,
    ) -> RunCheckpoints:
        """The checkpoints of the run with this identity, locked for this process.

        The same identity finds the same run again, which then continues. On a disk that cannot be written, a run with
        checkpoints can be read.

        Args:
            identity: JSON data (and paths) that identifies the run: configuration, seed, hashes of the inputs.
                Settings at their defaults are best left out, so that new ones do not rename the run.
            ingredients: The same with all settings, to be written beside the run; None for `identity`. Versions of
                packages under `packages` are compared like that of kedro-aat.
            reuse_finished: Whether to return a finished run; otherwise a new run begins beside it.
            after_upgrade: Whether a run that another version of kedro-aat or of a package wrote is continued, or a new
                one begins beside it; None raises an error if there is such a run.
            may_differ: Names of ingredients, at any depth, in which a run may differ that is continued, if there is
                none with just this identity.
            create: Whether a new run begins if there is none.

        Raises:
            MissingRunError: If there is no such run, and none may begin.
            CheckpointError: If another process holds this run and `reuse_finished` is set, if there is a run of another
                version and `after_upgrade` is None, or if the disk cannot be used.
        """
        name = hashlib.sha256(as_json(identity).encode()).hexdigest()[:12]
        known: dict[str, Any] = json.loads(as_json(ingredients or identity))
        with disk_errors(self.root):
            for folder in self._folders(name, known, identity, reuse_finished, after_upgrade, may_differ):
                if not create and not numbers_in(folder):
                    raise MissingRunError(NO_RUN)
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    run = self._locked(folder)
                except HeldError as error:
                    if reuse_finished:
                        raise CheckpointError(str(error)) from None
                    continue
                with ExitStack() as stack:
                    stack.callback(run.close)
                    if reuse_finished or not run.is_finished:
                        if not numbers_in(folder):
                            log_changes(folder.name, known, self._others(folder))
                        run.prepare(name, known)
                        stack.pop_all()
                        return run
        raise AssertionError("there is always another name")

    def _others(self, folder: Path) -> list[RunRecord]:
        found = (RunRecord.read(each) for each in self.root.glob("*") if each != folder and each.is_dir())
        return [record for record in found if record is not None]

    def _folders(
        self,
        name: str,
        ingredients: Mapping[str, Any],
        identity: Mapping[str, Any],
        reuse_finished: bool,
        after_upgrade: AfterUpgrade | None,
        may_differ: Collection[str],
    ) -> Iterator[Path]:
        """Folders that the run may have: those of this version, then one of another version, then new ones."""
        folders = sorted(path for path in self.root.glob("*") if path.is_dir())
        records = {folder: RunRecord.read(folder) for folder in folders}
        is_open = {folder: reuse_finished or not (folder / "finished").exists() for folder in folders}
        own = [
            folder
            for folder, record in records.items()
            if is_open[folder]
            and (
                folder.name == name
                if record is None
                else record.is_named(name) and not record.is_of_another_version(ingredients)
            )
        ]
        if not own and may_differ:
            open_records = [record for folder, record in records.items() if record is not None and is_open[folder]]
            own = [record.folder for record in alike(open_records, ingredients, may_differ)]
        yield from own
        others = [
            record
            for record in records.values()
            if record is not None
            and is_open[record.folder]
            and record.is_of_another_version(ingredients)
            and (record.is_named(name) or record.is_same_as(ingredients, identity))
        ]
        if others and not own:
            chosen = choose_run(others, ingredients, after_upgrade)
            if chosen is not None:
                yield chosen.folder
        names = (name if attempt == 1 else f"{name}-{attempt}" for attempt in itertools.count(1))
        yield from (self.root / new for new in names if self.root / new not in folders)

    @staticmethod
    def _locked(folder: Path) -> RunCheckpoints:
        lock = ExitStack()
        try:
            lock.enter_context(hold(folder / ".lock", folder, wait=False))
        except OSError as error:
            # A run that ended at its time limit has no mark that it has finished, since it may go on with more time.
            if error.errno not in IS_READ_ONLY or not numbers_in(folder):
                raise
            logger.info("%s cannot be written; its run is only read.", folder)
            return RunCheckpoints(folder, lock, error)
        return RunCheckpoints(folder, lock)

    def numbers_of(self, run: str) -> list[int]:
        """Numbers of the checkpoints of a run, by its folder's name; none if there is no such run."""
        return numbers_in(self.root / run)

    def load(self, run: str, number: int) -> Checkpoint:
        """Reads a checkpoint of a finished run.

        Args:
            run: Name of the run's folder.
            number: Number of the checkpoint.

        Raises:
            CheckpointError: If it is missing, torn or damaged.
        """
        return read(path_in(self.root / run, number), number)


class RunCheckpoints:
    """The checkpoints of one run; a context manager that holds the run's lock.

    Args:
        folder: Folder of the run.
        lock: Releases its lock.
        refusal: Why the folder cannot be written; None if it can.
    """

    def __init__(self, folder: Path, lock: ExitStack, refusal: OSError | None = None) -> None:
        self.folder = folder
        self._lock = lock
        self._refusal = refusal
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._lost: set[int] = set()

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
            self._lock.close()

    @property
    def is_writable(self) -> bool:
        """Whether checkpoints can be saved."""
        return self._refusal is None

    def require_writable(self) -> None:
        """Raises `CheckpointError` if no checkpoint can be saved, before an epoch is trained for nothing."""
        if self._refusal is not None:
            with disk_errors(self.folder):
                raise self._refusal

    def prepare(self, name: str, ingredients: dict[str, Any]) -> None:
        """Removes what a killed process was writing, and writes what identifies the run and which version writes it.

        Args:
            name: Name of the run, which is not that of its folder if the run of another version is continued.
            ingredients: What identifies the run, with all settings.
        """
        if not self.is_writable:
            return
        for torn in self.folder.glob(".writing-*"):
            _remove(torn)
        known = RunRecord.read(self.folder)
        is_of_this_version = known is not None and known.is_of_this_version(ingredients)
        if known is not None and is_of_this_version and known.ingredients == ingredients:
            return
        about: dict[str, Any] = {} if known is None else dict(known.about)
        about["name"] = name
        if known is not None and not is_of_this_version:
            about["continued_from"] = [*known.about.get("continued_from", ()), known.version]
        RunRecord(self.folder, ingredients, about).write()

    @property
    def is_finished(self) -> bool:
        """Whether the search of this run has ended."""
        return (self.folder / "finished").exists()

    def finish(self) -> None:
        """Records that the search has ended."""
        self.wait()
        if not self.is_finished:
            with disk_errors(self.folder / "finished"):
                (self.folder / "finished").touch()
                sync(self.folder)

    def reopen(self, *, after: int) -> None:
        """Goes back to a checkpoint: removes those after it, and the mark that the search has ended.

        Args:
            after: Number of the checkpoint; -1 to remove all.
        """
        self.wait()
        with disk_errors(self.folder):
            (self.folder / "finished").unlink(missing_ok=True)
            for number in reversed(numbers_in(self.folder)):
                if number > after:
                    shutil.rmtree(self._path(number))
            sync(self.folder)

    @property
    def numbers(self) -> list[int]:
        """Numbers of the checkpoints on disk, ascending, without those that turned out to be damaged."""
        self.wait()
        return [number for number in numbers_in(self.folder) if number not in self._lost]

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
            CheckpointError: If `training` holds objects that could not be read back safely, or the disk cannot be
                written.
        """
        self.wait()
        writing = self.folder / f".writing-{checkpoint.number:06d}"
        require_plain(checkpoint.training, "training")
        with disk_errors(writing, needed=checkpoint.num_bytes):
            if writing.exists():  # left by a failed save
                _remove(writing)
            writing.mkdir()
        state = dict(checkpoint.state)
        if dump is not None:
            state["dumped"] = relative_to(dump(writing), writing)
        if not wait:  # the copy must not change while training continues
            checkpoint = replace(checkpoint, model=copied(checkpoint.model), training=copied(checkpoint.training))
        self._pending = self._writer.submit(self._write, writing, replace(checkpoint, state=state), keep)
        if wait:
            self.wait()

    def _write(self, writing: Path, checkpoint: Checkpoint, keep: Collection[int] | None) -> None:
        target = self._path(checkpoint.number)
        with disk_errors(target, needed=checkpoint.num_bytes):
            try:
                write(writing, checkpoint)
                if target.exists():  # a damaged checkpoint that the run is replacing
                    _remove(target)
                writing.rename(target)
            except OSError:
                shutil.rmtree(writing, ignore_errors=True)  # a full disk needs the space
                raise
            sync(self.folder)
            self._lost.discard(checkpoint.number)
            if keep is not None:
                for number in {*numbers_in(self.folder)} - {checkpoint.number, *keep}:
                    shutil.rmtree(self._path(number))

    def wait(self) -> None:
        """Waits until everything is on disk, and raises any error of the writer."""
        pending = self._pending
        if pending is not None:
            pending.exception()  # waits; Ctrl-C meanwhile leaves it pending
            self._pending = None
            pending.result()

    def load(self, number: int) -> Checkpoint:
        """Reads a checkpoint.

        Raises:
            DamagedCheckpointError: If it is missing, torn or damaged.
            CheckpointError: If it is of a later format, or the disk cannot be read now.
        """
        self.wait()
        try:
            return read(self._path(number), number)
        except DamagedCheckpointError:
            self._lost.add(number)
            raise

    def can_load(self, number: int) -> bool:
        """Whether a checkpoint is there and undamaged; raises the other errors of `load`."""
        try:
            self.load(number)
        except DamagedCheckpointError:
            return False
        return True

    def latest(self) -> Checkpoint | None:
        """The last undamaged checkpoint; None if there is none. Raises the other errors of `load`."""
        self.wait()
        for number in reversed(numbers_in(self.folder)):
            try:
                return self.load(number)
            except DamagedCheckpointError as error:
                logger.warning("%s. Using the checkpoint before it.", error)
        return None

    def _path(self, number: int) -> Path:
        return path_in(self.folder, number)


def _remove(path: Path) -> None:
    """Removes a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()

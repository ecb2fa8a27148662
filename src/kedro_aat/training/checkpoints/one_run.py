"""The checkpoints of one run: saved in the background, loaded, and removed when no longer needed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kedro_aat.disk import disk_errors, sync
from kedro_aat.errors import DamagedCheckpointError
from kedro_aat.training.checkpoints.files import (
    JOURNAL,
    Checkpoint,
    journal_of,
    numbers_in,
    path_in,
    read,
    relative_to,
    remove_optimizers,
    require_plain,
    write,
)
from kedro_aat.training.checkpoints.journal import Journal, journals_in
from kedro_aat.training.checkpoints.mirror import Mirror
from kedro_aat.training.checkpoints.staging import Staging
from kedro_aat.training.checkpoints.upgrades import RunRecord
from kedro_aat.training.checkpoints.uploads import RunUploads

logger = logging.getLogger(__name__)


class RunCheckpoints:
    """The checkpoints of one run; a context manager that holds the run's lock.

    Args:
        folder: Folder of the run.
        lock: Releases its lock.
        refusal: Why the folder cannot be written; None if it can.
        mirror: Where a copy is kept; None for none.
    """

    def __init__(
        self, folder: Path, lock: ExitStack, refusal: OSError | None = None, mirror: Mirror | None = None
    ) -> None:
        self.folder = folder
        self._lock = lock
        self._refusal = refusal
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._lost: set[int] = set()
        self._journal = Journal(folder)
        self._uploads = RunUploads(mirror if refusal is None else None, folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything is on disk and in the mirror, then releases the run's lock."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            try:
                self._uploads.close()
            finally:  # also if Ctrl-C ends the waiting
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
            self._uploads.request()

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
        self._journal.begin_anew()
        self._uploads.request()

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
        keep_optimizers: Collection[int] | None = None,
        wait: bool = True,
    ) -> None:
        """Writes a checkpoint, completely or not at all.

        Args:
            checkpoint: The checkpoint.
            dump: Writes the user's own files into a folder, and returns the path to load them from.
            keep: Numbers of the checkpoints to keep besides this one; None keeps all.
            keep_optimizers: Numbers of those that keep the large tensors of their optimizers; None for all.
            wait: Whether to return only when the checkpoint is on disk. Otherwise a copy of it is written while
                training continues, and every other method waits for it.

        Raises:
            CheckpointError: If `training` holds objects that could not be read back safely, or the disk cannot be
                written.
            ValueError: If `state` or `growing` holds what JSON cannot.
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
        parts: Mapping[str, str] = {}
        if checkpoint.write_parts is not None:
            with disk_errors(writing):
                parts = checkpoint.write_parts(writing)
        line = None
        if checkpoint.growing:
            line, state[JOURNAL] = self._journal.prepare(checkpoint.number, checkpoint.growing)
        copies = Staging()
        if not wait:  # the copy must not change while training continues
            model, training = copies.copied(checkpoint.model), copies.copied(checkpoint.training)
            checkpoint = replace(checkpoint, model=model, training=training)
        copies.finish()
        checkpoint = replace(checkpoint, state=state, growing={})
        self._pending = self._writer.submit(
            self._write, copies, writing, checkpoint, parts, line, keep, keep_optimizers
        )
        if wait:
            self.wait()

    def _write(
        self,
        copies: Staging,
        writing: Path,
        checkpoint: Checkpoint,
        parts: Mapping[str, str],
        line: str | None,
        keep: Collection[int] | None,
        keep_optimizers: Collection[int] | None,
    ) -> None:
        copies.wait()
        target = self._path(checkpoint.number)
        with disk_errors(target, needed=checkpoint.num_bytes):
            try:
                if line is not None:
                    self._journal.append(line)
                write(writing, checkpoint, parts)
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
                self._remove_journals()
            if keep_optimizers is not None:
                for number in {*numbers_in(self.folder)} - {checkpoint.number, *keep_optimizers}:
                    remove_optimizers(self._path(number))
        self._uploads.request()

    def _remove_journals(self) -> None:
        """Removes the journals that no checkpoint needs."""
        journals = journals_in(self.folder)
        if len(journals) > 1:
            needed = {journal_of(self._path(number)) for number in numbers_in(self.folder)}
            for name in journals.keys() - needed:
                for path in journals[name]:
                    path.unlink()

    def wait(self) -> None:
        """Waits until everything is on disk, and raises any error of the writer."""
        pending = self._pending
        if pending is not None:
            pending.exception()  # waits; Ctrl-C meanwhile leaves it pending
            self._pending = None
            pending.result()

    def load(self, number: int, *, optimizers: bool = True) -> Checkpoint:
        """Reads a checkpoint.

        Args:
            number: Its number.
            optimizers: Whether its optimizers are read, too, if they are still there.

        Raises:
            DamagedCheckpointError: If it is missing, torn or damaged.
            CheckpointError: If it is of a later format, or the disk cannot be read now.
        """
        self.wait()
        try:
            return read(self._path(number), number, optimizers=optimizers)
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

"""A store of checkpoints that stays usable after a crash at any moment.

    root/<run>/run.json                    identity of the run, all its settings, and the version that wrote it
    root/<run>/checkpoint-000012/          one folder per checkpoint; see `files`
    root/<run>/epochs-000000.jsonl         what grows with the epochs, and a copy of it; see `journal`
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
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kedro_aat.disk import IS_READ_ONLY, disk_errors, hold
from kedro_aat.errors import CheckpointError, HeldError, MissingRunError
from kedro_aat.storage import local_path
from kedro_aat.training.checkpoints.changes import log_changes
from kedro_aat.training.checkpoints.files import Checkpoint, numbers_in, path_in, read
from kedro_aat.training.checkpoints.mirror import Mirror
from kedro_aat.training.checkpoints.one_run import RunCheckpoints
from kedro_aat.training.checkpoints.upgrades import AfterUpgrade, RunRecord, alike, as_json, choose_run

logger = logging.getLogger(__name__)

NO_RUN = "There is no run with these settings, model and data yet. Run the pipeline first, with the same settings."


class CheckpointStore:
    """A folder of runs. A handle: it holds no open file and is cheap to copy.

    Args:
        root: The folder.
        mirror: Where a copy of it is kept, from which another machine goes on; None for none.
    """

    def __init__(self, root: str | Path, mirror: Mirror | None = None) -> None:
        self.root = local_path(root)
        self.mirror = mirror

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
        if self.mirror is not None:
            self._fetch_same(self.mirror, name, known, identity, may_differ)
        with disk_errors(self.root):
            for folder in self._folders(name, known, identity, reuse_finished, after_upgrade, may_differ):
                if not create and not numbers_in(folder):
                    raise MissingRunError(NO_RUN)
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    run = self._locked(folder, self.mirror)
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

    @property
    def folders(self) -> list[Path]:
        """Folders that may be runs, by name. A hidden one is a run that is being copied here, or removed."""
        return sorted(path for path in self.root.glob("*") if path.is_dir() and not path.name.startswith("."))

    def _others(self, folder: Path) -> list[RunRecord]:
        found = (RunRecord.read(each) for each in self.folders if each != folder)
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
        folders = self.folders
        own, others = self._same(folders, name, ingredients, identity, reuse_finished, may_differ)
        yield from own
        if others and not own:
            chosen = choose_run(others, ingredients, after_upgrade)
            if chosen is not None:
                yield chosen.folder
        names = (name if attempt == 1 else f"{name}-{attempt}" for attempt in itertools.count(1))
        yield from (self.root / new for new in names if self.root / new not in folders)

    @staticmethod
    def _same(
        folders: Iterable[Path],
        name: str,
        ingredients: Mapping[str, Any],
        identity: Mapping[str, Any],
        reuse_finished: bool,
        may_differ: Collection[str],
    ) -> tuple[list[Path], list[RunRecord]]:
        """Those of some folders that are the same run: of this version, and of another one."""
        records = {folder: RunRecord.read(folder) for folder in folders}
        is_open = {folder: reuse_finished or not (folder / "finished").exists() for folder in records}
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
        others = [
            record
            for record in records.values()
            if record is not None
            and is_open[record.folder]
            and record.is_of_another_version(ingredients)
            and (record.is_named(name) or record.is_same_as(ingredients, identity))
        ]
        return own, others

    def _fetch_same(
        self,
        mirror: Mirror,
        name: str,
        ingredients: Mapping[str, Any],
        identity: Mapping[str, Any],
        may_differ: Collection[str],
    ) -> None:
        """Copies those runs of the mirror here that are the same run."""
        with mirror.outline() as outline:
            own, others = self._same(outline.iterdir(), name, ingredients, identity, True, may_differ)
            found = {folder.name for folder in (*own, *(record.folder for record in others))}
        for run in sorted(found):
            mirror.fetch(self.root, run)

    def fetch_shared(self) -> None:
        """Copies what runs share from the mirror, if there is one.

        Raises:
            CheckpointError: If the mirror cannot be read, or the disk cannot be written.
        """
        if self.mirror is not None:
            self.mirror.fetch_shared(self.root)

    def push_shared(self) -> None:
        """Copies what runs share to the mirror, if there is one; a failure is a warning."""
        if self.mirror is not None:
            self.mirror.push_shared(self.root)

    @staticmethod
    def _locked(folder: Path, mirror: Mirror | None = None) -> RunCheckpoints:
        lock = ExitStack()
        try:
            lock.enter_context(hold(folder / ".lock", folder, wait=False))
        except OSError as error:
            # A run that ended at its time limit has no mark that it has finished, since it may go on with more time.
            if error.errno not in IS_READ_ONLY or not numbers_in(folder):
                raise
            logger.info("%s cannot be written; its run is only read.", folder)
            return RunCheckpoints(folder, lock, error)
        return RunCheckpoints(folder, lock, mirror=mirror)

    def require(self, *runs: str) -> None:
        """Makes sure that runs that results name are here, so that none of their models is forgotten.

        Those that are not come from the mirror, if there is one.

        Args:
            runs: Names of their folders.

        Raises:
            MissingRunError: If one of them is not here.
            CheckpointError: If the disk cannot be used.
        """
        for run in runs:
            if self.mirror is not None:
                self.mirror.fetch(self.root, run)
            if not numbers_in(self.root / run):
                raise MissingRunError(
                    f"{self.root} does not have the run {run}, which the search's result names. If it is on the disk "
                    "of another machine, give the store a `mirror` that all of them reach, such as s3://bucket/folder. "
                    "If it was removed, run the pipeline again from the search on, which trains it anew."
                )

    def numbers_of(self, run: str) -> list[int]:
        """Numbers of the checkpoints of a run, by its folder's name; none if there is no such run."""
        return numbers_in(self.root / run)

    def load(self, run: str, number: int) -> Checkpoint:
        """Reads a checkpoint of a finished run, without its optimizers.

        Args:
            run: Name of the run's folder.
            number: Number of the checkpoint.

        Raises:
            CheckpointError: If it is missing, torn or damaged.
        """
        return read(path_in(self.root / run, number), number, optimizers=False)

"""The runs of a store as their owner sees them: how each ended, what it found, its size, and how to remove it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kedro_aat.disk import disk_errors, hold
from kedro_aat.errors import AatError, CheckpointError, HeldError, MissingRunError
from kedro_aat.training.checkpoints.files import JOURNAL, numbers_in, path_in
from kedro_aat.training.checkpoints.journal import read_journal, replayed
from kedro_aat.training.checkpoints.store import CheckpointStore
from kedro_aat.training.checkpoints.upgrades import RunRecord
from kedro_aat.training.records import EpochRecord, epochs_used, read_records

logger = logging.getLogger(__name__)

REMOVING = ".removing-"  # begins the name of a folder that is being removed, which is hidden


@dataclass(frozen=True)
class StoredRun:
    """A run of a store: the search of one stage.

    Attributes:
        record: What identifies it.
        history: Its epochs; empty if they cannot be read.
        is_finished: Whether its search has ended.
        last_used: When its last checkpoint was written.
        num_bytes: Size of its folder.
    """

    record: RunRecord
    history: tuple[EpochRecord, ...]
    is_finished: bool
    last_used: datetime
    num_bytes: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.record.folder.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of its search."""
        found = self.record.ingredients.get("settings")
        return found if isinstance(found, Mapping) else {}

    @property
    def stage(self) -> str:
        """Number of its stage and the algorithm, in words; empty if that is not recorded."""
        names = ("third_stage", "second_stage", "compression")
        for number, name in zip((3, 2, 1), names, strict=True):
            part = self.settings.get(name)
            compression = part.get("compression", part) if isinstance(part, Mapping) else {}
            if "algorithm" in compression:
                return f"{number}: {compression['algorithm']}"
        return ""

    @property
    def best(self) -> EpochRecord | None:
        """The epoch of highest rate above 0 within the budget and its guards; None if there is none."""
        kept = [row for row in self.history if not row.failed and row.smallest_margin >= 0 and row.achieved_rate > 0]
        return max(kept, key=lambda row: (row.achieved_rate, row.margin), default=None)

    @property
    def epochs(self) -> int:
        """Epochs that it has used up, by their costs."""
        return epochs_used([*self.history])


def stored_runs(store: CheckpointStore) -> list[StoredRun]:
    """The runs of a store, the last used first.

    Raises:
        CheckpointError: If the disk cannot be read.
    """
    with disk_errors(store.root):
        records = [RunRecord.read(folder) for folder in store.folders]
        found = [_stored(record) for record in records if record is not None]
    return sorted(found, key=lambda run: (run.last_used, run.name), reverse=True)


def find_run(store: CheckpointStore, name: str) -> StoredRun:
    """The run whose name begins with `name`.

    Raises:
        MissingRunError: If there is none.
        CheckpointError: If there are several, or the disk cannot be read.
    """
    runs = stored_runs(store)
    found = [run for run in runs if run.name == name] or [run for run in runs if name and run.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(run.name for run in found or runs) or "none"
    if found:
        raise CheckpointError(f"{len(found)} runs begin with {name}: {names}. Write more of the name.")
    raise MissingRunError(f"{store.root} has no run {name}, but these: {names}.")


def remove_run(store: CheckpointStore, run: StoredRun) -> None:
    """Removes a run with all its checkpoints, first from the mirror of the store.

    A process that is killed meanwhile leaves nothing on the disk that looks like a run.

    Raises:
        CheckpointError: If a process works on it, or the disk or the mirror cannot be written.
    """
    folder = run.record.folder
    removing = folder.with_name(f"{REMOVING}{folder.name}")
    with disk_errors(folder):
        try:
            with hold(folder / ".lock", folder, wait=False):
                if removing.exists():  # of a process that was killed
                    shutil.rmtree(removing)
                if store.mirror is not None:
                    store.mirror.remove(run.name)
                folder.rename(removing)
        except HeldError as error:
            raise CheckpointError(f"{error} The run is not removed.") from None
        shutil.rmtree(removing)


def _stored(record: RunRecord) -> StoredRun:
    folder = record.folder
    files = [file.stat() for file in folder.rglob("*") if file.is_file()]
    used = max([(path_in(folder, number) / "state.json").stat().st_mtime for number in numbers_in(folder)], default=0.0)
    used = used or (folder / "run.json").stat().st_mtime
    return StoredRun(
        record,
        _history(folder),
        (folder / "finished").exists(),
        datetime.fromtimestamp(used),
        sum(each.st_size for each in files),
    )


def _history(folder: Path) -> tuple[EpochRecord, ...]:
    """The epochs of a run up to its last undamaged checkpoint, without reading any tensor."""
    for number in reversed(numbers_in(folder)):
        try:
            state = json.loads((path_in(folder, number) / "state.json").read_bytes())
            grown = replayed(read_journal(folder, state[JOURNAL])) if JOURNAL in state else state
            return tuple(read_records(grown.get("history", [])))
        except (AatError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            logger.warning("The epochs up to checkpoint %s of %s cannot be read: %s", number, folder, error)
    return ()

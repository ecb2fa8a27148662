"""Records which model each test split was read for: a split certifies one model, once.

A test split says something about a model only as long as it influenced no choice. So it can be read for one model, and
the ledger remembers which one, across runs, processes and machines.

A baseline is registered in the ledger before anything is searched for. So a ledger that was lost, or another one, is
told from one that is new: it does not know the baseline.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from kedro_aat.certificate.ledger_database import DatabaseEntries, is_database
from kedro_aat.certificate.ledger_entry import Entries, Entry
from kedro_aat.certificate.ledger_file import FileEntries
from kedro_aat.certificate.ledger_objects import ObjectEntries
from kedro_aat.errors import LostLedgerError
from kedro_aat.remote import without_password
from kedro_aat.storage import is_local_path, local_path

__all__ = ["CertificateLedger", "Entry"]

_BASELINE = "baseline-"  # start of the names of entries that are not of test splits
_ID = "registration"


class CertificateLedger:
    """An entry for each test split that was read. It is a handle, which is cheap to copy.

    Args:
        place: Path of a JSON file on this machine, which is created with the first entry; or a folder of an object
            store, such as `s3://bucket/ledger`; or the URL of a database, such as `postgresql://user@host/name`.
        options: Of an object store: credentials and other arguments of fsspec's class. Of a database: arguments of
            SQLAlchemy's `create_engine`.

    Raises:
        StorageError: If the place cannot hold a ledger.
    """

    def __init__(self, place: str | Path, options: Mapping[str, Any] | None = None) -> None:
        self._place = os.fspath(place)
        self._entries: Entries
        if is_database(self._place):
            self._entries = DatabaseEntries(self._place, options or {})
        elif is_local_path(self._place):
            self._entries = FileEntries(local_path(self._place))
        else:
            self._entries = ObjectEntries(self._place, options or {})

    @property
    def place(self) -> str:
        """Where the entries are, without a password."""
        return without_password(self._place)

    @property
    def path(self) -> Path:
        """Path of the file, of a ledger in a file."""
        return local_path(self._place)

    def folder(self) -> tuple[AbstractFileSystem, str] | None:
        """File system and path of a ledger in an object store; None elsewhere."""
        return self._entries.folder() if isinstance(self._entries, ObjectEntries) else None

    def find(self, split: str) -> Entry | None:
        """Returns the entry of a split, or None if the split was not read under this hash.

        Args:
            split: Hash of the test split.

        Raises:
            DataError: If the entry is damaged.
            CheckpointError: If the disk, the store or the database cannot be used.
        """
        return self._entries.read(split)

    def claim(self, split: str, subject: Mapping[str, str | float], also_known_as: Iterable[str] = ()) -> Entry:
        """Returns the entry of a split, and adds one for `subject` if there is none. Call it before scoring the split.

        Args:
            split: Hash of the test split.
            subject: Hash of the model, and everything else that a certificate depends on.
            also_known_as: Hashes by which earlier versions knew the split. An entry with one of them is the split's
                own, and is added with its present hash.

        Returns:
            The split's only entry. It has another subject if the split was read for that one before.

        Raises:
            DataError: If the entry is damaged.
            CheckpointError: If the disk, the store or the database cannot be used.
        """
        return self._entries.claim(split, Entry(subject=dict(subject), claimed=_now()), also_known_as)

    def record(self, split: str, result: Mapping[str, Any]) -> None:
        """Records the result of the test on a claimed split.

        Args:
            split: Hash of the test split.
            result: The result as JSON data.

        Raises:
            DataError: If the entry is damaged.
            LostLedgerError: If the ledger does not have the entry that was claimed.
            CheckpointError: If the disk, the store or the database cannot be used.
        """
        if self.find(split) is None:
            raise LostLedgerError(
                f"{self.place} was lost since the test split was claimed in it: it has no entry {split[:12]}. Restore "
                "it; without it, other models could be certified on the same split."
            )
        self._entries.record(split, result)

    def register(self, baseline: str, about: Mapping[str, str | float]) -> str:
        """Lets the ledger know a baseline, if it does not, and returns the number that it has in this ledger alone.

        Args:
            baseline: Hash of the baseline and of the data that judges it.
            about: What else is written into its entry.

        Raises:
            DataError: If the entry is damaged.
            CheckpointError: If the disk, the store or the database cannot be used.
        """
        entry = self.claim(f"{_BASELINE}{baseline}", {_ID: uuid.uuid4().hex, **about})
        return str(entry.subject.get(_ID))

    def registered(self, baseline: str) -> str | None:
        """The number of a baseline in this ledger; None if the ledger does not know it. Raises as `register` does."""
        entry = self.find(f"{_BASELINE}{baseline}")
        return None if entry is None else str(entry.subject.get(_ID))

    def take_over(self, other: CertificateLedger) -> tuple[int, list[str]]:
        """Adds the entries of another ledger, such as one in a file from before this one. It can be repeated.

        Args:
            other: The other ledger, which stays as it is.

        Returns:
            The number of its entries, and the hashes of those splits that this ledger has for another subject: their
            entries stay as they are.

        Raises:
            DataError: If an entry is damaged.
            CheckpointError: If a disk, a store or a database cannot be used.
        """
        differing = []
        theirs = other.entries()
        for split, entry in theirs.items():
            kept = self._entries.claim(split, entry, ())
            if kept.subject != entry.subject:
                differing.append(split)
            elif kept.result is None and entry.result is not None:
                self._entries.record(split, entry.result)
        return len(theirs), differing

    def entries(self) -> dict[str, Entry]:
        """All entries, by hash."""
        return self._entries.all()


def is_of_split(name: str) -> bool:
    """Whether an entry is that of a test split, by its name; others are those of baselines."""
    return not name.startswith(_BASELINE)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""Records which model each test split was read for: a split certifies one model, once.

A test split says something about a model only as long as it influenced no choice. So it can be read for one model, and
the ledger remembers which one, across runs and processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_aat.disk import disk_errors, hold, new_file
from kedro_aat.errors import DataError
from kedro_aat.storage import local_path
from kedro_aat.validated import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator


class Entry(Settings):
    """The one reading of a test split.

    Attributes:
        subject: Identifies the certified model, its baseline and its budget.
        claimed: When the split was first read, in ISO 8601, UTC.
        result: The result of the test; None if the process that read the split ended before it.
    """

    subject: dict[str, str | float]
    claimed: str
    result: dict[str, Any] | None = None


class CertificateLedger:
    """A JSON file with an entry for each test split that was read. It is a handle, which is cheap to copy.

    Args:
        path: Path of the file, which is created with the first entry.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(path)

    def find(self, split: str) -> Entry | None:
        """Returns the entry of a split, or None if the split was not read under this hash.

        Args:
            split: Hash of the test split.

        Raises:
            DataError: If the file is damaged.
            CheckpointError: If the disk cannot be used.
        """
        return self._read().get(split)

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
            DataError: If the file is damaged.
            CheckpointError: If the disk cannot be used.
        """
        if (known := self.find(split)) is not None:  # also on a disk that can only be read
            return known
        with self._locked() as entries:
            if split not in entries:
                time = datetime.now(UTC).isoformat(timespec="seconds")
                new = Entry(subject=dict(subject), claimed=time)
                entries[split] = next((entries[name] for name in also_known_as if name in entries), new)
            return entries[split]

    def record(self, split: str, result: Mapping[str, Any]) -> None:
        """Records the result of the test on a claimed split.

        Args:
            split: Hash of the test split.
            result: The result as JSON data.

        Raises:
            DataError: If the file is damaged.
            CheckpointError: If the disk cannot be used.
        """
        with self._locked() as entries:
            entries[split] = Entry(**{**dict(entries[split]), "result": dict(result)})

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Entry]]:
        """Yields all entries, and writes them back when the context ends."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with hold(self.path.with_name(self.path.name + ".lock"), self.path, wait=True):
                entries = self._read()
                yield entries
                text = json.dumps({split: entry.model_dump() for split, entry in entries.items()}, indent=2)
                with new_file(self.path) as new:
                    new.write_text(text)

    def _read(self) -> dict[str, Entry]:
        try:
            with disk_errors(self.path):
                contents = self.path.read_bytes() if self.path.exists() else b"{}"
            return {split: Entry(**entry) for split, entry in json.loads(contents).items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{self.path}, which records the test splits that were read, is damaged: {error}. Restore it from a "
                "backup; if there is none, remove it and use test examples that no model was ever tested on."
            ) from None

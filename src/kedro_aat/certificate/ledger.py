"""Which model each test split was read for: a split certifies one model, once.

A test split says something about a model only as long as nothing was chosen by it. So the first model that is tested
on a split spends it; the ledger remembers by which one, across runs and processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from kedro_aat.errors import DataError
from kedro_aat.validated import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator


class Entry(Settings):
    """What one split was read for.

    Attributes:
        subject: Tells the certified model, its baseline and its budget from others.
        claimed: When the split was first read, in ISO 8601, UTC.
        result: What came of it; None if the process that read it never got so far.
    """

    subject: dict[str, str | float]
    claimed: str
    result: dict[str, Any] | None = None


class CertificateLedger:
    """A JSON file with an entry for each test split that was read. A handle: cheap to copy.

    Args:
        path: The file; made with the first entry.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def claim(self, split: str, subject: Mapping[str, str | float]) -> Entry:
        """The entry of a split, made for `subject` if there is none. To be called before the split is scored.

        Args:
            split: A hash of the test split.
            subject: A hash of the model, and whatever else a certificate depends on.

        Returns:
            The split's one entry; it is another subject's if the split was read for another before.
        """
        with self._locked() as entries:
            if split not in entries:
                now = datetime.now(UTC).isoformat(timespec="seconds")
                entries[split] = Entry(subject=dict(subject), claimed=now)
            return entries[split]

    def record(self, split: str, result: Mapping[str, Any]) -> None:
        """Notes what came of a claimed split.

        Args:
            split: A hash of the test split.
            result: JSON data.
        """
        with self._locked() as entries:
            entries[split] = Entry(**{**dict(entries[split]), "result": dict(result)})

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Entry]]:
        """The entries, written back when the context ends."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            entries = self._read()
            yield entries
            writing = self.path.with_name(self.path.name + ".writing")
            with writing.open("w") as file:
                json.dump({split: entry.model_dump() for split, entry in entries.items()}, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            writing.replace(self.path)

    def _read(self) -> dict[str, Entry]:
        if not self.path.exists():
            return {}
        try:
            return {split: Entry(**entry) for split, entry in json.loads(self.path.read_text()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.path}, which says which test splits were read, is damaged: {error}. Restore it from a copy; "
                "if there is none, remove it and use test examples that no model was ever tested on."
            ) from None

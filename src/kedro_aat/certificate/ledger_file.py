"""A ledger in a JSON file of this machine, under a lock."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kedro_aat.certificate.ledger_entry import Entry
from kedro_aat.disk import disk_errors, hold, new_file
from kedro_aat.errors import DataError


class FileEntries:
    """Entries in a JSON file.

    Args:
        path: Path of the file, which is created with the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, split: str, new: Entry, also_known_as: Iterable[str]) -> Entry:
        if (known := self.read(split)) is not None:  # also on a disk that can only be read
            return known
        with self._locked() as entries:
            if split not in entries:
                entries[split] = next((entries[name] for name in also_known_as if name in entries), new)
            return entries[split]

    def record(self, split: str, result: Mapping[str, Any]) -> None:
        with self._locked() as entries:
            entries[split] = Entry(**{**dict(entries[split]), "result": dict(result)})

    def read(self, split: str) -> Entry | None:
        return self.all().get(split)

    def all(self) -> dict[str, Entry]:
        try:
            with disk_errors(self.path):
                contents = self.path.read_bytes() if self.path.exists() else b"{}"
            return {split: Entry(**entry) for split, entry in json.loads(contents).items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{self.path}, which records the test splits that were read, is damaged: {error}. Restore it from a "
                "backup; if there is none, remove it and use test examples that no model was ever tested on."
            ) from None

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Entry]]:
        """Yields all entries, and writes them back when the context ends."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with hold(self.path.with_name(self.path.name + ".lock"), self.path, wait=True):
                entries = self.all()
                yield entries
                text = json.dumps({split: entry.model_dump() for split, entry in entries.items()}, indent=2)
                with new_file(self.path) as new:
                    new.write_text(text)

"""An entry of the ledger, and what each kind of ledger can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from kedro_aat.validated import Settings


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


class Entries(Protocol):
    """Where the entries of a ledger are kept. It holds nothing open, and is cheap to copy.

    What one process claims is claimed for all: of any number of processes that claim a split at the same time, all get
    the same entry.
    """

    def claim(self, split: str, new: Entry, also_known_as: Iterable[str]) -> Entry:
        """Returns the entry of a split, which is `new` if there was none before.

        Args:
            split: Hash of the split.
            new: Its entry, if it has none.
            also_known_as: Other hashes of the split; an entry with one of them takes the place of `new`.
        """
        ...

    def record(self, split: str, result: Mapping[str, Any]) -> None:
        """Writes the result into the entry of a split.

        Args:
            split: Hash of the split, which has an entry.
            result: The result as JSON data.
        """
        ...

    def read(self, split: str) -> Entry | None:
        """Returns the entry of a split; None if it has none."""
        ...

    def all(self) -> dict[str, Entry]:
        """All entries by hash, which may take long."""
        ...

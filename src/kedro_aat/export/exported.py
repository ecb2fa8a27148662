"""What an export comes to, where it does not come to files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NotExported:
    """Stands in a file's place when nothing was exported; a dataset that is given it removes its file."""

    reason: str

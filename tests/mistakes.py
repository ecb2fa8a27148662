"""Names the cases of a table of mistakes."""

from __future__ import annotations


def key_of(value: object) -> str:
    """The key that a line of a `ConfigurationError` begins with; nothing for the data that led to it."""
    return value.partition(": ")[0] if isinstance(value, str) else ""

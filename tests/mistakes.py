"""Names for the cases of a table of mistakes."""

from __future__ import annotations


def key_of(value: object) -> str:
    """Returns the key with which a line of a `ConfigurationError` begins; nothing for the data that caused it."""
    return value.partition(": ")[0] if isinstance(value, str) else ""

"""Reads files that may be damaged, or written by anybody: whatever a parser raises becomes one error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kedro_aat.errors import AatError, DataError

_MAX_SHOWN = 400  # characters of a parser's message


@contextmanager
def reading(what: object, but: type[Exception] = AatError) -> Iterator[None]:
    """Turns every exception but ours into a `DataError` that names what is read.

    Parsers raise almost anything about contents that nobody should have written: a `RecursionError` for 1000 brackets,
    a `KeyError`, a `MemoryError`.

    Args:
        what: The file, for the message.
        but: Another kind of exception that stays as it is.

    Raises:
        DataError: In place of the other exception, which is its cause.
    """
    try:
        yield
    except (AatError, but):
        raise
    except Exception as error:
        raise DataError(
            f"{what} cannot be read: {describe(error)}. Restore it from a backup, or run again what wrote it."
        ) from error


def describe(error: Exception) -> str:
    """Returns the message of an exception, after its kind, as a short text that can be printed."""
    text = " ".join(str(error).encode(errors="backslashreplace").decode().split())
    text = text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: It is missing, or is not JSON.
    """
    with reading(path):
        return json.loads(path.read_bytes())

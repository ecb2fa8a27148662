"""The part of a search's state that grows with its epochs, appended to a file instead of written anew each time.

    epochs-000012.jsonl           one line for each checkpoint from number 12 on: what has changed since the one before
    epochs-000012.copy.jsonl      the same again, since the later checkpoints of the run depend on each of its bytes

A checkpoint says how much of which file belongs to it, with a checksum. The first line of a file has everything. Each
process that continues a run begins a file of its own, so that no line is ever changed.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kedro_aat.errors import DamagedCheckpointError

_NAME = re.compile(r"epochs-(\d{6,})(\.copy)?\.jsonl")
_REPLACED, _APPENDED, _CHANGED = "=", "+", "."


def changes(before: Any, after: Any) -> Any:
    """What turns one value into another, as JSON data.

    Args:
        before: JSON data, or pydantic models; a list or tuple that `after` continues is compared by its items, which is
            fast if they are the same objects.
        after: The new value.
    """
    old, new = _fields(before), _fields(after)
    if (
        isinstance(new, Mapping)
        and isinstance(old, Mapping)
        and old.keys() == new.keys()
        and type(before) is type(after)
    ):
        changed = {key: changes(old[key], part) for key, part in new.items() if not _is_same(old[key], part)}
        return {_CHANGED: changed}
    if isinstance(new, list | tuple) and type(old) is type(new) and old and new[: len(old)] == old:
        return {_APPENDED: [_plain(item) for item in new[len(old) :]]}
    return {_REPLACED: _plain(after)}


def changed(before: Any, change: Mapping[str, Any]) -> Any:
    """JSON data after what `changes` returned; lists and mappings may be changed in place.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: If it cannot be applied.
    """
    ((kind, what),) = change.items()
    if kind == _REPLACED:
        return what
    if kind == _APPENDED:
        before.extend(what)
        return before
    if kind != _CHANGED:
        raise ValueError(f"unknown change {kind}")
    for key, part in what.items():
        before[key] = changed(before[key], part)
    return before


def _fields(value: Any) -> Any:
    return {name: getattr(value, name) for name in type(value).model_fields} if isinstance(value, BaseModel) else value


def _is_same(old: Any, new: Any) -> bool:
    return old is new or (type(old) is type(new) and old == new)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


class Journal:
    """Writes the journal of a run.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = ""
        self._before: dict[str, Any] = {}
        self._size = self._crc = 0
        self._written: tuple[dict[str, Any], str, int, int] | None = None

    def begin_anew(self) -> None:
        """Lets the next line have everything, in a new file."""
        self._name = ""

    def prepare(self, number: int, growing: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The next line, and what the checkpoint says of it; the journal stays as it is until `append`.

        Args:
            number: Number of the checkpoint.
            growing: What belongs to it: by name, JSON data or pydantic models. Lists are copied, so that they may grow.
        """
        now = {key: [*value] if isinstance(value, list) else value for key, value in growing.items()}
        is_first = not self._name
        name = f"epochs-{number:06d}" if is_first else self._name
        change = {_REPLACED: _plain(now)} if is_first else changes(self._before, now)
        line = json.dumps(change, allow_nan=False, separators=(",", ":")) + "\n"
        size, crc = (0, 0) if is_first else (self._size, self._crc)
        self._written = (now, name, size + len(line), zlib.crc32(line.encode(), crc))
        _, _, end, checksum = self._written
        return line, {"file": name, "size": end, "crc32": checksum}

    def append(self, line: str) -> None:
        """Appends the line that `prepare` returned, and flushes it to disk."""
        assert self._written is not None
        now, name, size, crc = self._written
        for path in _paths(self._folder, name):
            with path.open("r+b" if path.exists() and size > len(line) else "wb") as file:
                file.truncate(size - len(line))  # what a failed save left
                file.seek(0, os.SEEK_END)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        self._before, self._name, self._size, self._crc = now, name, size, crc


def read_journal(folder: Path, place: Mapping[str, Any]) -> str:
    """The lines of a journal that belong to a checkpoint.

    Args:
        folder: Folder of the run.
        place: What the checkpoint says of it.

    Raises:
        DamagedCheckpointError: If they are missing or damaged.
    """
    name, size, crc = place["file"], place["size"], place["crc32"]
    if not isinstance(name, str) or not _NAME.fullmatch(f"{name}.jsonl"):
        raise DamagedCheckpointError(f"{name!r} is no journal")
    for path in _paths(folder, name):
        try:
            with path.open("rb") as file:
                contents = file.read(size)
        except FileNotFoundError:
            continue
        if len(contents) == size and zlib.crc32(contents) == crc:
            return contents.decode()
    raise DamagedCheckpointError(f"{folder / name}.jsonl and its copy are damaged")


def replayed(lines: str) -> dict[str, Any]:
    """What grew, as JSON data, after all lines of a journal.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: If they cannot be read.
    """
    state: Any = {}
    for line in lines.splitlines():
        state = changed(state, json.loads(line))
    if not isinstance(state, dict):
        raise ValueError("a journal does not hold a mapping")
    return state


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.jsonl", folder / f"{name}.copy.jsonl"


def journals_in(folder: Path) -> dict[str, list[Path]]:
    """Names of the journals in the folder of a run, with their files."""
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if match := _NAME.fullmatch(path.name):
            found.setdefault(f"epochs-{match[1]}", []).append(path)
    return found

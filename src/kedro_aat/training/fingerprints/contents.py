"""A hash of values of any kind: of examples, and of the objects that make them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kedro_aat.errors import StorageError
from kedro_aat.storage import replacing
from kedro_aat.tensors import hash_file, tensor_bytes
from kedro_aat.training.fingerprints.sources import sources_of

FileHash = Callable[[str], object]

_FILES: dict[str, list[Any]] = {}  # size, time in nanoseconds and hash of each file
_TICK = 2_000_000_000  # nanoseconds; the times of some file systems are no finer
_ADDRESS = re.compile(" at 0x[0-9a-f]+")  # in the text of an object that has no text of its own
_PLAIN = (bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device)
_NAMED = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type)
# What PyTorch keeps of each module besides its tensors and its arguments.
_OF_ANY_MODULE = frozenset(vars(nn.Module()))


class ContentHash:
    """A hash of values, one after another, none of which is kept.

    Tensors, arrays, images, numbers and texts count by content, containers by their items, and other objects by their
    class and attributes.

    Args:
        file_hash: What is hashed of a file that a path or text in a value names; None to hash the text alone.
        private: Whether all private attributes count. They may be a cache or an open file, so that usually only those
            count whose name is that of an argument of the class.

    Attributes:
        code: Functions and classes that the values name; see `sources`.
    """

    def __init__(self, file_hash: FileHash | None = None, *, private: bool = False) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._file_hash = file_hash
        self._private = private
        self._seen: dict[int, tuple[int, object]] = {}  # objects by id, kept alive so that no id is used twice
        self.code: list[Any] = []

    def hexdigest(self) -> str:
        """The hash of all values so far."""
        return self._digest.hexdigest()

    def with_sources(self) -> str:
        """The same with the source of the functions and classes that the values name."""
        self._text(str(sources_of(self.code).hashes))
        return self.hexdigest()

    def add(self, value: Any) -> None:
        """Adds a value."""
        if isinstance(value, Tensor):
            self._text(f"tensor {value.dtype} {tuple(value.shape)}")
            self._digest.update(tensor_bytes(value))
        elif isinstance(value, np.ndarray | np.generic):
            self._array(np.asarray(value))
        elif isinstance(value, str | os.PathLike):
            self._path(os.fspath(value))
        elif value is None or isinstance(value, _PLAIN):
            self._text(f"{type(value).__name__} {value!r}")
        elif isinstance(value, Mapping):
            self._text(f"mapping {len(value)}")
            for item in value.items():
                self._items(item)
        elif isinstance(value, list | tuple):
            self._text(f"list {len(value)}")
            self._items(value)
        elif isinstance(value, set | frozenset):
            self._text(f"set {sorted(map(repr, value))}")
        elif hasattr(value, "__array_interface__") or hasattr(value, "__array__"):  # such as images and tables
            try:
                array = np.asarray(value)
            except Exception:  # it has no array after all
                return self._object(value)
            self._array(array)
        else:
            self._object(value)
        return None

    def _items(self, values: Any) -> None:
        for value in values:
            self.add(value)

    def _text(self, text: str) -> None:
        self._digest.update(text.encode(errors="surrogatepass") + b"\0")

    def _array(self, array: np.ndarray[Any, Any]) -> None:
        self._text(f"array {array.dtype} {array.shape}")
        if array.dtype.hasobject:
            self._items(array.ravel().tolist())
        else:
            self._digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _path(self, text: str | bytes) -> None:
        """A text, or the file or folder of that path, wherever it lies."""
        if self._file_hash is not None and isinstance(text, str) and ("." in text or os.sep in text):
            with suppress(OSError, ValueError):
                if os.path.isfile(text):
                    return self._text(f"file {self._file_hash(text)}")
                if os.sep in text and os.path.isdir(text):
                    return self._text(f"folder {sorted(os.listdir(text))}")
        return self._text(f"text {text!r}")

    def _object(self, value: Any) -> None:
        if isinstance(value, logging.Logger):  # which knows all other loggers of the process
            return self._text(f"logger {value.name}")
        if id(value) in self._seen:
            return self._text(f"again {self._seen[id(value)][0]}")
        self._seen[id(value)] = (len(self._seen), value)
        if isinstance(value, functools.partial):
            self._text("partial")
            self._items([value.func, list(value.args), value.keywords])
        elif isinstance(value, _NAMED):
            self.code.append(value)
            self._text(f"named {getattr(value, '__qualname__', getattr(value, '__name__', ''))}")
        else:
            kind = type(value)
            self.code.append(kind)
            self._text(f"object {kind.__qualname__}")
            if kind.__module__.partition(".")[0] in sys.stdlib_module_names:
                self._text("" if _ADDRESS.search(text := repr(value)) else text)
            if isinstance(value, torch.fx.GraphModule | torch.jit.ScriptModule):
                self._text(value.code)  # which is in no file
            for name, each in _attributes_of(value, self._private):
                self._text(name)
                self.add(each)


def _attributes_of(value: object, private: bool) -> Iterator[tuple[str, Any]]:
    """The attributes of an object that say what it computes, in a fixed order."""
    slots = {name for kind in type(value).__mro__ for name in _slots(kind)}
    attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    arguments: set[str] | None = None
    for name in sorted(attributes, key=str):
        if isinstance(value, nn.Module) and name in _OF_ANY_MODULE:
            continue
        if name.startswith("_") and not private:
            arguments = _arguments(type(value)) if arguments is None else arguments
            if name.lstrip("_") not in arguments:
                continue
        yield name, attributes[name]
    if isinstance(value, nn.Module):
        named = [*value.named_parameters(recurse=False), *value.named_buffers(recurse=False), *value.named_children()]
        yield from named


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _arguments(kind: type) -> set[str]:
    try:
        return {*inspect.signature(kind).parameters}
    except (TypeError, ValueError):  # written in C
        return set()


def known_hash(path: str) -> str:
    """The hash of a file's contents, which is computed once as long as its size and its time do not change."""
    path, now = os.path.abspath(path), [*size_and_time(path)]
    known = _FILES.get(path)
    if known is None or known[:2] != now:
        known = _FILES[path] = [*now, hash_file(Path(path))]
    return str(known[2])


def size_and_time(path: str) -> tuple[int, int]:
    """Size of a file in bytes, and the time of its last change in nanoseconds."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def kept_hashes(file: Path | None) -> Iterator[None]:
    """Has `known_hash` know what earlier processes have computed, and keeps what is new.

    Args:
        file: A JSON file, which need not exist; None keeps nothing.
    """
    kept: dict[str, list[Any]] = {}
    if file is not None:
        with suppress(OSError, ValueError, TypeError, AttributeError):  # missing or damaged: they are computed again
            kept = {path: [int(size), int(time_), str(known)] for path, (size, time_, known) in _read(file).items()}
    for path, each in kept.items():
        _FILES.setdefault(path, each)
    yield
    # A file that was written just now may be written again without another time.
    latest = time.time_ns() - _TICK
    new = {path: each for path, each in _FILES.items() if kept.get(path) != each and each[1] < latest}
    if file is not None and new:
        with suppress(StorageError), replacing(file) as written:
            written.write_text(json.dumps(kept | new))


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found

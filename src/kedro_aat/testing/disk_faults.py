"""A disk that refuses: each operation that writes fails once, or every one, or locks are not supported."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)


class Disk:
    """Counts the operations that write, and lets one of them fail.

    Attributes:
        count: Number of the operations so far.
        failing: Number of the operation that fails, from 0; None if none does.
        error: Error number of the failure.
    """

    def __init__(self, failing: int | None = None, error: int = errno.ENOSPC) -> None:
        self.count = 0
        self.failing = failing
        self.error = error

    def operate(self) -> None:
        """Counts an operation.

        Raises:
            OSError: If this is the one that fails.
        """
        self.count += 1
        if self.count - 1 == self.failing:
            raise OSError(self.error, os.strerror(self.error))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Takes the place of the disk for files that are written within the context."""

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any, *args: Any, **kwargs: Any) -> Any:
                if function is not making or not os.path.isdir(path):  # making what exists is no writing
                    self.operate()
                return function(path, *args, **kwargs)

            return call

        making, opened = os.mkdir, io.open

        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "w" in mode:
                self.operate()
            return opened(file, mode, *args, **kwargs)

        operations: dict[str, Any] = {
            name: counted(getattr(os, name)) for name in ("mkdir", "fsync", "rename", "replace")
        }
        with mock.patch.multiple(os, **operations), mock.patch.object(io, "open", open_):
            yield


@contextmanager
def without_locks(error: int) -> Iterator[None]:
    """A file system whose locks fail with this error number."""
    import fcntl

    def refuse(*args: Any) -> None:
        raise OSError(error, os.strerror(error))

    with mock.patch.object(fcntl, "flock", refuse):
        yield


@contextmanager
def read_only() -> Iterator[None]:
    """A file system that can only be read."""
    opened, opened_as_file = os.open, io.open

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        if os.path.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        refuse()

    def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse()
        return opened(path, flags, *args, **kwargs)

    def open_as_file(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax+"):
            refuse()
        return opened_as_file(file, mode, *args, **kwargs)

    refused: dict[str, Any] = dict.fromkeys(("rename", "replace", "unlink", "rmdir", "utime"), refuse)
    with mock.patch.multiple(os, open=open_, mkdir=mkdir, **refused), mock.patch.object(io, "open", open_as_file):
        yield

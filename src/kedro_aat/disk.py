"""What a file system refuses, as one error that says which file, why, and what to do; and locks."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kedro_aat.errors import CheckpointError, StorageError

logger = logging.getLogger(__name__)

IS_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_IS_FULL = {errno.ENOSPC, errno.EDQUOT}
_HAS_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
_HAS_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}  # some network file systems

_AGAIN = "Then run the same command again: what was saved before is still there."
_REMEDIES = {
    errno.EROFS: f"the file system is read-only. Make it writable, or choose another folder. {_AGAIN}",
    errno.EACCES: f"this user may not write there. Change the permissions, or choose another folder. {_AGAIN}",
    errno.EIO: f"the disk failed (input/output error). Look into the system's log, and change the disk. {_AGAIN}",
    errno.ENOENT: "its folder was removed meanwhile. Restore it, or run the same command again to train what is lost.",
}
_REMEDIES[errno.EPERM] = _REMEDIES[errno.EACCES]


@contextmanager
def disk_errors(path: Path, *, needed: int = 0, kind: type[StorageError] = CheckpointError) -> Iterator[None]:
    """Turns what the file system refuses within the context into one error of ours.

    Args:
        path: What is written or read, for the message.
        needed: Bytes that are about to be written; 0 if unknown.
        kind: Class of the error.

    Raises:
        StorageError: Of class `kind`. Says which file, why, and what to do; on a full disk, how much space is missing.
    """
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise kind(f"{error.filename or path}: {_explained(error, path, needed)}") from error


def _explained(error: OSError, path: Path, needed: int) -> str:
    if error.errno in _IS_FULL:
        free = shutil.disk_usage(next(folder for folder in (path, *path.absolute().parents) if folder.exists())).free
        wanted = f"{_size(needed)} are needed, and " if needed else ""
        full = "the quota of this user is used up" if error.errno == errno.EDQUOT else "the disk is full"
        return f"{full}: {wanted}{_size(free)} are free. Make space, or choose a folder on another disk. {_AGAIN}"
    return _REMEDIES.get(error.errno or 0, f"{error.strerror or error}. Mend the cause. {_AGAIN}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes} bytes"


def hold(path: Path, *, wait: bool) -> FileLock | None:
    """Locks a file for this process.

    Args:
        path: The lock file.
        wait: Whether to wait for a process that holds it.

    Returns:
        The lock; None, with a warning, if the file system has no locks.

    Raises:
        Timeout: If another process holds it and `wait` is off.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        # filelock raises NotImplementedError in place of ENOSYS.
        if isinstance(error, OSError) and error.errno not in _HAS_NO_LOCKS:
            raise
        logger.warning(
            "%s: this file system has no locks (%s). Make sure that no other process uses this folder meanwhile.",
            path.parent,
            error,
        )
        return None
    return lock


def sync(path: Path) -> None:
    """Flushes a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _HAS_NO_FOLDER_SYNC):
            raise
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Replaces a file whole, and flushes it to disk: after a crash it has the old or the new text."""
    temporary = path.with_name(f".{path.name}.kedro-aat-writing")
    try:
        temporary.write_text(text)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # its space is needed
        raise
    sync(path.parent)

"""What a file system refuses, as one error that says which file, why, and what to do; locks; how a file is replaced."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kedro_aat.errors import CheckpointError, HeldError, StorageError

logger = logging.getLogger(__name__)

IS_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_IS_FULL = {errno.ENOSPC, errno.EDQUOT}
# Of `flock`, which has other reasons than `open`.
_IS_HELD = {errno.EAGAIN, errno.EACCES}
_HAS_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
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


@contextmanager
def hold(path: Path, target: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock file within the context; the lock ends with the process, too.

    Args:
        path: The lock file, which is removed at the end.
        target: What only one process may use at a time, for messages.
        wait: Whether to wait for a process that holds it.

    Yields:
        False, after a warning, if the file system has no locks.

    Raises:
        HeldError: If another process holds it and `wait` is off.
        OSError: If the file system refuses.
    """
    descriptor, is_locked = _open_lock(path, target, wait)
    try:
        yield is_locked
    finally:
        with suppress(OSError):  # a lock file that stays does no harm
            path.unlink()
        os.close(descriptor)


def _open_lock(path: Path, target: Path, wait: bool) -> tuple[int, bool]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HAS_NO_LOCKS:
                logger.warning(
                    "%s: this file system has no locks (%s). Make sure that no other process uses it meanwhile.",
                    target,
                    error.strerror,
                )
                return descriptor, False
            os.close(descriptor)
            if error.errno in _IS_HELD:
                raise HeldError(f"Another process is using {target}. Wait until it ends, or stop it.") from None
            raise
        if _is_same_file(descriptor, path):
            return descriptor, True
        os.close(descriptor)  # its last holder has removed it


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


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


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yields the path of a new file, which takes the place of `target` if the block ends without an error.

    After a crash, `target` is the old or the new file, and whole. Only one process at a time may replace it.
    """
    new = target.with_name(f".kedro-aat-writing-{target.name}")  # with the ending of the name, which some writers read
    new.unlink(missing_ok=True)  # left by a crash, or a link to another file
    try:
        yield new
        sync(new)
        new.replace(target)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)  # its space is needed
        raise
    sync(target.parent)

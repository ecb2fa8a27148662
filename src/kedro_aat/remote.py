"""Files that are not on this machine, through fsspec: where they are, and what their storage refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from kedro_aat.errors import AatError, CheckpointError, StorageError

_PASSWORD = re.compile(r"//([^/@:]*):[^@]*@")  # SQLAlchemy takes a password with a slash, and secret keys have them


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    return _PASSWORD.sub(r"//\1:***@", url)


def file_system(url: str, options: Mapping[str, Any]) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path in it, without a slash at its end.

    Args:
        url: Such as `s3://bucket/folder`.
        options: Credentials and other arguments of the file system's class.

    Raises:
        StorageError: fsspec does not know the protocol, or lacks its package.
    """
    try:
        is_local = "://" not in url or url.startswith(("file:", "local:"))
        fs, path = url_to_fs(url, **({"auto_mkdir": True} if is_local else {}), **options)
    except (ImportError, ValueError, TypeError) as error:
        raise StorageError(
            f"{without_password(url)} cannot be used: {error}. Install the package that fsspec names (s3fs, gcsfs, "
            "adlfs), or correct the protocol, `credentials` or `fs_args`."
        ) from error
    return fs, str(path).rstrip("/")


@contextmanager
def remote_errors(url: str, what: str, *, kind: type[StorageError] = CheckpointError) -> Iterator[None]:
    """Turns what a remote storage refuses within the context into one error of ours.

    Its packages have many classes of errors, so all are taken.

    Args:
        url: The place, for the message.
        what: What is done, such as `read the checkpoints`.
        kind: Class of the error.
    """
    try:
        yield
    except AatError:
        raise
    except Exception as error:
        raise kind(
            f"{without_password(url)}: cannot {what} ({explained(error)}). Check that it can be reached, and its "
            "`credentials` and `fs_args`. Then run the same command again: what was saved before is still there."
        ) from error


def explained(error: BaseException) -> str:
    """Class and message of an error, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

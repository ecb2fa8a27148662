"""A ledger in an object store: one object for each entry, created only if it is not there.

    <ledger>/<split>.json           the entry; the store itself refuses to create it twice
    <ledger>/<split>.result.json    its result

Such a creation is a put with `If-None-Match: *` (S3, Azure) or `ifGenerationMatch=0` (Google).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from fsspec import AbstractFileSystem

from kedro_aat.certificate.ledger_entry import Entry
from kedro_aat.errors import CheckpointError, DataError
from kedro_aat.remote import explained, file_system, remote_errors, without_password

# Whose fsspec classes pass a condition on to the store, and its name. Others look first and write then, so that two
# processes can both claim a split.
CONDITIONAL = dict.fromkeys(("s3", "s3a", "abfs", "abfss", "az"), "If-None-Match") | dict.fromkeys(
    ("gs", "gcs"), "ifGenerationMatch"
)
_CHECK = ".created-once"
_ENTRY, _RESULT = ".json", ".result.json"
_ATTEMPTS = 5


class ObjectEntries:
    """Entries as objects.

    Args:
        url: Such as `s3://bucket/ledger`.
        options: Credentials and other arguments of fsspec's class.

    Raises:
        CheckpointError: If fsspec cannot create an object of this protocol only if it is not there.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url = url
        self._options = dict(options)
        self._is_checked = False
        self._protocol = url.partition(":")[0].lower()
        if self._protocol not in CONDITIONAL:
            raise CheckpointError(
                f"{without_password(url)} cannot hold a certificate ledger: {self._protocol}:// has no way to create "
                "a file only if it is not there, so two processes could both certify on one test split. Give a path on "
                "this machine, s3://, gs:// or abfs://, or the URL of a database such as postgresql://host/name."
            )

    def claim(self, split: str, new: Entry, also_known_as: Iterable[str]) -> Entry:
        if (known := self.read(split)) is not None:
            return known
        former = (self.read(name) for name in also_known_as if name)
        entry = next((each for each in former if each is not None), new)
        with remote_errors(self._url, "claim a test split"):
            fs, folder = self.folder()
            self._require_condition(fs, folder)
            self._create(fs, self._path(folder, split, _ENTRY), entry.model_dump_json().encode())
        claimed = self.read(split)
        if claimed is None:
            raise CheckpointError(
                f"{without_password(self._url)} does not have the entry that was just written. It must read what was "
                "written before; use another store for the ledger."
            )
        return claimed

    def record(self, split: str, result: Mapping[str, Any]) -> None:
        with remote_errors(self._url, "write the result of a certificate"):
            fs, folder = self.folder()
            fs.pipe_file(self._path(folder, split, _RESULT), json.dumps(result).encode())

    def read(self, split: str) -> Entry | None:
        with remote_errors(self._url, "read the certificate ledger"):
            fs, folder = self.folder()
            paths = (self._path(folder, split, _ENTRY), self._path(folder, split, _RESULT))
            entry, result = (_contents(fs, path) for path in paths)
        if entry is None:
            return None
        try:
            known = Entry(**json.loads(entry))
            return known if result is None else known.model_copy(update={"result": dict(json.loads(result))})
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{without_password(self._url)}: the entry {split} is damaged: {error}. Restore it from a backup; if "
                "there is none, use test examples that no model was ever tested on."
            ) from None

    def all(self) -> dict[str, Entry]:
        with remote_errors(self._url, "list the certificate ledger"):
            fs, folder = self.folder()
            fs.invalidate_cache()
            names = [str(path).rpartition("/")[2] for path in fs.find(folder)]
        splits = [unquote(name.removesuffix(_ENTRY)) for name in names if _is_entry(name)]
        return {split: entry for split in splits if (entry := self.read(split)) is not None}

    def folder(self) -> tuple[AbstractFileSystem, str]:
        """The file system, and the path of the ledger in it."""
        return file_system(self._url, self._options)

    @staticmethod
    def _path(folder: str, split: str, ending: str) -> str:
        return f"{folder}/{quote(split, safe='')}{ending}"

    def _require_condition(self, fs: AbstractFileSystem, folder: str) -> None:
        """Creates an object twice: stores that only resemble the real ones may create it, although it is there."""
        if self._is_checked:
            return
        path = f"{folder}/{_CHECK}"
        if self._create(fs, path, b"") and self._create(fs, path, b""):
            raise CheckpointError(
                f"{without_password(self._url)} cannot hold a certificate ledger: it creates an object although it is "
                f"there (it does not know {CONDITIONAL[self._protocol]}), so two processes could both certify on one "
                "test split. Use a newer version of this store, another one, or a database such as "
                "postgresql://host/name."
            )
        self._is_checked = True

    def _create(self, fs: AbstractFileSystem, path: str, contents: bytes) -> bool:
        """Creates an object; False if it is there, maybe because an earlier attempt of this call has created it."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                fs.pipe_file(path, contents, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:  # some stores do not say which condition failed, or that another put is under way
                if _contents(fs, path) is not None:
                    return False
                if attempt == _ATTEMPTS or isinstance(error, FileNotFoundError | PermissionError):
                    raise CheckpointError(
                        f"{without_password(self._url)}: an entry cannot be created ({explained(error)}). Check the "
                        "store and its `credentials`, then run the same command again."
                    ) from error
                time.sleep(0.1 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _is_entry(name: str) -> bool:
    return name.endswith(_ENTRY) and not name.endswith(_RESULT)


def _contents(fs: AbstractFileSystem, path: str) -> bytes | None:
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        return None

"""Asks each object store of a run, once, whether it answers and has the bucket; before anything else is asked of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem
from kedro.io import AbstractDataset, CachedDataset

from kedro_aat.errors import AatError, first_of
from kedro_aat.reading import describe
from kedro_aat.remote import without_password

# Protocols whose paths begin with a bucket or container, which nothing that is written creates.
_WITH_BUCKETS = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"))
_PATIENCE = 40.0  # seconds; a host that drops what it is sent is otherwise waited for for minutes
_MAX_LISTED = 5


class _Stored(NamedTuple):
    """Where a dataset is in an object store."""

    system: AbstractFileSystem
    protocol: str
    path: str

    @property
    def bucket(self) -> str:
        return self.path.partition("/")[0]

    @property
    def address(self) -> str:
        return without_password(f"{self.protocol}://{self.path}")


def unreachable_stores(datasets: Mapping[str, AbstractDataset[Any, Any]]) -> dict[str, str]:
    """The datasets whose object store does not answer, refuses, or lacks their bucket, and one mistake for each store.

    Args:
        datasets: The datasets of a run by name.

    Returns:
        Name of each such dataset -> the mistake, which is the same for all in one store.
    """
    stores: dict[tuple[str, str, object], dict[str, _Stored]] = {}
    for name in sorted(datasets):
        for stored in _stored(datasets[name]):
            key = (stored.protocol, stored.bucket, getattr(stored.system, "_fs_token", id(stored.system)))
            stores.setdefault(key, {})[name] = stored
    mistakes: dict[str, str] = {}
    for members in stores.values():
        first, *others = members
        if (fault := _fault(members[first])) is not None:
            more = f". {len(others)} more in this bucket: {first_of(others, _MAX_LISTED)}" if others else ""
            text = f"{first}: {members[first].address} {fault}{more}"
            mistakes |= {name: text for name in members if name not in mistakes}
    return mistakes


def _stored(dataset: AbstractDataset[Any, Any]) -> list[_Stored]:
    """Where a dataset is, and its mirror; empty if it is in no object store."""
    while isinstance(dataset, CachedDataset):
        dataset = dataset._dataset
    system = getattr(dataset, "_fs", None) or getattr(dataset, "_filesystem", None)
    path = getattr(dataset, "_filepath", None) or getattr(dataset, "_path", None)
    found = [] if system is None or path is None else [(system, str(path))]
    remote: Callable[[], tuple[AbstractFileSystem, str] | None] | None = getattr(dataset, "remote_folder", None)
    with suppress(AatError):  # said when it is created
        if remote is not None and (folder := remote()) is not None:
            found.append(folder)
    places = []
    for each, text in found:
        protocols = (each.protocol,) if isinstance(each.protocol, str) else tuple(each.protocol)
        if protocol := next((known for known in protocols if known in _WITH_BUCKETS), None):
            places.append(_Stored(each, protocol, str(each._strip_protocol(text)).strip("/")))
    return places


def _fault(stored: _Stored) -> str | None:
    """What is wrong with a store, and what to do; None if it answers and has the bucket."""
    advice = (
        "Check the address, that this machine reaches it, and the entry's `credentials` (in credentials.yml of "
        "conf/base, or of the environment that --env names) and `fs_args`"
    )
    answer = _within(lambda: _asked(stored))
    if answer is None:
        return f"does not answer within {_PATIENCE:.0f} seconds. {advice}"
    if isinstance(answer, Exception):
        return f"cannot be reached ({describe(answer)}). {advice}"
    if not answer:
        return (
            f"cannot be used, because there is no bucket or container {stored.bucket}. Create it, since a run does "
            "not; or correct the catalog entry"
        )
    return None


def _asked(stored: _Stored) -> bool:
    """Whether the bucket is there, as far as its store says."""
    stored.system.invalidate_cache()
    try:
        stored.system.info(stored.path)
        return True
    except FileNotFoundError:  # the path, or the whole bucket
        pass
    try:
        stored.system.info(stored.bucket)
    except FileNotFoundError:
        return False
    except Exception:  # keys for one folder may not ask for the bucket
        return True
    return True


def _within(ask: Callable[[], bool]) -> bool | Exception | None:
    """The answer, or the error; None if it takes too long."""
    answers: list[bool | Exception] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # each store has its own classes
            answers.append(error)

    thread = threading.Thread(target=work, daemon=True)  # which does not keep the command from ending
    thread.start()
    thread.join(_PATIENCE)
    return answers[0] if answers else None

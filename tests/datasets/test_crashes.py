"""What was saved survives a crash of the next save at any instant, and the failure of any call to the file system."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kedro.io import AbstractDataset, DatasetError

from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.errors import AatError, StorageError
from tests.datasets.kinds import KINDS as SAVED
from tests.datasets.kinds import Kind

# --- the file system --------------------------------------------------------------------------------------------

_CALLS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "flush"}
_listeners: list[Callable[[str], object]] = []


def _audit(event: str, _: tuple[object, ...]) -> None:
    if event in _CALLS and _listeners:
        listener = _listeners.pop()  # it may use the file system
        listener(event)
        _listeners.append(listener)


sys.addaudithook(_audit)  # there is no way to remove it


@contextlib.contextmanager
def listening(listener: Callable[[str], object], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls `listener` before every call that changes the file system, until it raises: then that call is not made."""
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        sys.audit("flush")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", flush)
        _listeners.append(listener)
        try:
            yield
        finally:
            _listeners.clear()


# --- the datasets -----------------------------------------------------------------------------------------------


class Ledger(AbstractDataset[str, CertificateLedger]):
    """A ledger that claims a split when it is saved."""

    def __init__(self, filepath: str) -> None:
        self._ledger = CertificateLedger(filepath)

    def load(self) -> CertificateLedger:
        return self._ledger

    def save(self, data: str) -> None:
        self._ledger.claim(data, {})

    def _exists(self) -> bool:
        return self._ledger.path.exists()

    def _describe(self) -> dict[str, Any]:
        return {}


KINDS = SAVED | {
    "ledger": Kind(
        Ledger, "ledger.json", lambda: ["split-1", "split-2"], lambda ledger: [*json.loads(ledger.path.read_text())]
    )
}


# A program takes seconds to save, and its class shares all that it does with the file of ONNX.
@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name == "program" else ()) for name in KINDS])
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def visible(folder: Path) -> list[str]:
    """Names of all files below a folder; a lock of the ledger stays."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock")


def steps(kind: Kind, folder: Path) -> Iterator[tuple[Any, object, object, list[str]]]:
    """Saves the versions one after the other, and yields the next one, with what is loaded before and after it."""
    versions = kind.versions()
    done = []
    for data in [*versions, versions[0]]:
        kind.at(folder / "dry").save(data)
        done.append((data, kind.loaded(folder / "dry"), visible(folder / "dry")))
    before: object = None
    for data, after, names in done:
        yield data, before, after, names
        before = after


def test_after_a_crash_at_any_instant_the_old_or_the_new_loads(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    numbers = itertools.count()

    def keep(_: str) -> None:
        shutil.copytree(live, tmp_path / f"crash-{next(numbers)}")

    for data, before, after, names in steps(kind, tmp_path):
        first = len(list(tmp_path.glob("crash-*")))
        with listening(keep, monkeypatch):
            kind.at(live).save(data)
        found = []
        for number in range(first, next(numbers)):
            crash = tmp_path / f"crash-{number}"
            found.append(kind.loaded(crash))
            kind.at(crash).save(data)  # the next run
            assert kind.loaded(crash) == after
            assert visible(crash) == names
        # There is one instant at which the new replaces the old.
        assert [state for state, _ in itertools.groupby(found)] in ([before], [before, after], [after])
        assert kind.loaded(live) == after
        numbers = itertools.count(first + len(found))


def test_failure_of_any_call_loses_nothing(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, start = tmp_path / "live", tmp_path / "start"
    (old, _, before, _), (new, _, after, names) = itertools.islice(steps(kind, tmp_path), 2)
    kind.at(start).save(old)
    for failing in itertools.count(1):
        shutil.rmtree(live, ignore_errors=True)
        shutil.copytree(start, live)
        calls: list[str] = []

        def fail(event: str, failing: int = failing, calls: list[str] = calls) -> None:
            calls.append(event)
            if len(calls) == failing:
                raise OSError(errno.EIO, f"{event} failed")

        error: Exception | None = None
        with listening(fail, monkeypatch):
            try:
                kind.at(live).save(new)
            except DatasetError as raised:
                error = raised
        if len(calls) < failing:
            break
        assert kind.loaded(live) in ((before, after) if error else (after,)), calls
        assert error is None or isinstance(error.__cause__, AatError), calls
        kind.at(live).save(new)  # the next run
        assert kind.loaded(live) == after
        assert visible(live) == names


@contextlib.contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Lets no file grow beyond a size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("num_bytes", [0, 5])
def test_full_disk_loses_nothing(kind: Kind, num_bytes: int, tmp_path: Path) -> None:
    old, new = kind.versions()[:2]
    dataset = kind.at(tmp_path)
    dataset.save(old)
    before, names = kind.loaded(tmp_path), visible(tmp_path)
    with pytest.raises(DatasetError, match="what was saved before is still there") as info, full_disk(num_bytes):
        dataset.save(new)
    assert isinstance(info.value.__cause__, StorageError)
    assert kind.loaded(tmp_path) == before
    assert visible(tmp_path) == names


@pytest.mark.parametrize("kind", ["model", "openvino"], indirect=True)
def test_killed_process_leaves_the_old_or_the_new(kind: Kind, tmp_path: Path) -> None:
    versions = kind.versions()
    dataset = kind.at(tmp_path)
    expected = []
    for data in versions:
        dataset.save(data)
        expected.append(kind.loaded(tmp_path))
    moments = random.Random(0)
    for _ in range(10):
        if (pid := os.fork()) == 0:
            for data in itertools.cycle(versions):
                dataset.save(data)
        time.sleep(moments.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert kind.loaded(tmp_path) in expected

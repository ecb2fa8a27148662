"""A test split certifies one model, once; the ledger records which one."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.errors import CheckpointError, DataError
from kedro_aat.testing.disk_faults import ERRORS, Disk, read_only, without_locks

ONE: dict[str, str | float] = {"model": "a", "tolerated_drop": 0.01}
OTHER: dict[str, str | float] = {"model": "b", "tolerated_drop": 0.01}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "not" / "yet" / "there.json"


def test_first_subject_gets_the_split(path: Path) -> None:
    entry = CertificateLedger(path).claim("split", ONE)
    assert entry.subject == ONE
    assert entry.result is None
    assert entry.claimed.endswith("+00:00")


def test_another_subject_gets_the_first_ones_entry(path: Path) -> None:
    first = CertificateLedger(path).claim("split", ONE)
    assert CertificateLedger(path).claim("split", OTHER) == first
    assert CertificateLedger(path).claim("another split", OTHER).subject == OTHER


def test_result_is_kept(path: Path) -> None:
    ledger = CertificateLedger(path)
    ledger.claim("split", ONE)
    ledger.record("split", {"p_value": 0.25, "certificate": None})
    again = CertificateLedger(path).claim("split", ONE)
    assert again.result == {"p_value": 0.25, "certificate": None}
    assert CertificateLedger(path).claim("split", OTHER).subject == ONE


def test_numbers_survive_the_file_exactly(path: Path) -> None:
    subject: dict[str, str | float] = {"tolerated_drop": 0.1 + 0.2, "alpha": 1 / 3}
    CertificateLedger(path).claim("split", subject)
    assert CertificateLedger(path).claim("split", subject).subject == subject


def test_a_split_keeps_the_entry_under_its_former_name(path: Path) -> None:
    ledger = CertificateLedger(path)
    former = ledger.claim("former", ONE)
    assert ledger.claim("now", OTHER, also_known_as=["never", "former"]) == former
    assert ledger.claim("now", OTHER) == former  # from now on without the former name
    ledger.record("now", {"p_value": 0.25})
    assert ledger.claim("now", ONE, ["former"]).result == {"p_value": 0.25}
    assert ledger.claim("another", OTHER, ["unknown"]).subject == OTHER


@pytest.mark.parametrize("contents", ["", "{", "[1]", '{"split": 3}', '{"split": {"subject": {}}}'])
def test_damaged_ledger_is_never_read_as_an_empty_one(path: Path, contents: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(contents)
    with pytest.raises(DataError, match="is damaged"):
        CertificateLedger(path).claim("split", ONE)
    assert path.read_text() == contents


def test_of_many_processes_one_has_the_split(path: Path) -> None:
    script = (
        "import sys; from kedro_aat.certificate.ledger import CertificateLedger;"
        "print(CertificateLedger(sys.argv[1]).claim('split', {'model': sys.argv[2]}).subject['model'])"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(6)
    ]
    owners = {process.communicate(timeout=60)[0].strip() for process in started}
    assert len(owners) == 1
    assert json.loads(path.read_text())["split"]["subject"]["model"] in owners


def test_claim_waits_for_another_process(path: Path) -> None:
    claim_and_record(path)
    with path.with_name("there.json.lock").open("w") as lock, ThreadPoolExecutor() as threads:
        fcntl.flock(lock, fcntl.LOCK_EX)
        claim = threads.submit(CertificateLedger(path).claim, "another split", OTHER)
        with pytest.raises(TimeoutError):
            claim.result(timeout=0.1)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert claim.result(timeout=60).subject == OTHER


# --- a disk that refuses ---------------------------------------------------------------------------------------


def claim_and_record(path: Path) -> None:
    ledger = CertificateLedger(path)
    ledger.claim("split", ONE)
    ledger.record("split", {"p_value": 0.25})


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_each_operation_may_fail_once(tmp_path: Path, error: int) -> None:
    counting = Disk()
    with counting.used():
        claim_and_record(tmp_path / "counted" / "ledger.json")
    assert counting.count >= 9
    for failing in range(counting.count):
        path = tmp_path / f"failing-{failing}" / "ledger.json"
        with Disk(failing, error).used(), pytest.raises(CheckpointError, match=str(path)):
            claim_and_record(path)
        # Either the split was claimed, or it was not; the same call goes on in both cases.
        claim_and_record(path)
        assert CertificateLedger(path).claim("split", OTHER).subject == ONE


def test_claimed_split_can_be_read_on_a_read_only_disk(path: Path) -> None:
    claim_and_record(path)
    with read_only():
        assert CertificateLedger(path).claim("split", OTHER).result == {"p_value": 0.25}
        with pytest.raises(CheckpointError, match="the file system is read-only"):
            CertificateLedger(path).claim("another split", ONE)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_one_process_works_without_locks(path: Path, error: int, caplog: pytest.LogCaptureFixture) -> None:
    with without_locks(error):
        claim_and_record(path)
    assert "this file system has no locks" in caplog.text
    assert CertificateLedger(path).claim("split", OTHER).subject == ONE

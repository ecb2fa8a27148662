"""Ctrl-C, SIGTERM and SIGKILL of a process that has started ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.ranks.commands import ended_as, process_of, start

pytestmark = pytest.mark.slow


@pytest.fixture
def search(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A search on two ranks, which has saved two checkpoints."""
    command = start(tmp_path, "--devices", "2", "--epochs", "200")
    while command.poll() is None and len(list(tmp_path.glob("store/*/checkpoint-*"))) < 2:
        time.sleep(0.1)
    yield command
    command.kill()
    command.communicate()


def are_left(processes: list[int | None]) -> bool:
    return any(process is not None and Path(f"/proc/{process}").exists() for process in processes)


def seconds_until_none_is_left(processes: list[int | None]) -> float:
    begin = time.monotonic()
    while are_left(processes):
        time.sleep(0.05)
        assert time.monotonic() < begin + 100
    return time.monotonic() - begin


def test_the_first_ctrl_c_ends_after_the_epoch(tmp_path: Path, search: subprocess.Popen[str]) -> None:
    ranks = [process_of(tmp_path, rank) for rank in range(2)]
    os.kill(search.pid, signal.SIGINT)
    error = ended_as(search)["error"]
    assert "InterruptedRunError" in error
    assert "Stopped after epoch" in error
    assert not are_left(ranks)
    again = ended_as(start(tmp_path, "--devices", "2", "--epochs", "4"))
    assert [row["epoch"] for row in again["rows"]]


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_sigterm_and_a_second_ctrl_c_end_at_once(
    tmp_path: Path, search: subprocess.Popen[str], signals: list[signal.Signals]
) -> None:
    ranks = [process_of(tmp_path, rank) for rank in range(2)]
    for number in signals:
        os.kill(search.pid, number)
        time.sleep(0.2)
    seconds = seconds_until_none_is_left(ranks)
    print(f"no rank is left after {seconds:.1f} s")
    assert seconds < 10
    assert "InterruptedRunError" in ended_as(search)["error"]


def test_ranks_end_when_their_parent_is_killed(tmp_path: Path, search: subprocess.Popen[str]) -> None:
    ranks = [process_of(tmp_path, rank) for rank in range(2)]
    os.kill(search.pid, signal.SIGKILL)
    seconds = seconds_until_none_is_left(ranks)
    print(f"no rank is left after {seconds:.1f} s")
    assert seconds < 60

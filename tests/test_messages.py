"""Messages of level INFO arrive, and what takes long says so."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from kedro_aat import messages
from kedro_aat.messages import counted, doing, show_progress

PACKAGE = logging.getLogger("kedro_aat")


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    before = PACKAGE.level
    yield
    PACKAGE.setLevel(before)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A line is due after a tenth of a second, and INFO is shown."""
    monkeypatch.setattr(messages, "SECONDS_OF_SILENCE", 0.1)
    caplog.set_level(logging.INFO, "kedro_aat")


def wait_for_line(caplog: pytest.LogCaptureFixture) -> str:
    deadline = time.monotonic() + 20
    while not caplog.messages and time.monotonic() < deadline:
        time.sleep(0.01)
    return caplog.messages[0]


@pytest.mark.usefixtures("impatient")
def test_what_takes_long_says_what_it_does_and_how_far(caplog: pytest.LogCaptureFixture) -> None:
    with doing("export_model"), doing("validation of the exported file"):
        batches = counted(range(400))
        for _ in range(121):
            next(batches)
        line = wait_for_line(caplog)
    assert line.endswith(" s so far: export_model; validation of the exported file, 120 of 400 batches")
    num_lines = len(caplog.messages)
    time.sleep(0.3)
    assert len(caplog.messages) == num_lines  # it has ended


@pytest.mark.usefixtures("impatient")
def test_line_also_comes_while_messages_of_parts_are_suppressed(caplog: pytest.LogCaptureFixture) -> None:
    with doing("the rehearsal"):
        PACKAGE.setLevel(logging.ERROR)
        assert "the rehearsal" in wait_for_line(caplog)


@pytest.mark.usefixtures("impatient")
def test_nothing_is_added_while_other_lines_come(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "SECONDS_OF_SILENCE", 1.0)
    with doing("epoch 3"):
        for _ in range(15):
            PACKAGE.info("another line")
            time.sleep(0.1)
    assert set(caplog.messages) == {"another line"}


@pytest.mark.usefixtures("impatient")
def test_nothing_is_said_beside_a_progress_bar(caplog: pytest.LogCaptureFixture) -> None:
    with doing("search"), doing("the bar", is_shown=True), doing("epoch 3"):
        time.sleep(0.4)
    assert not caplog.messages


def test_there_is_no_thread_where_nobody_reads_the_lines() -> None:
    PACKAGE.setLevel(logging.WARNING)
    before = set(threading.enumerate())  # one of an earlier test may still be ending
    with doing("epoch 3"):
        assert set(threading.enumerate()) <= before


def test_level_is_set_where_nobody_has_set_one() -> None:
    PACKAGE.setLevel(logging.NOTSET)
    show_progress()
    assert PACKAGE.getEffectiveLevel() == logging.INFO
    PACKAGE.setLevel(logging.ERROR)
    show_progress()
    assert PACKAGE.level == logging.ERROR


def test_root_that_shows_more_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    PACKAGE.setLevel(logging.NOTSET)
    caplog.set_level(logging.DEBUG)
    show_progress()
    assert PACKAGE.isEnabledFor(logging.DEBUG)


SCRIPT = """
import logging
import os
from kedro_aat.messages import shown
logger = logging.getLogger("kedro_aat.training")
with shown():
    logger.info("first")
logger.info("second")
logging.basicConfig(format="configured: %(message)s")
with shown():
    logger.info("third")
"""


def test_plain_script_shows_messages_once_and_only_for_a_while() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    first, third = done.stderr.splitlines()
    assert first.endswith(" INFO first")
    assert third == "configured: third"


IN_A_TERMINAL = """
import logging
import os
from rich import get_console
from kedro_aat.messages import shown
from kedro_aat.training.progress.terminal import TerminalView
with shown():
    view = TerminalView(get_console())
    logging.getLogger("kedro_aat.loop").info("a line of the log")
    view.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudoterminals")
def test_a_line_of_the_log_does_not_tear_the_bar() -> None:
    import pty  # of Unix alone

    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    subprocess.run(
        [sys.executable, "-c", IN_A_TERMINAL], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, check=True
    )
    os.close(theirs)
    before, found, _ = os.read(ours, 2**16).partition(b"a line of the log")
    os.close(ours)
    assert found
    erased = before.rindex(b"\x1b[2K")  # the bar, which is drawn again below
    assert b"epoch" not in before[erased:]

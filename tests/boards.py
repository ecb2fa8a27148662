"""The example's board, a second process that measures files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BoardProcess = tuple[subprocess.Popen[str], int]  # and its port

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the board of the example runs on Linux")


@contextmanager
def started_board() -> Iterator[BoardProcess]:
    """Starts it, and ends it afterwards."""
    command = [sys.executable, "-m", "examples.device.board"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    """Ends it, and returns a line for each file that it was given."""
    process.kill()
    assert process.stdout is not None
    return process.stdout.read().splitlines()

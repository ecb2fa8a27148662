"""Runs ExecuTorch without its messages, which it writes to standard error past `logging`."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator

from kedro_aat.errors import ExportError

_LOG = re.compile(r"^\[\w+\.(?:cpp|h|cc):\d+\] ?")  # how ExecuTorch's lines begin
_ABOUT_THE_PROCESSOR = re.compile(r"midr|# of cpus|/sys/devices")  # on every machine that is no phone


@contextlib.contextmanager
def quiet_runtime(what: str) -> Iterator[None]:
    """Keeps ExecuTorch's own lines from the terminal; if it fails, they are in the error.

    Args:
        what: Begin of the message, such as "ExecuTorch cannot load the file".

    Raises:
        ExportError: If anything fails.
    """
    said: list[str] = []
    try:
        with _taken_lines(said):
            yield
    except Exception as error:  # its errors are RuntimeErrors with a number
        reasons = [line for line in said if not _ABOUT_THE_PROCESSOR.search(line)]
        raise ExportError(f"{what}: {' '.join(reasons[:3]) or error}") from error


@contextlib.contextmanager
def _taken_lines(said: list[str]) -> Iterator[None]:
    """Takes ExecuTorch's lines from standard error; what others write there meanwhile is passed on."""
    taken = io.StringIO()
    try:
        with contextlib.redirect_stderr(taken):
            yield
    finally:
        for line in taken.getvalue().splitlines():
            if _LOG.match(line):
                said.append(_LOG.sub("", line))
            else:
                print(line, file=sys.stderr)

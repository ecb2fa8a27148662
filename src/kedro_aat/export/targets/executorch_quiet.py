"""Imports ExecuTorch and runs it without its messages: it writes to the process's standard error, past Python."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from kedro_aat.errors import ExportError

_LOG = re.compile(r"^\[\w+\.(?:cpp|h|cc):\d+\] ?")  # how ExecuTorch's lines begin
_ABOUT_THE_PROCESSOR = re.compile(r"midr|# of cpus|/sys/devices")  # on every machine that is no phone


def quiet_import(name: str) -> Any:
    """Imports a module of a runtime, without warnings for its own developers and without its changes to logging.

    Returns:
        The module (ExecuTorch ships no types that mypy reads).
    """
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    finally:
        logging.disable(disabled)
        root.handlers[:], root.level = handlers, level


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
    """Takes ExecuTorch's lines from the process's standard error; what others write there meanwhile is passed on."""
    with tempfile.TemporaryFile() as taken:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(taken.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            taken.seek(0)
            for line in taken.read().decode(errors="replace").splitlines():
                if _LOG.match(line):
                    said.append(_LOG.sub("", line))
                else:
                    print(line, file=sys.stderr)

"""Shows the messages of a run to a caller who has not configured logging."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler

_PACKAGE = logging.getLogger("kedro_aat")


@contextmanager
def shown() -> Iterator[None]:
    """Sets the package's logger to INFO while the block runs, unless the caller has set a level.

    Where nobody has configured logging, the lines go to the standard error: colored in a terminal or a notebook, plain
    with the time in a file.
    """
    level, handler = _PACKAGE.level, None
    if level == logging.NOTSET:
        _PACKAGE.setLevel(logging.INFO)
    if not _PACKAGE.hasHandlers():
        handler = _handler()
        _PACKAGE.addHandler(handler)
    try:
        yield
    finally:
        _PACKAGE.setLevel(level)
        if handler is not None:
            _PACKAGE.removeHandler(handler)


def _handler() -> logging.Handler:
    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        return RichHandler(console=console, show_path=False, omit_repeated_times=False, log_time_format="%H:%M:%S")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    return handler

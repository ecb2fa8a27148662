"""Messages that arrive: the level of our log, and a line now and then from what takes long.

A run that is silent for minutes cannot be told from one that hangs. So what may take long is named by `doing`, and a
thread says what is going on and how far, as long as nothing else of ours is said.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from rich import get_console
from rich.console import Console
from rich.logging import RichHandler

PACKAGE = "kedro_aat"
SECONDS_OF_SILENCE = 60.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


def show_progress() -> None:
    """Has our messages of level INFO shown from now on, unless somebody has set a level for them."""
    package = logging.getLogger(PACKAGE)
    if package.level == logging.NOTSET and package.getEffectiveLevel() > logging.INFO:
        package.setLevel(logging.INFO)


@contextmanager
def shown() -> Iterator[None]:
    """Shows our messages of level INFO while the block runs, unless the caller has set a level for them.

    Where nobody has configured logging, the lines go to the terminal or the notebook, colored, or else to the standard
    error, plain with the time.
    """
    package = logging.getLogger(PACKAGE)
    level, handler = package.level, None
    show_progress()
    if not package.hasHandlers():
        handler = _handler()
        package.addHandler(handler)
    try:
        yield
    finally:
        package.setLevel(level)
        if handler is not None:
            package.removeHandler(handler)


def _handler() -> logging.Handler:
    console = Console(stderr=True)
    if sys.stdout.isatty():
        console = get_console()  # that of the bar, which makes room for each line
    if console.is_terminal or console.is_jupyter:
        return RichHandler(console=console, show_path=False, omit_repeated_times=False, log_time_format="%H:%M:%S")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    return handler


# Parts that are done, and their number, if it is known.
Position = Callable[[], tuple[int, int | None]]


@dataclass
class Activity:
    """Something that takes long.

    Attributes:
        what: What it is, for a reader of the log.
        position: How far it is; None if that is unknown.
        unit: What its parts are.
        is_shown: Whether something else shows that it goes on.
        started: When it began, by `time.monotonic`.
    """

    what: str
    position: Position | None
    unit: str
    is_shown: bool
    started: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        done, total = self.position() if self.position else (0, None)
        if done < 1:
            return self.what
        return f"{self.what}, {done:,}{f' of {total:,}' if total else ''} {self.unit}"


class _Activities(threading.local):
    """What a thread is doing, the outermost activity first."""

    def __init__(self) -> None:
        self.now: list[Activity] = []


_ACTIVITIES = _Activities()


@contextmanager
def doing(
    what: str, position: Position | None = None, unit: str = "batches", *, is_shown: bool = False
) -> Iterator[None]:
    """Says in the log what is going on, whenever nothing else was said for a minute.

    Activities can be nested; the line names all of them, and how long the outermost one has been going on.

    Args:
        what: What it is, such as "epoch 3".
        position: Called from another thread, for the number of parts that are done and of all; None if unknown.
        unit: What its parts are.
        is_shown: Whether something else shows that it goes on, as a progress bar does; then nothing is said.
    """
    now, activity = _ACTIVITIES.now, Activity(what, position, unit, is_shown)
    now.append(activity)
    # The outermost one decides whether anybody reads the lines, because what is within it may be silenced.
    heartbeat = _Heartbeat(now) if len(now) == 1 and logger.isEnabledFor(logging.INFO) else None
    try:
        yield
    finally:
        now.remove(activity)
        if heartbeat is not None:
            heartbeat.stop()


def counted(parts: Iterable[T]) -> Iterator[T]:
    """The same parts; the innermost activity says how many of them are done.

    Args:
        parts: Such as the batches of a split.
    """
    done, total = 0, None
    with suppress(TypeError):  # a stream without a length
        total = len(parts)  # type: ignore[arg-type]
    if _ACTIVITIES.now:
        _ACTIVITIES.now[-1].position = lambda: (done, total)
    for part in parts:
        yield part
        done += 1


class _Heartbeat(logging.Handler):
    """A thread that says what is going on. It is a handler, too, which hears what others say.

    Args:
        activities: What the thread that makes it is doing.
    """

    def __init__(self, activities: list[Activity]) -> None:
        super().__init__()
        self._activities = activities
        self._last_heard = time.monotonic()
        self._stopped = threading.Event()
        # A handler where there is none would keep Python from printing warnings to standard error.
        self._loggers = [each for each in (logging.getLogger(PACKAGE), logging.getLogger()) if each.handlers]
        for each in self._loggers:
            each.addHandler(self)
        threading.Thread(target=self._beat, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes note of the time."""
        self._last_heard = time.monotonic()

    def stop(self) -> None:
        """Says nothing any more."""
        self._stopped.set()
        for each in self._loggers:
            each.removeHandler(self)

    def _beat(self) -> None:
        while not self._stopped.wait(max(self._last_heard + SECONDS_OF_SILENCE - time.monotonic(), 0.01)):
            if time.monotonic() - self._last_heard < SECONDS_OF_SILENCE:
                continue
            self._last_heard = time.monotonic()
            activities = list(self._activities)
            if activities and not any(each.is_shown for each in activities):
                seconds = time.monotonic() - activities[0].started
                self._say(f"{duration(seconds)} so far: {'; '.join(map(str, activities))}")

    def _say(self, words: str) -> None:
        record = logger.makeRecord(
            logger.name, logging.INFO, __file__, 0, "%s", (words,), None, extra={"markup": False}
        )
        logger.handle(record)  # whatever the level is at the moment


def rounded(value: float) -> str:
    """A number with two digits, and without an exponent if it is 100 or more.

    Args:
        value: Any number.
    """
    return f"{float(f'{value:.2g}'):,.0f}" if 100 <= value < 1e15 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A time in words: in seconds below 2 minutes, in minutes below 2 hours, else in hours.

    Args:
        seconds: The time, at least 0.
    """
    if seconds < 120:
        return f"{math.ceil(round(seconds, 6))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

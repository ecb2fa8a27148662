"""Runs cases, and tells our errors from others', and both from a hang."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from kedro_aat.errors import AatError

SECONDS = 60  # of the processor, for one case; the usual is milliseconds
WALL_SECONDS = 900  # for one case, which a busy machine can slow down
MEGABYTES = 1000  # what one case may add to the largest size of the process
_MAX_MESSAGE = 30_000  # characters of an error that somebody is to read
_ADDRESS_SPACE = 12 << 30  # bytes; a recipe can ask for a model of any size

Case = Callable[[random.Random, Path], None]


class HangError(BaseException):
    """A case took too long. It is no `Exception`, so that nothing in between catches it."""


@dataclass
class Result:
    """What became of the cases of one kind.

    Attributes:
        name: Kind of the cases.
        counts: `accepted`, and the names of our errors -> number of cases.
        failures: Each case that ended otherwise, with its number, and why.
    """

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = ", ".join(f"{number} {name}" for name, number in self.counts.most_common())
        return f"{self.name}: {self.counts.total() + len(self.failures)} cases, {len(self.failures)} failures; {parts}"


def run(name: str, case: Case, numbers: range, seed: int) -> Result:
    """Runs the cases of one kind.

    Args:
        name: Kind of the cases.
        case: Called with random numbers, which depend on seed, kind and number alone, and an empty folder.
        numbers: Numbers of the cases.
        seed: Seed of all cases.
    """
    result = Result(name)
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder, _one_case(f"{name} {number}"):
            try:
                before = _peak()
                case(random.Random(f"{seed} {name} {number}"), Path(folder))
                if (grown := _peak() - before) > MEGABYTES:
                    raise MemoryError(f"the process grew by {grown:.0f} MB")
                result.counts["accepted"] += 1
            except Exception as error:
                if (own := our_error(error)) is None or (why := _unreadable(error)):
                    own_lines = "".join(traceback.format_exception(error)[-12:])
                    result.failures.append(f"{name} {number}: {own_lines if own is None else why}")
                else:
                    result.counts[type(own).__name__] += 1
            except (HangError, SystemExit) as error:
                result.failures.append(f"{name} {number}: {''.join(traceback.format_exception(error)[-12:])}")
    return result


def our_error(error: BaseException | None) -> AatError | None:
    """The error itself or, if Kedro wrapped it, its cause; None if it is not ours."""
    if isinstance(error, AatError) or error is None:
        return error
    return our_error(error.__cause__) if type(error).__name__ == "DatasetError" else None


def _unreadable(error: Exception) -> str:
    text = str(error)
    try:
        text.encode()
    except UnicodeEncodeError as wrong:
        return f"its message cannot be printed: {wrong}"
    return f"its message has {len(text)} characters: {text[:500]}" if len(text) > _MAX_MESSAGE else ""


@contextlib.contextmanager
def _one_case(name: str) -> Iterator[None]:
    """Limits time and memory, and keeps everything from the screen that is not about the harness."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"more than {SECONDS} seconds of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, limits[1]))
    logging.disable(logging.CRITICAL)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    # Code in C does not let the signal through. Then the process ends, and this file has the name of the case.
    with tempfile.NamedTemporaryFile("w+", prefix="hung-", suffix=".txt", delete=False) as log:
        log.write(f"{name}\n")
        log.flush()
        faulthandler.dump_traceback_later(WALL_SECONDS, exit=True, file=log)
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
                yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
            logging.disable(logging.NOTSET)
            resource.setrlimit(resource.RLIMIT_AS, limits)
    os.unlink(log.name)


def _peak() -> float:
    """The largest size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform != "darwin" else 1024) / 1024

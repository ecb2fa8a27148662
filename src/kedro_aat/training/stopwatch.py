"""The wall time that a search uses, in all processes that work on it, and its limit."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kedro_aat.training.records import EpochRecord

FILE_NAME = "seconds"  # in the folder of a run


class Stopwatch:
    """Measures a search from its first line to its last; it runs from the moment at which it is made.

    What the search used is written into the folder of its run, for the process that continues it. Where that fails,
    the times of the epochs take its place: no run ends because of this.

    Args:
        limit: Seconds for the search, in all processes together; None for no limit.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self._earlier = 0.0
        self._file: Path | None = None
        self._started: float | None = time.perf_counter()
        self._lap_started = self._started

    def resume(self, folder: Path, history: Sequence[EpochRecord], *, is_over: bool = False) -> None:
        """Adds what earlier processes used.

        Args:
            folder: Folder of the run.
            history: Its epochs so far.
            is_over: Whether the run is only read, which is no part of the search.
        """
        self._file = folder / FILE_NAME
        written = 0.0
        with suppress(OSError, ValueError):
            written = float(self._file.read_text())
        self._earlier = max(written if math.isfinite(written) else 0.0, sum(row.seconds for row in history))
        if is_over:
            self._file, self._started = None, None

    @property
    def seconds(self) -> float:
        """Seconds used so far."""
        return self._earlier + (0.0 if self._started is None else time.perf_counter() - self._started)

    def lap(self) -> float:
        """Seconds since the last lap, or since the beginning."""
        now = time.perf_counter()
        seconds, self._lap_started = now - self._lap_started, now
        self.save()
        return seconds

    def save(self) -> None:
        """Writes down what was used; not flushed to disk, which would take longer than what it measures."""
        if self._file is not None:
            new = self._file.with_name(f".writing-{FILE_NAME}")
            with suppress(OSError):
                new.write_text(f"{self.seconds:.3f}")
                new.replace(self._file)

    def left(self, history: Sequence[EpochRecord]) -> float:
        """Seconds left for epochs, without the validation of the returned model; infinite if there is no limit."""
        if self.limit is None:
            return math.inf
        validations = [row.seconds for row in history if not row.trained]
        return self.limit - self.seconds - min(validations, default=0.0)

    def is_up(self, history: Sequence[EpochRecord]) -> bool:
        """Whether another epoch, as long as the median one, would exceed the limit; never before the first validation.

        The first validation is of the model that is returned if nothing else is found.
        """
        trained = [row.seconds for row in history if row.trained]
        return bool(history) and self.left(history) < (statistics.median(trained) if trained else 0.0)

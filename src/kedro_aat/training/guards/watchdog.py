"""Ends the process if a training step or a data loader hangs."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class WatchedLoader(DataLoader[Any]):
    """Batches, each of which must be loaded and used within a time limit.

    Args:
        timeout: Seconds.
        *args: Passed on to torch's loader.
        **options: Passed on to torch's loader.
    """

    def __init__(self, timeout: float, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seconds_per_step = timeout

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch's own iterator has a class
        watchdog = Watchdog(self._seconds_per_step)
        try:
            for batch in super().__iter__():
                watchdog.restart()
                yield batch
        finally:
            watchdog.stop()


_RUNNING: set[Watchdog] = set()


def stop_watching() -> None:
    """Stops all watchdogs: a function that has ended may have kept a loader's iterator, which keeps its watchdog."""
    for watchdog in list(_RUNNING):
        watchdog.stop()


class Watchdog:
    """Ends the process, after a dump of the stacks of all threads, unless it is restarted in time.

    A process that hangs cannot raise an error. What it saved stays on disk.

    Args:
        timeout: Seconds.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._stopped = threading.Event()
        self.restart()
        _RUNNING.add(self)
        threading.Thread(target=self._watch, daemon=True).start()

    def restart(self) -> None:
        """Begins another step."""
        self._deadline = time.monotonic() + self._timeout

    def stop(self) -> None:
        """Watches no longer."""
        self._stopped.set()
        _RUNNING.discard(self)

    def _watch(self) -> None:
        errors = sys.__stderr__ or sys.stderr  # a notebook replaces the second one by what is no file
        while (left := self._deadline - time.monotonic()) > 0:
            # This thread cannot run while another one keeps Python's lock; faulthandler's needs no lock.
            faulthandler.dump_traceback_later(2 * self._timeout, exit=True, file=errors)
            if self._stopped.wait(left):
                faulthandler.cancel_dump_traceback_later()
                return
        print(
            f"A training step or the data loader hangs: no step ended within {self._timeout:g} seconds "
            "(training.step_timeout_seconds). The last checkpoint is kept; the same command continues after it. "
            "These are the stacks of all threads:",
            file=errors,
            flush=True,
        )
        faulthandler.dump_traceback(errors)
        for worker in multiprocessing.active_children():  # else one that hangs would outlive this process
            worker.kill()
        os._exit(1)

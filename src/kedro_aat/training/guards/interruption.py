"""Ctrl-C and SIGTERM during a search."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kedro_aat.budget import Outcome
from kedro_aat.errors import InterruptedRunError

logger = logging.getLogger(__name__)


class Interruption:
    """Whether the user has asked to stop.

    Attributes:
        is_requested: Whether the run stops when the present work is done.
        work: What is finished first, in words for the user.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self.work = "the epoch"
        self._process = os.getpid()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: the first Ctrl-C asks to stop; a second one and SIGTERM stop.

        Raises:
            KeyboardInterrupt: To stop at once, which is at the next training step at the latest.
        """
        if os.getpid() != self._process:  # a data loader's worker, which inherited this handler
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if number == signal.SIGINT and not self.is_requested:
            self.is_requested = True
            return
        raise KeyboardInterrupt

    def tell(self, signals: socket.socket) -> None:
        """Waits in a thread for the first Ctrl-C, and tells the user what happens."""
        while number := signals.recv(1):
            if number[0] == signal.SIGINT:
                logger.warning(
                    "Stopping when %s is finished and saved. Press Ctrl-C again to stop at the next training step.",
                    self.work,
                )
                return


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Lets SIGTERM stop work that is thrown away, as Ctrl-C does.

    Raises:
        KeyboardInterrupt: For either of them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stopped_with_one_sentence() -> Iterator[None]:
    """Ends work that Ctrl-C or SIGTERM stops with an error that says how to go on.

    Raises:
        InterruptedRunError: For either of them.
    """
    try:
        with stopped_at_once():
            yield
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"The run was stopped; what was finished before is kept. {Outcome.INTERRUPTED.advice}"
        ) from None


@contextmanager
def interruptible(*, tells: bool = True) -> Iterator[Interruption]:
    """Lets Ctrl-C end a run after the epoch, and a second Ctrl-C or SIGTERM at once.

    Python runs a signal's handler when its present instruction ends, which takes seconds for a large model's step.
    Therefore a thread tells the user: it is woken up when the signal arrives.

    Args:
        tells: Whether the user is told; not where another process does.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption  # only the main thread may handle signals
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, interruption.handle)}
    # Whoever ignores or handles Ctrl-C otherwise, such as `nohup` or an application of the user's, goes on doing so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interruption.handle)
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    woken_before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    teller = threading.Thread(target=interruption.tell, args=(receiver,), daemon=True)
    if tells and signal.SIGINT in before:
        teller.start()
    try:
        yield interruption
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        sender.close()
        if teller.ident is not None:
            teller.join()
        receiver.close()

"""Progress of the loop: a bar in a terminal, the frontier in a notebook, lines in a log, and those who follow it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from rich import get_console

from kedro_aat.messages import doing
from kedro_aat.training.progress.notebook import NotebookView, is_notebook
from kedro_aat.training.progress.so_far import SoFar, judged
from kedro_aat.training.progress.terminal import TerminalView

if TYPE_CHECKING:
    from kedro_aat.budget import Budget
    from kedro_aat.training.cost import Cost
    from kedro_aat.training.records import EpochRecord

logger = logging.getLogger(__name__)


class View(Protocol):
    """Shows a search that runs, in place of the lines of its epochs."""

    def show(self, so_far: SoFar) -> None:
        """Shows the search as it is now; called before the first epoch, and after each."""

    def close(self) -> None:
        """The search has ended."""


class LoopProgress:
    """Shows each epoch when it ends.

    Args:
        verbose: Whether to show anything in the terminal, the notebook or the log.
        total: Number of epochs allowed; None if unlimited.
        algorithm: Name of the compression algorithm; empty if it is unknown.
        on_epoch: Called with the record of each epoch; None for none.
    """

    def __init__(
        self,
        *,
        verbose: bool,
        total: int | None,
        algorithm: str = "",
        on_epoch: Callable[[EpochRecord], object] | None = None,
    ) -> None:
        self._on_epoch = on_epoch
        self._verbose = verbose
        self._algorithm, self._total = algorithm, total
        self._has_told_cost = False
        self._view: View | None = None
        self._so_far: SoFar | None = None
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        if self._verbose:
            self._view = _view()
        # A view shows that the run is alive.
        is_shown = self._view is not None or not self._verbose
        self._entered.enter_context(doing("the search", is_shown=is_shown))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close()
        if self._so_far is not None:
            self._so_far = replace(self._so_far, seconds_left=None)
            self._show()
        if self._view is not None:
            self._view.close()
            self._view = None

    def begin(self, budget: Budget, history: list[EpochRecord], num_used: int) -> None:
        """Shows where a search begins.

        Args:
            budget: Accuracy budget, which judges each epoch.
            history: Epochs that an earlier process has done.
            num_used: Epochs that they have used up, by their costs.
        """
        self._so_far = SoFar(self._algorithm, budget, tuple(history), num_used, self._total)
        if history:
            logger.info("So far: %s; best within budget: %s", self._so_far.epochs_in_words, self._so_far.best_in_words)
        self._show()

    def expect(self, cost: Cost) -> None:
        """Shows how many epochs a search may use, and once how long they take, as soon as it is known."""
        if self._total is None:
            return
        if self._so_far is not None:
            self._so_far = replace(self._so_far, epochs_allowed=cost.epochs, seconds_left=cost.seconds)
            self._show()
        if self._verbose and not self._has_told_cost and cost.seconds is not None:
            self._has_told_cost = True
            logger.info("%s", cost)

    def show(self, record: EpochRecord, num_used: int) -> None:
        """Shows one epoch, and tells those who follow.

        Args:
            record: The epoch.
            num_used: Epochs that the search has used up so far, by their costs.

        Raises:
            UserFunctionError: If the user's function fails.
        """
        if self._so_far is not None:
            self._so_far = replace(self._so_far, history=(*self._so_far.history, record), epochs_used=num_used)
            self._show()
        if self._verbose and self._view is None:
            logger.info("%s", line_of(record))
        if self._on_epoch is not None:
            self._on_epoch(record)

    def _show(self) -> None:
        if self._view is not None and self._so_far is not None:
            self._view.show(self._so_far)


def line_of(record: EpochRecord) -> str:
    """An epoch in one line."""
    what = f"epoch {record.epoch}" if record.trained else "validated"
    loss = "" if record.loss is None else f"  loss {record.loss:.4f}"
    return f"{what}  {judged(record)}{loss}"


def _view() -> View | None:
    """What shows the search where this process runs; None for lines in the log."""
    if is_notebook():
        return NotebookView()
    if get_console().is_terminal and sys.stdout.isatty():
        return TerminalView(get_console())
    return None

"""What a person sees while the loop runs: a live bar on a terminal, log lines elsewhere, TensorBoard scalars."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich import get_console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from kedro_aat.training.records import EpochRecord

logger = logging.getLogger(__name__)


class LoopProgress:
    """Shows each epoch as it ends.

    Args:
        verbose: Whether to show anything on the terminal or in the log.
        total: Epochs allowed; None if there is no sensible limit.
        writer: A TensorBoard `SummaryWriter` or None.
    """

    def __init__(self, *, verbose: bool, total: int | None, writer: Any = None) -> None:
        self._writer = writer
        self._verbose = verbose
        self._bar: Progress | None = None
        if verbose and get_console().is_terminal and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn(
                    "[bold]epoch {task.completed}[/]/{task.total}" if total else "[bold]epoch {task.completed}[/]"
                ),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[line]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=get_console(),
            )
            self._task = self._bar.add_task("", total=total, line="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            self._writer.flush()

    def show(self, record: EpochRecord) -> None:
        """Shows one epoch, and writes its scalars."""
        best = "none" if record.best_rate is None else f"{record.best_rate:.4f}"
        line = f"rate {record.achieved_rate:.4f}  metric {record.metric:.4f}  margin {record.margin:+.4f}  best {best}"
        if self._bar is not None:
            self._bar.update(self._task, completed=record.epoch, line=line)
        elif self._verbose:
            loss = "" if record.loss is None else f"  loss {record.loss:.4f}"
            what = f"epoch {record.epoch}" if record.trained else "validated"
            logger.info("%s  %s%s", what, line, loss)
        if self._writer is not None and record.trained:
            self._write_scalars(record)

    def _write_scalars(self, record: EpochRecord) -> None:
        scalars = {
            "metric/validation": record.metric,
            "metric/margin": record.margin,
            "rate/requested": record.requested_rate,
            "rate/achieved": record.achieved_rate,
            "rate/best": record.best_rate,
            "training/loss": record.loss,
            "training/learning_rate": record.learning_rate,
        }
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, record.epoch)

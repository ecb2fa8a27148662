"""Progress of the loop: a live bar in a terminal, log lines elsewhere, and TensorBoard scalars."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich import get_console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from kedro_aat.training.cost import Cost
    from kedro_aat.training.records import EpochRecord, FineTuned

logger = logging.getLogger(__name__)


class LoopProgress:
    """Shows each epoch when it ends.

    Args:
        verbose: Whether to show anything in the terminal or in the log.
        total: Number of epochs allowed; None if unlimited.
        writer: A TensorBoard `SummaryWriter` or None.
    """

    def __init__(self, *, verbose: bool, total: int | None, writer: Any = None) -> None:
        self._writer = writer
        self._verbose = verbose
        self._is_limited = total is not None
        self._has_told_cost = False
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

    def expect(self, cost: Cost) -> None:
        """Shows how many epochs a search may use, and once how long they take, as soon as it is known."""
        if self._bar is not None and self._is_limited:
            self._bar.update(self._task, total=cost.epochs)
        if self._verbose and self._is_limited and not self._has_told_cost and cost.seconds is not None:
            self._has_told_cost = True
            logger.info("%s", cost)

    def show(self, record: EpochRecord, num_used: int) -> None:
        """Shows one epoch, and writes its scalars to TensorBoard.

        Args:
            record: The epoch.
            num_used: Epochs that the search has used up so far, by their costs.
        """
        best = "none" if record.best_rate is None else f"{record.best_rate:.4f}"
        judged = "failed" if record.metric is None else f"metric {record.metric:.4f}  margin {record.margin:+.4f}"
        if record.guard_margin is not None:
            judged += f"  guards {record.guard_margin:+.4f}"
        line = f"rate {record.achieved_rate:.4f}  {judged}  best {best}"
        if self._bar is not None:
            self._bar.update(self._task, completed=num_used, line=line)
        elif self._verbose:
            loss = "" if record.loss is None else f"  loss {record.loss:.4f}"
            what = f"epoch {record.epoch}" if record.trained else "validated"
            logger.info("%s  %s%s", what, line, loss)
        if self._writer is not None and record.trained:
            self._write_scalars(record)

    def _write_scalars(self, record: EpochRecord) -> None:
        scalars = {
            "metric/validation": record.metric,
            "metric/margin": None if record.failed else record.margin,
            "metric/guard_margin": record.guard_margin,
            "rate/requested": record.requested_rate,
            "rate/achieved": record.achieved_rate,
            "rate/best": record.best_rate,
            "training/loss": record.loss,
            "training/learning_rate": record.learning_rate,
            **{f"guards/{name}": value for name, value in record.guards.items()},
        }
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, record.epoch)


def write_hyperparameters(writer: Any, settings: Mapping[str, Any], result: FineTuned) -> None:
    """Adds settings and final metrics to TensorBoard's table of runs.

    `SummaryWriter.add_hparams` would create a folder and a file of its own; this function writes to the run's file.

    Args:
        writer: A TensorBoard `SummaryWriter`.
        settings: Settings of the run, as JSON data.
        result: How the run ended.
    """
    from torch.utils.tensorboard.summary import hparams

    best, last = result.best, result.history[-1]
    metrics = {"final/metric": result.metric, "final/rate": result.achieved_rate, "final/epochs": float(last.epoch)}
    if best is not None:
        metrics["final/margin"] = best.margin
    values = {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in flatten(settings)
    }
    for part in hparams(values | {"outcome": str(result.outcome)}, metrics):
        writer.file_writer.add_summary(part)
    for name, value in metrics.items():
        writer.add_scalar(name, value, last.epoch)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, with dotted names."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

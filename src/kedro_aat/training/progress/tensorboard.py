"""What a search writes for TensorBoard: scalars of each epoch, and a row of its table of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kedro_aat.budget import Outcome
from kedro_aat.training.progress.tracker import TrackedSearch, Tracker

if TYPE_CHECKING:
    from kedro_aat.training.records import EpochRecord, FineTuned


class ScalarsTracker(Tracker):
    """Writes the scalars of each epoch.

    Args:
        writer: A TensorBoard `SummaryWriter`, which others close; None writes nothing.
    """

    ends_run = True  # its files are on the disk of the checkpoints

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def epoch(self, record: EpochRecord) -> None:
        if self._writer is not None and record.trained:
            for name, value in record.scalars.items():
                self._writer.add_scalar(name, value, record.epoch)

    def finish(self, result: FineTuned | None) -> None:
        if self._writer is not None:
            self._writer.flush()


class TensorBoardTracker(ScalarsTracker):
    """Writes the scalars of each epoch, and at the end a row of the table of runs, to a file of its own.

    Args:
        writer_of: Makes a writer for a run, from its name and `next_epoch`.
        settings: Settings of the search, as JSON data, for the table of runs.
    """

    def __init__(self, writer_of: Callable[..., Any], settings: Mapping[str, Any]) -> None:
        super().__init__(None)
        self._writer_of, self._settings = writer_of, settings

    def start(self, search: TrackedSearch) -> None:
        if not search.is_over:
            known = search.history
            self._writer = self._writer_of(search.run, next_epoch=known[-1].epoch + 1 if known else 0)

    def finish(self, result: FineTuned | None) -> None:
        if self._writer is None:
            return
        if result is not None and result.outcome is not Outcome.INTERRUPTED:
            write_hyperparameters(self._writer, self._settings, result)
        self._writer.close()
        self._writer = None


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

"""What a search writes for TensorBoard: scalars of each epoch, and a row of its table of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedro_aat.training.records import EpochRecord, FineTuned


def write_scalars(writer: Any, record: EpochRecord) -> None:
    """Writes what is known of an epoch.

    Args:
        writer: A TensorBoard `SummaryWriter`.
        record: The epoch.
    """
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
            writer.add_scalar(name, value, record.epoch)


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

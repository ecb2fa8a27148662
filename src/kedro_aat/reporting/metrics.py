"""The numbers of a run in the two forms that experiment trackers take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kedro_aat.budget import Outcome
from kedro_aat.delivery.results import Summary
from kedro_aat.training.progress import flatten

if TYPE_CHECKING:
    import pandas as pd

# Parts of the summary that differ between runs; the rest is words, settings and versions.
SUMMARY_PARTS = {"budget", "baseline", "compressed", "certificate", "epochs", "seconds"}
TRAJECTORY_COLUMNS = ("requested_rate", "achieved_rate", "metric", "margin", "loss", "learning_rate")


def flat_metrics(summary: Summary) -> dict[str, float]:
    """All numbers of a summary, each under its path, as in `compressed.latency_ms.1`.

    `is_within_budget` and `is_certified` are 1 or 0.
    """
    values = flatten(summary.model_dump(mode="json", include=SUMMARY_PARTS))
    return {
        "is_within_budget": float(summary.outcome in (Outcome.CERTIFIED, Outcome.WITHIN_BUDGET)),
        "is_certified": float(summary.outcome is Outcome.CERTIFIED),
        **{key: float(value) for key, value in values if type(value) in (int, float)},
    }


def metrics_history(trajectory: pd.DataFrame) -> dict[str, list[dict[str, float]]]:
    """The curves of all stages, each as a list of `{"step": ..., "value": ...}` with one step per epoch."""
    curves = {}
    for column in TRAJECTORY_COLUMNS:
        values = enumerate(trajectory[column].astype("float64"))
        points = [{"step": step, "value": float(value)} for step, value in values if math.isfinite(value)]
        if points:  # a tracker refuses an empty list
            curves[column] = points
    return curves

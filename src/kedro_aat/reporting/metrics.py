"""The numbers of a run in the two forms that trackers of experiments take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What tells one run from another; the rest of a summary is words, settings and versions.
_SUMMARY_PARTS = ("budget", "baseline", "compressed", "certificate", "epochs", "seconds")
_TRAJECTORY_COLUMNS = ("requested_rate", "achieved_rate", "metric", "margin", "loss", "learning_rate")


def flat_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """All finite numbers of a summary, each under its path, as in `compressed.latency_ms.1`.

    `is_within_budget` and `is_certified` are 1 or 0.
    """
    outcome = summary["outcome"]
    parts = {key: summary[key] for key in _SUMMARY_PARTS}
    return {
        "is_within_budget": float(outcome in ("certified", "within_budget")),
        "is_certified": float(outcome == "certified"),
        **dict(_numbers(parts)),
    }


def _numbers(part: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in part.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{key}", float(value)


def metrics_history(trajectory: pd.DataFrame) -> dict[str, list[dict[str, float]]]:
    """The curves of a search, each as a list of `{"step": ..., "value": ...}`, with one step an epoch of all stages."""
    curves = {}
    for column in _TRAJECTORY_COLUMNS:
        values = enumerate(trajectory[column].astype("float64"))
        points = [{"step": step, "value": float(value)} for step, value in values if math.isfinite(value)]
        if points:  # a tracker refuses an empty list
            curves[column] = points
    return curves

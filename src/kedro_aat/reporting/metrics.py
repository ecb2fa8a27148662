"""The numbers of a run in the two forms that experiment trackers take."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from kedro_aat.budget import Outcome
from kedro_aat.delivery.results import Summary
from kedro_aat.training.progress import flatten
from kedro_aat.validated import Settings

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


def flat_parameters(settings: Settings) -> dict[str, str | int | float | bool]:
    """Settings with dotted names, without nulls and without sections of which the user has written nothing.

    A list is JSON. Trackers are left out: their arguments may be secret.
    """
    flat, written = (
        dict(flatten(settings.model_dump(mode="json", by_alias=True, exclude={"trackers"}, exclude_unset=excluded)))
        for excluded in (False, True)
    )
    sections = {"", *(name[:end] for name in written for end, sign in enumerate(name) if sign == ".")}
    return {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in flat.items()
        if value is not None and value != [] and name.rpartition(".")[0] in sections
    }


def tags_of(summary: Summary) -> dict[str, str]:
    """What a summary says in words: how the run ended, and what the certificate says."""
    certificate = summary.certificate
    return {
        "outcome": str(summary.outcome),
        "certificate": certificate.words,
        "certificate.kind": certificate.kind or "none",
        "metric": summary.metric.name,
        "delivered": summary.delivered or "nothing",
        "kedro_aat.version": summary.versions["kedro-aat"],
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

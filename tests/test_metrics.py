"""Metrics of a run in the format of experiment trackers: the summary as numbers, and curves."""

from __future__ import annotations

import json

import pandas as pd

from kedro_aat.reporting.metrics import flat_metrics, metrics_history
from tests.pipelines.aat.test_run import CONTRACT
from tests.projects import Project
from tests.reporting.runs import summary_of


def test_flat_metrics_hold_the_numbers_of_the_summary() -> None:
    summary = summary_of("within_budget")
    metrics = flat_metrics(summary)
    assert metrics["is_within_budget"] == 1.0
    assert metrics["is_certified"] == 0.0
    assert metrics["budget.drop"] == summary.budget.drop
    assert metrics["baseline.validation"] == summary.baseline.validation
    assert metrics["baseline.latency_ms.1"] == 0.1
    assert metrics["compressed.rate.achieved"] == 0.8
    assert metrics["compressed.parameters"] == 100.0
    assert metrics["epochs.used"] == 6.0
    assert metrics["seconds.used"] == 12.3
    # No text, no missing values, and nothing about settings, versions or candidates.
    assert {key.partition(".")[0] for key in metrics} == {
        *("is_within_budget", "is_certified", "budget", "baseline", "compressed", "epochs", "seconds")
    }
    assert all(isinstance(value, float) for value in metrics.values())


def test_history_has_one_curve_per_column_with_values() -> None:
    columns = ("requested_rate", "achieved_rate", "metric", "margin", "learning_rate")
    trajectory = pd.DataFrame({name: [0.1, 0.2] for name in columns} | {"loss": [None, None]})
    curves = metrics_history(trajectory)
    assert curves["metric"] == [{"step": 0, "value": 0.1}, {"step": 1, "value": 0.2}]
    assert "loss" not in curves


def test_run_writes_metrics_and_history(finished: Project) -> None:
    folder = finished.folder / "data/08_reporting"
    metrics = json.loads((folder / "aat_metrics.json").read_text())
    assert all(isinstance(value, float) for value in metrics.values())
    assert metrics["compressed.rate.achieved"] == finished.summary["compressed"]["rate"]["achieved"]
    assert CONTRACT["baseline"] - {"latency_ms"} <= {key.removeprefix("baseline.") for key in metrics}
    history = json.loads((folder / "aat_metrics_history.json").read_text())
    assert len(history["metric"]) == len(finished.trajectory)

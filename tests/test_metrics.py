from __future__ import annotations

import json

import pandas as pd

from kedro_aat.reporting.metrics import flat_metrics, metrics_history
from tests.pipelines.aat.test_run import CONTRACT
from tests.projects import Project

SUMMARY = {
    "outcome": "within_budget",
    "budget": {"kind": "max_drop", "drop": 0.01, "lowest_tolerated": float("nan")},
    "baseline": {"validation": 0.9, "test": None, "latency_ms": {"1": 0.5}},
    "compressed": {"rate": {"achieved": 0.5}, "parameters": 10},
    "certificate": {"p_value": None, "is_certified": False, "words": "none"},
    "epochs": {"used": 3},
    "seconds": {"used": 1.5, "limit": None},
    "versions": {"torch": "2"},
}


def test_summary_as_numbers() -> None:
    assert flat_metrics(SUMMARY) == {
        "is_within_budget": 1.0,
        "is_certified": 0.0,
        "budget.drop": 0.01,
        "baseline.validation": 0.9,
        "baseline.latency_ms.1": 0.5,
        "compressed.rate.achieved": 0.5,
        "compressed.parameters": 10.0,
        "epochs.used": 3.0,
        "seconds.used": 1.5,
    }


def test_curves() -> None:
    columns = ("requested_rate", "achieved_rate", "metric", "margin", "learning_rate")
    trajectory = pd.DataFrame({name: [0.1, 0.2] for name in columns} | {"loss": [None, None]})
    curves = metrics_history(trajectory)
    assert curves["metric"] == [{"step": 0, "value": 0.1}, {"step": 1, "value": 0.2}]
    assert "loss" not in curves


def test_a_run_writes_both(finished: Project) -> None:
    folder = finished.folder / "data/08_reporting"
    metrics = json.loads((folder / "aat_metrics.json").read_text())
    assert all(isinstance(value, float) for value in metrics.values())
    assert metrics["compressed.rate.achieved"] == finished.summary["compressed"]["rate"]["achieved"]
    assert CONTRACT["baseline"] - {"latency_ms"} <= {key.removeprefix("baseline.") for key in metrics}
    history = json.loads((folder / "aat_metrics_history.json").read_text())
    assert len(history["metric"]) == len(finished.trajectory)

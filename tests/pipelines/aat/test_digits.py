"""The digits job at full length: what the README promises. Takes a minute a seed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.projects import Project


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_default_job_is_small_and_fast_within_one_point(seed: int, project: Project) -> None:
    full: dict[str, Any] = {
        "digits.baseline.num_epochs": 30,
        "aat.budget.max_drop": 0.01,
        "aat.search.maximal_total_epochs": 50,
        "aat.second_stage.search.maximal_total_epochs": 10,
        "aat.compression.round_to": 4,
        "aat.export.latency_seconds": 5.0,
        "aat.export.objective": "bytes",
        "aat.second_stage.skip_without_gain": "true",
    }
    project.run(**full, **{"digits.baseline.seed": seed, "aat.seed": seed})
    summary = project.summary
    baseline, compressed = summary["baseline"], summary["compressed"]
    assert baseline["validation"] >= 0.985
    assert summary["outcome"] in ("within_budget", "certified")
    assert compressed["validation"] >= baseline["validation"] - 0.01 - 1e-9
    assert summary["epochs"]["used"] <= 60
    assert compressed["parameters"] <= baseline["parameters"] / 60
    assert compressed["onnx_bytes"] <= baseline["onnx_bytes"] / 30
    assert compressed["macs"] <= baseline["macs"] / 10
    for size, share in (("1", 0.45), ("64", 0.18)):
        # Int8 is slower than the cut model on some processors.
        assert summary["candidates"][0]["latency_fastest_ms"][size] <= share * baseline["latency_fastest_ms"][size]
    assert summary["agreement"]["onnx"]["same_labels"] >= 0.995

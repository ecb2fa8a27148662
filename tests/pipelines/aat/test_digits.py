"""The digits job at full length: what the README promises. Takes a minute a seed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.projects import Project


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_reach_a_rate_of_097_within_one_point(seed: int, project: Project) -> None:
    full: dict[str, Any] = {
        "digits.baseline.num_epochs": 30,
        "aat.budget.max_drop": 0.01,
        "aat.search.maximal_total_epochs": 60,
    }
    project.run(**full, **{"digits.baseline.seed": seed, "aat.seed": seed})
    summary = project.summary
    assert summary["baseline"]["validation"] >= 0.985
    assert summary["outcome"] in ("within_budget", "certified")
    assert summary["compressed"]["validation"] >= summary["baseline"]["validation"] - 0.01 - 1e-9
    assert summary["epochs"]["used"] <= 60
    rate = summary["compressed"]["rate"]
    assert rate["achieved"] >= 0.97
    assert rate["exported"] == rate["achieved"]

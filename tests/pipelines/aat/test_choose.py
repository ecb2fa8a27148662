"""Another budget is read off a finished search, without training; through `kedro` commands."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.projects import Project, small_parameters


def choose(project: Project, *arguments: str) -> str:
    command = project.kedro("aat", "choose", *arguments, "--params", small_parameters({}))
    assert command.wait() == 0, command.output
    return command.output


def test_another_budget_is_read_off_the_frontier(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    before = project.summary
    table = choose(project)
    rate = before["stages"][0]["rate"]["achieved"]
    assert f"{rate:.4f}" in table

    rows = project.trajectory.query("achieved_rate > 0 and stage == 1").sort_values("metric")
    smallest = before["baseline"]["validation"] - rows["metric"].iloc[-1]  # the smallest drop that any model had
    drop = math.ceil(1e6 * max(smallest, 0)) / 1e6  # rounded down, it would leave that model out
    output = choose(project, "--max-drop", f"{drop:.6f}")
    chosen = project.summary
    assert "epoch 1 " not in output  # nothing was trained
    assert chosen["budget"]["drop"] == pytest.approx(drop)
    assert chosen["compressed"]["validation"] >= chosen["budget"]["lowest_tolerated"]
    assert 0 < chosen["compressed"]["rate"]["achieved"] < rate
    # What is chosen after the test split was read has no certificate on it.
    assert chosen["outcome"] == "within_budget"
    assert "for a different model and tolerated drop" in chosen["certificate"]["words"]

    # The model that was certified is still there. It came from the first stage, so the second can be left out.
    assert before["delivered"] == "filter_pruning"
    project.run("--from-nodes", "evaluate_baseline", **{"aat.second_stage": "null"})
    assert project.summary["certificate"] == before["certificate"]


def test_choosing_without_a_run_says_so(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    output = project.fail("--from-nodes", "finetune_adaptively", **{"aat.choose.max_drop": 0.3, "aat.seed": 8})
    assert "There is no run with these settings to choose from" in " ".join(output.split())

"""Another budget is read off a finished search, without training; through real `kedro` commands."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.projects import SMALL, Project


def choose(project: Project, *arguments: str) -> str:
    parameters = ",".join(f"{key}={value}" for key, value in SMALL.items())
    command = [sys.executable, "-m", "kedro", "aat", "choose", *arguments, "--params", parameters]
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_another_budget_is_read_off_the_frontier(finished: Project, tmp_path: Path) -> None:
    project = Project(tmp_path, like=finished)
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

    project.run("--from-nodes", "evaluate_baseline")  # the model that was certified is still there
    assert project.summary["certificate"] == before["certificate"]


def test_choosing_without_a_run_says_so(finished: Project, tmp_path: Path) -> None:
    project = Project(tmp_path, like=finished)
    output = project.fail("--from-nodes", "finetune_adaptively", **{"aat.choose.max_drop": 0.3, "aat.seed": 8})
    assert "There is no run with these settings to choose from" in " ".join(output.split())

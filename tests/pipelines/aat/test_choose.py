"""Another budget is read off a finished search, without training; through `kedro` commands."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.projects import UNREHEARSED, Project, small_parameters


def choose(project: Project, *arguments: str) -> str:
    command = project.kedro("aat", "choose", *arguments, "--params", small_parameters({}))
    assert command.wait() == 0, command.output
    return command.output


def chosen_summary(project: Project) -> dict[str, Any]:
    text = (project.folder / "data/08_reporting/chosen/aat_summary.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def test_another_budget_is_read_off_the_frontier(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    before = project.summary
    table = choose(project)
    rate = before["stages"][0]["rate"]["achieved"]
    assert f"{rate:.4f}" in table
    assert "2: quantization" in table

    rows = project.trajectory.query("achieved_rate > 0 and stage == 1").sort_values("metric")
    smallest = before["baseline"]["validation"] - rows["metric"].iloc[-1]  # the smallest drop that any model had
    drop = math.ceil(1e6 * max(smallest, 0)) / 1e6  # rounded down, it would leave that model out
    files = {path: path.read_bytes() for path in project.models.glob("compressed_model*") if path.is_file()}
    output = choose(project, "--max-drop", f"{drop:.6f}")
    chosen = chosen_summary(project)
    assert "epoch 1 " not in output  # nothing was trained
    assert chosen["budget"]["drop"] == pytest.approx(drop)
    assert chosen["compressed"]["validation"] >= chosen["budget"]["lowest_tolerated"]
    assert chosen["certificate"]["is_certified"] is False
    words = " ".join(output.split())
    assert "Lost: " in words
    assert f"`kedro aat choose --max-drop {drop:.6g} --confirm --params " in words

    # What is delivered stays until the choice is confirmed, and its test split stays unread.
    assert project.summary == before
    assert files == {path: path.read_bytes() for path in files}
    ledger = "data/07_model_output/certificate_ledger.json"
    assert (project.folder / ledger).read_text() == (finished.folder / ledger).read_text()
    written = (project.models / "chosen" / "compressed_model.onnx").read_bytes()

    choose(project, "--confirm")
    assert not (project.models / "chosen").exists()
    assert (project.models / "compressed_model.onnx").read_bytes() == written
    assert project.summary["delivered_id"] == chosen["delivered_id"]
    assert project.summary["budget"]["drop"] == pytest.approx(drop)
    # What is chosen after the test split was read has no certificate on it.
    assert project.summary["outcome"] == "within_budget"
    assert "for a different model and tolerated drop" in project.summary["certificate"]["words"]

    # The model that was certified is still there. It came from the first stage, so the second can be left out.
    assert before["delivered"] == "filter_pruning"
    project.run("--from-nodes", "evaluate_baseline", **UNREHEARSED, **{"aat.second_stage": "null"})
    assert project.summary["certificate"] == before["certificate"]


@pytest.mark.slow  # its small twin is in `tests/delivery/test_choosing.py`
def test_a_larger_budget_never_gives_a_larger_file(finished: Project, tmp_path: Path) -> None:
    """The objective of the small job is MACs; int8 of the second stage is among the models."""
    project = finished.copy(tmp_path)
    delivered = project.summary
    macs = []
    for drop in (0.05, 0.08, 0.5):
        choose(project, "--max-drop", str(drop))
        chosen = chosen_summary(project)
        assert chosen["compressed"]["validation"] >= chosen["budget"]["lowest_tolerated"]
        macs.append(chosen["compressed"]["macs"])
    assert macs == sorted(macs, reverse=True)
    assert macs[0] <= delivered["compressed"]["macs"]  # of the same budget


def test_choosing_without_a_run_says_so(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    output = project.fail("--from-nodes", "finetune_adaptively", **{"aat.choose.max_drop": 0.3, "aat.seed": 8})
    assert "There is no run with these settings" in " ".join(output.split())
    assert "There is no choice to confirm" in " ".join(confirm_without_a_choice(project).split())


def confirm_without_a_choice(project: Project) -> str:
    command = project.kedro("aat", "choose", "--confirm", "--params", small_parameters({}))
    assert command.wait() == 1, command.output
    return command.output

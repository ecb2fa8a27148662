"""`kedro aat runs`, as commands in a project whose checkpoint store has three runs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.checkpoints.stored import stored_runs
from tests.projects import Project
from tests.training.checkpoints.small_search import search


@pytest.fixture
def names(project: Project) -> list[str]:
    """Names of the runs, the last used first; the oldest is delivered."""
    root = project.models / "checkpoints"
    for time, batch_size in enumerate((8, 4, 2)):
        for file in search(root, epochs=2, batch_size=batch_size).folder.rglob("state.json"):
            os.utime(file, (1e9 + time, 1e9 + time))
    found = [run.name for run in stored_runs(CheckpointStore(root))]
    result = project.folder / "data/07_model_output/search_result.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({"run": found[-1]}))
    return found


def runs(project: Project, *arguments: str, fails: bool = False) -> str:
    command = project.kedro("aat", "runs", *arguments)
    assert (command.wait() != 0) == fails, command.output
    return re.sub(r"\s+", " ", command.output)


def test_runs_are_listed_compared_and_removed(project: Project, names: list[str]) -> None:
    first, second, delivered = names
    store = CheckpointStore(project.models / "checkpoints")
    listed = runs(project, "list")
    assert [listed.index(name) for name in names] == sorted(listed.index(name) for name in names)
    best = stored_runs(store)[0].best
    assert best is not None
    assert f"1: magnitude_sparsity finished 2 {best.achieved_rate:.4f} {best.metric:.4f}" in listed
    assert listed.count("finished, delivered") == 1

    assert "training.batch_size: 2" in runs(project, "show", first[:8])
    assert "training.batch_size (4, now 2)" in runs(project, "compare", second, first)

    assert f"({delivered}) made what" in runs(project, "remove", first, delivered, "--yes", fails=True)
    assert len(stored_runs(store)) == 3
    assert "Removed 1 run" in runs(project, "prune", "--keep", "1", "--yes")
    assert [run.name for run in stored_runs(store)] == [first, delivered]
    runs(project, "remove", delivered, "--force", "--yes")
    assert [run.name for run in stored_runs(store)] == [first]


def test_a_run_that_found_nothing_delivered_nothing(project: Project) -> None:
    name = search(project.models / "checkpoints", epochs=1, max_drop=0.0, baseline=2.0).folder.name
    result = project.folder / "data/07_model_output/search_result.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({"run": name}))
    listed = runs(project, "list")
    assert f"{name} " in listed
    assert "finished 1 - -" in listed
    assert "delivered" not in listed


def test_without_an_answer_nothing_is_removed(project: Project, names: list[str]) -> None:
    runs(project, "prune", "--keep", "0", fails=True)
    assert len(stored_runs(CheckpointStore(project.models / "checkpoints"))) == len(names)


def test_a_store_without_runs(tmp_path: Path) -> None:
    assert stored_runs(CheckpointStore(tmp_path / "none")) == []

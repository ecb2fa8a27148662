"""A run that is killed goes on where it stood when the same command is given again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.forks import Command
from tests.projects import Project

LOOP = ("--from-nodes", "evaluate_baseline", "--to-nodes", "finetune_adaptively")


def _allow(num_epochs: int) -> dict[str, int]:
    return {"aat.search.maximal_total_epochs": num_epochs}


def _copy(finished: Project, folder: Path) -> Project:
    copy = finished.copy(folder)
    shutil.rmtree(copy.models / "checkpoints")
    return copy


def _wait_for_checkpoint(project: Project, number: int, command: Command) -> None:
    while command.poll(timeout=0.005) is None:
        if list((project.models / "checkpoints").glob(f"*/checkpoint-{number:06d}")):
            return
    raise AssertionError(f"checkpoint {number} was never written:\n{command.output}")


def _without_times(trajectory: pd.DataFrame) -> pd.DataFrame:
    return trajectory.drop(columns="seconds")


@pytest.mark.parametrize("num_epochs", [6, pytest.param(14, marks=pytest.mark.slow)])
def test_sigkill_at_random_epochs_changes_nothing(num_epochs: int, finished: Project, tmp_path: Path) -> None:
    uninterrupted = _copy(finished, tmp_path / "uninterrupted")
    uninterrupted.run(*LOOP, **_allow(num_epochs))

    killed = _copy(finished, tmp_path / "killed")
    kills = sorted(random.sample(range(1, num_epochs), 2))
    print("killed after the checkpoints", kills)  # shown if the test fails
    for number in kills:
        command = killed.start(*LOOP, **_allow(num_epochs))
        _wait_for_checkpoint(killed, number, command)
        time.sleep(random.uniform(0, 0.2))  # anywhere in an epoch, or while the next checkpoint is written
        os.killpg(command.pid, signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL
    # It goes on in a process that shares nothing with the others, not even the order of its sets.
    output = killed.spawn(*LOOP, **_allow(num_epochs))

    assert "Continuing after epoch" in output
    pd.testing.assert_frame_equal(
        _without_times(killed.trajectory), _without_times(uninterrupted.trajectory), check_exact=True
    )
    one, other = (
        load_file(project.models / "fine_tuned_controller/model.safetensors") for project in (killed, uninterrupted)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_ctrl_c_says_how_to_go_on(finished: Project, tmp_path: Path) -> None:
    project = _copy(finished, tmp_path / "stopped")
    command = project.start("--from-nodes", "evaluate_baseline", **_allow(14))
    _wait_for_checkpoint(project, 3, command)
    os.kill(command.pid, signal.SIGINT)
    assert command.wait() > 0
    assert "Run the same command again to continue." in " ".join(command.output.split())
    assert "Running node: export_model" not in command.output


def test_export_that_is_killed_goes_on_with_what_is_finished(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "killed")
    (folder,) = (project.models / "checkpoints").glob("*/finished_steps")
    shutil.rmtree(folder)
    command = project.start("--from-nodes", "export_model")
    while not list(folder.glob("judgment-*.json")):
        assert command.poll(timeout=0.005) is None, command.output
    os.killpg(command.pid, signal.SIGKILL)
    command.wait()
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert not list(folder.glob("measurements-*"))

    assert "Finished steps are not repeated." in project.run("--from-nodes", "export_model")
    assert written.items() <= {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}.items()
    names = sorted(path.name.partition("-")[0] for path in folder.glob("*.json"))
    assert names == ["files"] * 3 + ["judgment"] * 2 + ["measurements"]
    for key in ("delivered", "certificate"):
        assert project.summary[key] == finished.summary[key]

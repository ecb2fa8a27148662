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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_signal_ends_the_run_with_one_sentence(number: int, finished: Project, tmp_path: Path) -> None:
    project = _copy(finished, tmp_path / "stopped")
    command = project.start("--from-nodes", "evaluate_baseline", **_allow(14))
    _wait_for_checkpoint(project, 3, command)
    os.kill(command.pid, number)
    assert command.wait() == 1
    output = " ".join(command.output.split())
    asked, _, end = output.rpartition("You can resume the pipeline run")
    assert ("is finished and saved. Press Ctrl-C again" in asked) == (number == signal.SIGINT)
    assert "Run the same command again to continue." in end  # below Kedro's advice
    assert "Traceback" not in output
    assert "Running node: export_model" not in output

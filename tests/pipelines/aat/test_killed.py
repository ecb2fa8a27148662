"""A run that is killed goes on where it stood when the same command is given again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from tests.projects import Project

EPOCHS = {"aat.search.maximal_total_epochs": 14}
LOOP = ("--from-nodes", "evaluate_baseline", "--to-nodes", "finetune_adaptively")


def _copy(finished: Project, folder: Path) -> Project:
    copy = Project(folder, like=finished)
    shutil.rmtree(copy.models / "checkpoints")
    return copy


def _wait_for_checkpoint(project: Project, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if list((project.models / "checkpoints").glob(f"*/checkpoint-{number:06d}")):
            return
        time.sleep(0.005)
    output, _ = process.communicate()
    raise AssertionError(f"checkpoint {number} was never written:\n{output}")


def _without_times(trajectory: pd.DataFrame) -> pd.DataFrame:
    return trajectory.drop(columns="seconds")


def test_sigkill_at_random_epochs_changes_nothing(finished: Project, tmp_path: Path) -> None:
    uninterrupted = _copy(finished, tmp_path / "uninterrupted")
    uninterrupted.run(*LOOP, **EPOCHS)

    killed = _copy(finished, tmp_path / "killed")
    kills = sorted(random.sample(range(1, 14), 2))
    print("killed after the checkpoints", kills)  # shown if the test fails
    for number in kills:
        process = killed.start(*LOOP, **EPOCHS)
        _wait_for_checkpoint(killed, number, process)
        time.sleep(random.uniform(0, 0.2))  # anywhere in an epoch, or while the next checkpoint is written
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    output = killed.run(*LOOP, **EPOCHS)

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
    process = project.start("--from-nodes", "evaluate_baseline", **EPOCHS)
    _wait_for_checkpoint(project, 3, process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Run the same command again to continue." in " ".join(output.split())
    assert "Running node: export_model" not in output

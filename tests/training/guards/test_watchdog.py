"""A step or a data loader that hangs ends the process, with the stacks of all threads."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from kedro_aat.training.guards.user_functions import calling
from kedro_aat.training.guards.watchdog import WatchedLoader
from tests.forks import ROOT, Command, Request
from tests.training.guards import hanging
from tests.training.training_run import TrainingRun


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_loader_that_hangs_ends_the_process(num_workers: int, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = Command(Request(hanging.validate, (num_workers,), tmp_path, environment, tmp_path / "output.txt"))
    assert command.wait(timeout=60) == 1
    assert "no step ended within 0.5 seconds (training.step_timeout_seconds)" in command.output
    assert "in validate" in command.output  # the stack of the main thread
    assert num_workers or "hanging.py" in command.output


def test_steps_that_end_in_time_are_left_alone() -> None:
    batches = []
    for batch in WatchedLoader(0.2, range(8), batch_size=2):
        batches.append(batch)
        time.sleep(0.06)
    time.sleep(0.25)
    assert len(batches) == 4


def test_iterator_that_a_function_keeps_is_watched_no_longer() -> None:
    def train() -> None: ...

    with calling(train, "train_epoch", "epoch 1"):
        kept = iter(WatchedLoader(0.05, range(8), batch_size=2))
        next(kept)
    time.sleep(0.2)  # the process would end
    next(kept)


def test_watched_training_is_the_same() -> None:
    usual, watched = TrainingRun(), TrainingRun(step_timeout_seconds=60)
    assert usual.train_epochs(2) == watched.train_epochs(2)
    assert all(torch.equal(tensor, watched.weights[name]) for name, tensor in usual.weights.items())

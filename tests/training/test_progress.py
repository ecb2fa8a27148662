"""What a search says while it runs, and where it continues."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat import create_accuracy_aware_training_loop, create_compressed_model, messages
from kedro_aat.errors import UserFunctionError

CONFIG = {
    "compression": {"algorithm": "magnitude_sparsity"},
    "accuracy_aware_training": {
        "mode": "adaptive_compression_level",
        "params": {
            "maximal_absolute_accuracy_degradation": 0.1,
            "maximal_total_epochs": 4,
            "search": {"kind": "frontier"},
        },
    },
}


class Training:
    """Trains nothing.

    Args:
        seconds: Duration of an epoch.
        fails_in: Number of epochs before the one that fails; None if none fails.
    """

    def __init__(self, *, seconds: float = 0.0, fails_in: int | None = None) -> None:
        self._seconds, self._fails_in = seconds, fails_in

    def __call__(self, controller: Any, model: nn.Module, *, epoch: int = 0, **more: Any) -> float:
        for _ in range(3):
            controller.scheduler.step()
        time.sleep(self._seconds)
        if epoch == self._fails_in:
            raise RuntimeError("the machine is gone")
        return 0.5


def validate(model: nn.Module) -> float:
    return 0.85


def run(folder: Path, training: Training, **more: Any) -> None:
    torch.manual_seed(0)
    controller, model = create_compressed_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), CONFIG)
    create_accuracy_aware_training_loop(CONFIG, controller, 0.9, **more).run(model, training, validate, log_dir=folder)


@pytest.fixture(autouse=True)
def shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kedro_aat")


def test_one_long_epoch_says_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "SECONDS_OF_SILENCE", 0.1)
    run(tmp_path, Training(seconds=0.25))
    assert any("s so far: the search; training of epoch 1, 3 " in line for line in caplog.messages)
    assert any("training of epoch 2, 3 of 3 steps" in line for line in caplog.messages)  # the first one counted them


def test_search_without_progress_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "SECONDS_OF_SILENCE", 0.1)
    run(tmp_path, Training(seconds=0.25), verbose=False)
    assert not [line for line in caplog.messages if "so far" in line]


def test_run_that_continues_says_what_is_best_so_far(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserFunctionError, match="the machine is gone"):
        run(tmp_path, Training(fails_in=2))
    caplog.clear()
    run(tmp_path, Training())
    continuing, so_far, *others = caplog.messages
    assert continuing.startswith("Continuing after epoch 2 of the run in ")
    assert re.fullmatch(
        r"So far: 2 of 4 epochs; best within budget: rate 0\.\d+, \S+ times smaller, metric 0.8500", so_far
    )
    assert [line.split("  ")[0] for line in others if line.startswith("epoch")] == ["epoch 3", "epoch 4"]

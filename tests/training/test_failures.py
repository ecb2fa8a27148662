"""A search in which something fails loses nothing that was within the budget before."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat import Outcome
from kedro_aat.errors import UserFunctionError
from tests.training.checkpoints.small_search import Ended, search

SWITCH = "KEDRO_AAT_TEST_EPOCHS_UNTIL_FAILURE"
LOSS = {"class_path": f"{__name__}.FailingLoss"}


class FailingLoss(nn.CrossEntropyLoss):
    """A loss that fails after some training batches, which a variable of the environment counts down."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if SWITCH in os.environ and torch.is_grad_enabled():
            left = int(os.environ[SWITCH]) - 1
            os.environ[SWITCH] = str(left)
            if left < 0:
                raise OSError("the share is not mounted")
        return super().forward(outputs, targets)


def failing_loss(root: Path, monkeypatch: pytest.MonkeyPatch, epochs: int | None, **more: Any) -> Ended:
    monkeypatch.delenv(SWITCH, raising=False)
    if epochs is not None:
        monkeypatch.setenv(SWITCH, str(6 * epochs))  # 48 examples in batches of 8
    return search(root, loss=LOSS, **more)


def test_what_is_not_of_the_user_ends_the_search_early_with_the_best_so_far(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = search(tmp_path / "whole")
    ended = search(tmp_path / "parts", fail_after=4)
    best = ended.result.best
    assert best is not None
    assert ended.result.outcome is Outcome.WITHIN_BUDGET
    assert ended.result.reason.startswith(
        "The search ended early, because it failed after epoch 4; the best model until then is returned. "
        "RuntimeError: stack. "
    )
    until_then = whole.trajectory[: len(ended.trajectory)]
    assert ended.trajectory == until_then
    within = [row for row in ended.result.history if row.margin >= 0 and row.metric is not None]
    assert best.achieved_rate == max(row.achieved_rate for row in within) > 0
    assert ended.result.achieved_rate == pytest.approx(best.achieved_rate)
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING and record.exc_info)
    assert "ended early" in warning.getMessage()
    continued = search(tmp_path / "parts")  # the same command goes on, as if nothing had failed
    assert continued.trajectory == whole.trajectory
    torch.testing.assert_close(continued.model, whole.model, rtol=0, atol=0)


def test_what_fails_before_anything_is_within_the_budget_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stack"):
        search(tmp_path, fail_after=0, baseline=1.1, max_drop=0.01)


def test_the_users_error_ends_the_run_and_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = failing_loss(tmp_path / "whole", monkeypatch, None)
    with pytest.raises(UserFunctionError) as raised:
        failing_loss(tmp_path / "parts", monkeypatch, 4)
    message = str(raised.value)
    rates = [row.achieved_rate for row in whole.result.history if row.epoch <= 4 and row.margin >= 0]
    assert message.startswith("Epoch 5: train_epoch (")
    assert "OSError: the share is not mounted" in message
    assert f"The best model so far, which keeps the budget at a rate of {max(rates):.4f} with a metric of" in message
    assert "is kept, and the same call with the same code continues after epoch 4." in message
    assert "`kedro aat deliver` delivers the best model so far" in message
    assert isinstance(raised.value.__cause__, OSError)
    continued = failing_loss(tmp_path / "parts", monkeypatch, None)
    assert continued.trajectory == whole.trajectory


def test_the_users_error_before_anything_is_within_the_budget_promises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserFunctionError) as raised:
        failing_loss(tmp_path, monkeypatch, 0)
    assert "best model so far" not in str(raised.value)
    assert "The same call with the same code continues after epoch 0." in str(raised.value)


def test_the_users_error_in_a_later_search_ends_it_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = failing_loss(tmp_path, monkeypatch, 4, is_later=True)
    assert ended.result.outcome is Outcome.WITHIN_BUDGET
    assert "UserFunctionError: Epoch 5: train_epoch" in ended.result.reason
    with pytest.raises(UserFunctionError):  # nothing found, so the model of the search before is delivered
        failing_loss(tmp_path / "other", monkeypatch, 0, is_later=True)


def test_a_mistake_or_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kedro_aat.training.progress.LoopProgress.show", full)
    with pytest.raises(OSError, match="No space left"):
        search(tmp_path)

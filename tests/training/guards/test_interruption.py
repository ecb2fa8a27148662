"""Ctrl-C is answered at once and ends a run after the epoch; a second one, and SIGTERM, end it at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedro_aat import Outcome
from kedro_aat.training.guards.interruption import interruptible
from tests.scripted import ScriptedModel
from tests.training.scripted_loop import ScriptedLoop


def interrupting(subject: ScriptedLoop, *signals: int, in_epoch: int = 2) -> Callable[..., float | None]:
    """The subject's training function, during one of whose calls (counted from 0) signals arrive."""

    def train(controller: Any, model: ScriptedModel, epoch: int, **more: Any) -> float | None:
        if epoch == in_epoch:
            for number in signals:
                os.kill(os.getpid(), number)
        return subject.train(controller, model, epoch, **more)

    return train


@pytest.mark.parametrize(
    ("signals", "finished"),
    [([signal.SIGINT], 3), ([signal.SIGINT, signal.SIGINT], 2), ([signal.SIGTERM], 2)],
    ids=["Ctrl-C", "Ctrl-C twice", "SIGTERM"],
)
def test_first_ctrl_c_lets_the_epoch_end(
    signals: list[int], finished: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subject = ScriptedLoop()
    validations: list[int] = []

    def validate(model: ScriptedModel, epoch: int) -> float:
        validations.append(epoch)
        return subject.validate(model, epoch)

    subject.run(tmp_path, train=interrupting(subject, *signals), validate=validate)
    assert subject.loop.outcome is Outcome.INTERRUPTED
    assert [record.epoch for record in subject.trained] == list(range(1, finished + 1))
    assert validations[-1] == finished  # the model that is returned is not validated again
    told = [record.getMessage() for record in caplog.records if "Press Ctrl-C again" in record.getMessage()]
    assert (
        told
        == ["Stopping when epoch 3 is finished and saved. Press Ctrl-C again to stop at the next training step."][
            : len(signals) if signals[0] == signal.SIGINT else 0
        ][:1]
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_epoch_ends_the_run_too(tmp_path: Path) -> None:
    whole = ScriptedLoop()
    whole.run(tmp_path / "whole")
    last = whole.trained[-1].epoch - 1
    subject = ScriptedLoop()
    subject.run(tmp_path / "stopped", train=interrupting(subject, signal.SIGINT, in_epoch=last))
    assert subject.loop.outcome is Outcome.INTERRUPTED
    assert len(subject.trained) == len(whole.trained)


def test_user_is_told_before_the_work_ends(caplog: pytest.LogCaptureFixture) -> None:
    with interruptible() as interruption:
        interruption.work = "a long step"
        os.kill(os.getpid(), signal.SIGINT)
        while "a long step is finished" not in caplog.text:
            time.sleep(0.001)
    assert interruption.is_requested


def test_other_handler_of_ctrl_c_stays() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as interruption:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert not interruption.is_requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_worker_of_a_data_loader_goes_on() -> None:
    with interruptible() as interruption:
        if (worker := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
        assert os.waitpid(worker, 0)[1] == 0
    assert not interruption.is_requested

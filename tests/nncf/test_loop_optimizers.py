"""Optimizers and learning rates in the loops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from kedro_aat import (
    Outcome,
)
from tests.scripted import ScriptedModel
from tests.training.scripted_loop import (
    PATIENT,
    ScriptedLoop,
)


def test_no_optimizer_is_required(tmp_path: Path) -> None:
    subject = ScriptedLoop()
    received: list[tuple[Any, Any]] = []

    def train(controller: Any, model: ScriptedModel, epoch: int, optimizer: Any, lr_scheduler: Any) -> None:
        received.append((optimizer, lr_scheduler))
        model.state[1:] += 1

    subject.loop.run(subject.model, train, subject.validate, log_dir=tmp_path)
    assert set(received) == {(None, None)}
    assert subject.loop.outcome is Outcome.WITHIN_BUDGET
    assert {record.learning_rate for record in subject.trained} == {None}
    assert {record.loss for record in subject.trained} == {None}


def test_optimizers_are_created_at_every_change_of_rate(tmp_path: Path) -> None:
    subject = ScriptedLoop()
    subject.run(tmp_path)
    num_rates = len({record.requested_rate for record in subject.trained})
    assert subject.num_configured == 2 + num_rates  # also at the start of the run and of the search


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda optimizer: schedulers.StepLR(optimizer, 1, gamma=0.5),
    "LambdaLR": lambda optimizer: schedulers.LambdaLR(optimizer, lambda epoch: 0.8**epoch),
    "MultiplicativeLR": lambda optimizer: schedulers.MultiplicativeLR(optimizer, lambda epoch: 0.8),
    "CosineAnnealingLR": lambda optimizer: schedulers.CosineAnnealingLR(optimizer, 10),
    "CosineAnnealingWarmRestarts": lambda optimizer: schedulers.CosineAnnealingWarmRestarts(optimizer, 3),
    "PolynomialLR": lambda optimizer: schedulers.PolynomialLR(optimizer, 10),
    "SequentialLR": lambda optimizer: schedulers.SequentialLR(
        optimizer,
        [schedulers.LinearLR(optimizer, 0.1, 1.0, 2), schedulers.ExponentialLR(optimizer, 0.9)],
        milestones=[2],
    ),
    "ChainedScheduler": lambda optimizer: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(optimizer, 0.5, 2), schedulers.ExponentialLR(optimizer, 0.9)]
    ),
    "OneCycleLR": lambda optimizer: schedulers.OneCycleLR(optimizer, max_lr=1.0, total_steps=12),
    "CyclicLR": lambda optimizer: schedulers.CyclicLR(optimizer, 0.1, 1.0, step_size_up=2, cycle_momentum=False),
}


@pytest.mark.filterwarnings("ignore:.*deprecat.*:UserWarning", "ignore:.*lr_scheduler.step.*:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_learning_rate_is_that_of_the_scheduler_times_the_factor_of_the_search(name: str, tmp_path: Path) -> None:
    make = SCHEDULERS[name]
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = make(alone)
    expected: list[float] = []
    for _ in range(PATIENT["patience_epochs"]):
        expected.append(alone.param_groups[0]["lr"])
        alone.step()
        scheduler.step()

    subject = ScriptedLoop(params=PATIENT)

    def configure() -> tuple[Any, Any]:
        optimizer, _ = subject.sgd()
        return optimizer, make(optimizer)

    subject.run(tmp_path, configure=configure)
    records = subject.trained
    assert len({record.lr_scale for record in records}) >= 3
    num_at_rate = 0
    for before, record, (rate,) in zip([None, *records], records, subject.learning_rates, strict=False):
        is_new_rate = before is None or record.requested_rate != before.requested_rate
        num_at_rate = 0 if is_new_rate else num_at_rate + 1
        assert rate == pytest.approx(expected[num_at_rate] * record.lr_scale)
        assert record.learning_rate == rate


def test_lists_of_optimizers_and_schedulers(tmp_path: Path) -> None:
    subject = ScriptedLoop(params=PATIENT)

    def configure() -> tuple[Any, Any]:
        first = torch.optim.SGD([subject.model.weight], lr=1.0)
        second = torch.optim.SGD([subject.model.weight], lr=0.1)
        return [first, second], [schedulers.StepLR(first, 1, 0.5), schedulers.StepLR(second, 1, 0.1)]

    subject.run(tmp_path, configure=configure)
    assert subject.loop.outcome is Outcome.WITHIN_BUDGET
    num_at_rate = 0
    for before, record, rates in zip([None, *subject.trained], subject.trained, subject.learning_rates, strict=False):
        is_new_rate = before is None or record.requested_rate != before.requested_rate
        num_at_rate = 0 if is_new_rate else num_at_rate + 1
        expected = [0.5**num_at_rate * record.lr_scale, 0.1 * 0.1**num_at_rate * record.lr_scale]
        assert rates == pytest.approx(expected)
    assert max(record.lr_scale for record in subject.trained) > min(record.lr_scale for record in subject.trained)


def test_reduce_on_plateau_gets_the_current_metric(tmp_path: Path) -> None:
    metrics_received: list[float] = []

    class Noting(schedulers.ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
            metrics_received.append(float(metrics))
            super().step(metrics, epoch)

    subject = ScriptedLoop(params=PATIENT | {"maximal_total_epochs": 9})
    # A metric that falls from epoch to epoch, so the current one is never the best.
    metrics = iter(0.5 - 0.01 * n for n in range(100))

    def configure() -> tuple[Any, Any]:
        optimizer, _ = subject.sgd()
        return optimizer, Noting(optimizer, mode="max", factor=0.1, patience=1)

    subject.run(tmp_path, validate=lambda model: next(metrics), configure=configure)
    records = subject.trained
    assert metrics_received == [record.metric for record in records]
    # The first epoch of a rate is the best; the third is the second worse one in a row.
    (rate,) = {record.requested_rate for record in records[1:5]}
    at_rate = [record for record in records if record.requested_rate == rate]
    assert [record.learning_rate for record in at_rate] == pytest.approx([1.0, 1.0, 1.0, 0.1])


def test_the_users_own_update_of_the_learning_rate(tmp_path: Path) -> None:
    subject = ScriptedLoop()
    calls: list[tuple[Any, int, float, float | None]] = []
    made: list[Any] = []

    def configure() -> tuple[Any, Any]:
        optimizer, _ = subject.sgd()
        made.append(schedulers.StepLR(optimizer, 1, 0.5))
        return optimizer, made[-1]

    def update(lr_scheduler: Any, epoch: int, metric: float, loss: float | None) -> None:
        assert lr_scheduler is made[-1]
        calls.append((lr_scheduler, epoch, metric, loss))

    subject.run(tmp_path, configure=configure, update_learning_rate_fn=update)
    # Epochs are counted from the last change of the rate.
    assert [epoch for _, epoch, _, _ in calls] == [1, 1, 1, 1, 2, 1, 2, 1]
    assert [metric for _, _, metric, _ in calls] == [record.metric for record in subject.trained]
    assert [loss for *_, loss in calls] == [1.0 / epoch for epoch in range(1, 9)]
    # The loop did not step the scheduler in addition.
    assert {rate for (rate,) in subject.learning_rates} == {record.lr_scale for record in subject.trained}


def test_learning_rates_are_not_updated_if_lr_updates_needed_is_false(tmp_path: Path) -> None:
    subject = ScriptedLoop(lr_updates_needed=False, params=PATIENT)
    calls: list[Any] = []

    def configure() -> tuple[Any, Any]:
        optimizer, _ = subject.sgd()
        return optimizer, schedulers.StepLR(optimizer, 1, 0.5)

    subject.run(tmp_path, configure=configure, update_learning_rate_fn=lambda *args: calls.append(args))
    assert not calls
    assert [rate for (rate,) in subject.learning_rates] == [record.lr_scale for record in subject.trained]

"""An epoch whose loss or metric is NaN or infinite has failed: the search is told, and goes on from where it began."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kedro_aat import AdaptiveCompressionTrainingLoop, EarlyExitCompressionTrainingLoop, Outcome
from kedro_aat.errors import MetricError
from kedro_aat.training.records import EpochRecord
from tests.scripted import ScriptedController, ScriptedModel

EPOCHS = 16
KINDS = ["frontier", "uniform_decrease", "interpolate"]


class Subject:
    """A model that keeps its budget at every rate, whose training fails above a rate.

    Args:
        limit: The rate.
        at: Whether the loss or the metric fails.
        kind: Kind of the search policy; `early_exit` for the other loop.
        interrupted_at: Number of the training call that is interrupted; None for none.
    """

    def __init__(
        self, limit: float, *, at: str = "loss", kind: str = "frontier", interrupted_at: int | None = None
    ) -> None:
        self.model = ScriptedModel(0.0)
        self.limit, self.at, self.interrupted_at = limit, at, interrupted_at
        self.num_trained = 0
        controller: Any = ScriptedController(self.model)
        params: dict[str, Any] = {"maximal_absolute_accuracy_degradation": 0.01, "maximal_total_epochs": EPOCHS}
        if kind == "frontier":
            params["search"] = {"kind": kind, "maximal_total_epochs": EPOCHS}
        elif kind != "early_exit":
            params["search"] = {"kind": kind, "maximal_total_epochs": EPOCHS, "initial_training_phase_epochs": 1}
        mode = "early_exit" if kind == "early_exit" else "adaptive_compression_level"
        loop = EarlyExitCompressionTrainingLoop if kind == "early_exit" else AdaptiveCompressionTrainingLoop
        config = {"accuracy_aware_training": {"mode": mode, "params": params}}
        self.loop = loop(config, controller, 0.9, verbose=False)

    def train(self, controller: Any, model: ScriptedModel, epoch: int, optimizer: Any, lr_scheduler: Any) -> float:
        self.num_trained += 1
        model.weight.grad = torch.randn(1)
        optimizer.step()
        if self.num_trained == self.interrupted_at:
            raise KeyboardInterrupt
        if self.at == "loss" and self.fails():
            model.weight.data.fill_(math.nan)
            return math.nan
        return 1.0

    def validate(self, model: ScriptedModel, epoch: int) -> float:
        assert not model.weight.isnan().any()
        return math.inf if self.at == "metric" and epoch and self.fails() else 0.9

    def fails(self) -> bool:
        return float(self.model.state[0]) > self.limit

    def run(self, folder: Path) -> list[EpochRecord]:
        def configure() -> tuple[torch.optim.Optimizer, None]:
            return torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9), None

        # Functions that every subject shares, since their source identifies the run.
        self.loop.run(self.model, self.train, self.validate, configure, log_dir=folder)
        return self.loop.history


@pytest.mark.parametrize("at", ["loss", "metric"])
@pytest.mark.parametrize("kind", KINDS)
def test_search_returns_the_best_rate_that_did_not_fail(kind: str, at: str, tmp_path: Path) -> None:
    subject = Subject(0.45, at=at, kind=kind)
    history = subject.run(tmp_path)
    failed = [row for row in history if row.failed]
    assert failed
    assert all(row.requested_rate > 0.45 and row.margin < 0 for row in failed)
    assert subject.loop.outcome is Outcome.WITHIN_BUDGET
    assert 0.3 < subject.loop.statistics.compression_rate <= 0.45
    assert not subject.model.weight.isnan().any()
    for row, following in itertools.pairwise(history):
        other_lr = kind == "frontier" and following.lr_scale != row.lr_scale  # which may have been the reason
        assert not row.failed or following.requested_rate < row.requested_rate or other_lr


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_search_with_failed_epochs_continues_as_it_would_have(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Subject(0.45, kind=kind)
    expected = whole.run(tmp_path / "whole")
    first_failed = next(row.epoch for row in expected if row.failed)
    torch.manual_seed(0)
    Subject(0.45, kind=kind, interrupted_at=first_failed + 1).run(tmp_path / "parts")
    rest = Subject(0.45, kind=kind)
    history = rest.run(tmp_path / "parts")
    assert [vars(row) | {"seconds": 0} for row in history] == [vars(row) | {"seconds": 0} for row in expected]
    assert torch.equal(rest.model.weight, whole.model.weight)


def test_training_that_fails_at_rate_0_is_an_error_and_is_not_repeated_for_ever(tmp_path: Path) -> None:
    subject = Subject(-1.0)
    with pytest.raises(MetricError, match="3 epochs in a row at rate 0"):
        subject.run(tmp_path)
    assert not subject.model.weight.isnan().any()
    again = Subject(-1.0)
    with pytest.raises(MetricError, match=r"3 epochs in a row at rate 0[\s\S]*remove that folder"):
        again.run(tmp_path)
    assert again.num_trained == 0


def test_early_exit_lowers_the_learning_rate_and_ends_after_three_failures(tmp_path: Path) -> None:
    subject = Subject(-1.0, kind="early_exit")
    subject.model.state[0] = 0.5
    subject.validate = lambda model, epoch: 0.8  # type: ignore[method-assign]
    history = subject.run(tmp_path)
    assert subject.loop.outcome is Outcome.INFEASIBLE
    assert [row.lr_scale for row in history] == [1.0, 1.0, 0.5, 0.25]


def test_initial_model_without_a_finite_metric_is_an_error(tmp_path: Path) -> None:
    subject = Subject(1.0)
    subject.validate = lambda model, epoch: math.nan  # type: ignore[method-assign]
    with pytest.raises(MetricError, match="the metric of epoch 0 must be a finite number"):
        subject.run(tmp_path)


@pytest.mark.parametrize("value", ["0.9", None, [0.9]])
def test_metric_that_is_no_number_is_an_error(value: Any, tmp_path: Path) -> None:
    subject = Subject(1.0)
    metrics: Callable[[int], Any] = lambda epoch: value if epoch == 2 else 0.9  # noqa: E731
    subject.validate = lambda model, epoch: metrics(epoch)  # type: ignore[method-assign]
    with pytest.raises(MetricError, match="the metric of epoch 2 must be a number"):
        subject.run(tmp_path)

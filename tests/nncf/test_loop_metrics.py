"""Metrics in the loops: directions, types, and values that are not finite numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat import (
    Evaluation,
    TrainingRunner,
)
from kedro_aat.errors import MetricError
from tests.scripted import ScriptedModel
from tests.training.scripted_loop import (
    BASELINE,
    FORMULA,
    PARAMS,
    ScriptedLoop,
    assert_same_state,
    dump_state,
    state_of,
)


@pytest.mark.parametrize(
    ("baseline", "metric_of", "higher_is_better"),
    [
        (-BASELINE, lambda accuracy: -accuracy, False),
        (1 - BASELINE, lambda accuracy: 1 - accuracy, False),
        (BASELINE - 5, lambda accuracy: accuracy - 5, True),
        (BASELINE + 5, lambda accuracy: accuracy + 5, True),
    ],
    ids=["negative, lower is better", "an error", "negative, higher is better", "above 1"],
)
def test_metrics_of_either_direction_and_sign_give_the_same_search(
    baseline: float, metric_of: Callable[[float], float], higher_is_better: bool, tmp_path: Path
) -> None:
    usual = ScriptedLoop()
    usual.run(tmp_path / "usual")
    other = ScriptedLoop(baseline=baseline, params=PARAMS | {"higher_is_better": higher_is_better})
    best_seen: list[float | None] = []

    def dump(model: nn.Module, controller: Any, runner: TrainingRunner, save_dir: str) -> str:
        best_seen.append(runner.best_val_metric_value)
        return dump_state(model, controller, runner, save_dir)

    other.run(
        tmp_path / "other",
        validate=lambda model: metric_of(model.accuracy(FORMULA)),
        dump_checkpoint_fn=dump,
    )
    assert len(other.loop.history) == len(usual.loop.history)
    for record, expected in zip(other.loop.history, usual.loop.history, strict=True):
        assert record.requested_rate == expected.requested_rate
        assert expected.metric is not None
        assert record.metric == pytest.approx(metric_of(expected.metric), abs=1e-12)
        assert record.margin == pytest.approx(expected.margin, abs=1e-12)
        assert record.best_rate == expected.best_rate
    closing, usual_closing = other.loop.statistics, usual.loop.statistics
    assert closing.compression_rate == usual_closing.compression_rate
    assert closing.absolute_accuracy_degradation == pytest.approx(usual_closing.absolute_accuracy_degradation)
    assert closing.accuracy_budget == pytest.approx(usual_closing.accuracy_budget)
    # Two epochs at rate 0.5, of which the second is better than the first; the runner knows the better one.
    first, second = (n for n, record in enumerate(usual.loop.history) if record.requested_rate == 0.5)
    assert best_seen[first] == pytest.approx(other.loop.history[first].metric)
    assert best_seen[second] == pytest.approx(other.loop.history[second].metric)


def test_relative_degradation_is_positive_if_a_negative_metric_got_worse(tmp_path: Path) -> None:
    subject = ScriptedLoop(baseline=-1.0, params=PARAMS | {"higher_is_better": False})
    subject.run(tmp_path, validate=lambda model: -0.995)
    assert subject.loop.statistics.absolute_accuracy_degradation == pytest.approx(0.005)
    assert subject.loop.statistics.relative_accuracy_degradation == pytest.approx(0.5)


@pytest.mark.parametrize("at", ["metric", "loss"])
@pytest.mark.parametrize("mode", ["adaptive_compression_level", "early_exit"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("bad_epoch", [1, 2, 5])
def test_an_epoch_that_is_not_finite_fails_and_the_next_begins_in_the_state_before(
    bad_epoch: int, bad: float, mode: str, at: str, tmp_path: Path
) -> None:
    subject = ScriptedLoop(mode=mode, params=PARAMS | {"initial_training_phase_epochs": 2})
    weights: dict[int, float] = {}
    found: dict[int, float] = {}

    def train(controller: Any, model: ScriptedModel, epoch: int, **more: Any) -> float | None:
        found[epoch + 1] = model.weight.item()
        loss = subject.train(controller, model, epoch, **more)
        weights[epoch + 1] = model.weight.item()
        return bad if at == "loss" and epoch + 1 == bad_epoch else loss

    def validate(model: ScriptedModel, epoch: int) -> float:
        if at == "metric" and epoch == bad_epoch:
            return bad
        return subject.validate(model, epoch) if mode == "adaptive_compression_level" else 0.5

    subject.run(tmp_path, train=train, validate=validate)
    (failed,) = (record for record in subject.loop.history if record.failed)
    assert failed.epoch == bad_epoch
    assert failed.metric is None
    assert failed.margin < 0
    started = next((row.started_from for row in subject.trained if row.epoch == bad_epoch + 1), None)
    if started is None:  # it continues
        assert found[bad_epoch + 1] == found[bad_epoch] != weights[bad_epoch]


@pytest.mark.parametrize("answer", [None, "0.95", "good", {"accuracy": 0.95}, math.nan], ids=repr)
def test_a_validation_function_that_returns_no_number_fails_before_any_training(answer: Any, tmp_path: Path) -> None:
    subject = ScriptedLoop()
    original = state_of(subject.model)
    with pytest.raises(MetricError, match=r"the metric of epoch 0 must be a .*number"):
        subject.run(tmp_path, validate=lambda model, epoch: answer)
    assert subject.num_trained == 0
    assert_same_state(subject.model, original)


@pytest.mark.parametrize("form", [torch.tensor, lambda metric: Evaluation(metric, torch.ones(4)), Evaluation])
def test_types_of_a_metric(form: Callable[[float], Any], tmp_path: Path) -> None:
    usual, other = ScriptedLoop(), ScriptedLoop()
    usual.run(tmp_path / "usual")
    other.run(tmp_path / "other", validate=lambda model, epoch: form(round(model.accuracy(FORMULA), 3)))
    rates = [[record.requested_rate for record in subject.trained] for subject in (usual, other)]
    assert rates[0] == rates[1]
    assert all(isinstance(record.metric, float) for record in other.loop.history)


class _Validator:
    def __call__(self, model: ScriptedModel) -> float:
        return model.accuracy(FORMULA)


def _validate_with_more(model: ScriptedModel, formula: dict[str, Any], **more: Any) -> float:
    assert "epoch" in more
    return model.accuracy(formula)


def _validate_at_some_length(model: ScriptedModel, length: int = 3) -> float:
    assert length == 3
    return model.accuracy(FORMULA)


@pytest.mark.parametrize(
    "validate",
    [
        lambda model: model.accuracy(FORMULA),
        _Validator(),
        functools.partial(_validate_with_more, formula=FORMULA),
        _validate_at_some_length,
    ],
    ids=["lambda", "object", "partial", "other defaults"],
)
def test_a_validation_function_may_omit_the_epoch(validate: Callable[..., float], tmp_path: Path) -> None:
    usual, other = ScriptedLoop(), ScriptedLoop()
    for subject, function in ((usual, usual.validate), (other, validate)):
        torch.manual_seed(0)
        subject.run(tmp_path / str(subject is usual), validate=function)
    assert other.trajectory == usual.trajectory


def test_validation_counts_epochs_and_needs_no_gradients(tmp_path: Path) -> None:
    subject = ScriptedLoop()
    epochs: list[int] = []

    def validate(model: ScriptedModel, epoch: int) -> float:
        assert not torch.is_grad_enabled()
        epochs.append(epoch)
        return subject.validate(model, epoch)

    subject.run(tmp_path, validate=validate)
    # The original model, the same again before the search, then each epoch, and finally the returned model.
    assert epochs == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8]

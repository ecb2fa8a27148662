"""The expected cost of a search, which is reported before it begins."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.testing.training import small_net
from kedro_aat.training.cost import expected_cost, timed_epoch
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.random_state import rng_state
from kedro_aat.training.records import EpochRecord
from kedro_aat.training.runner import TrainingRunner
from kedro_aat.training.settings import TrainingSettings
from tests.nets import images
from tests.training.test_records import RECORD


def history_of(*epochs: tuple[float, bool]) -> list[EpochRecord]:
    """A trajectory whose epochs are pairs (seconds, trained)."""
    return [replace(RECORD, seconds=seconds, trained=trained) for seconds, trained in epochs]


def fail_if_called() -> float:
    raise AssertionError("an epoch was timed, although the history says how long one takes")


def test_epochs_and_time_of_a_new_search() -> None:
    cost = expected_cost([], 60, lambda: 2.5, None)
    assert (cost.epochs, cost.seconds_per_epoch, cost.seconds) == (60, 2.5, 150)
    assert str(cost) == "2.5 s per epoch: up to 60 epochs take about 2 min"


def test_seconds_per_epoch_come_from_the_history() -> None:
    history = history_of((9, False), (1, True), (3, True))
    cost = expected_cost(history, 10, fail_if_called, None)
    assert (cost.epochs, cost.seconds_per_epoch, cost.seconds) == (10, 2, 16)


@pytest.mark.parametrize(("limit", "epochs"), [(100.0, 10), (13.0, 4), (9.5, 2), (1.0, 2)])
def test_time_limit_allows_fewer_epochs(limit: float, epochs: int) -> None:
    history = history_of((4, False), (2, True), (2, True))
    assert expected_cost(history, 10, fail_if_called, limit).epochs == epochs


def test_cheap_epochs_count_as_what_they_cost() -> None:
    """Four epochs of a cut model that cost half each leave as much room as two whole ones."""
    history = [replace(RECORD, seconds=1.0, cost=0.5)] * 4
    cost = expected_cost(history, 10, fail_if_called, None)
    assert (cost.epochs, cost.seconds_per_epoch, cost.seconds) == (10, 2, 16)
    assert expected_cost(history, 10, fail_if_called, 10.0).epochs == 2 + 3
    assert expected_cost(history * 4, 10, fail_if_called, None).seconds == 4


def test_finished_search_costs_nothing_more() -> None:
    history = [replace(RECORD, seconds=2.0)] * 5
    cost = expected_cost(history, 5, fail_if_called, 1.0)
    assert (cost.epochs, cost.seconds) == (5, 0)


def test_timing_an_epoch_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=iter([10.0, 12.5]).__next__)
    monkeypatch.setattr("kedro_aat.training.cost.time", clock)
    controller = MagnitudeSparsityController(small_net())
    controller.compression_rate = 0.5
    data = images(12)
    settings = TrainingSettings.model_validate(
        {
            "batch_size": 4,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
            "metric": {"class_path": "torchmetrics.Accuracy", "init_args": {"task": "multiclass", "num_classes": 4}},
        }
    )

    def runner_of(controller: MagnitudeSparsityController) -> TrainingRunner:
        training = DefaultTraining(controller.model, settings, data, data)
        return TrainingRunner(controller.model, controller, training.callables())

    before = {name: tensor.clone() for name, tensor in controller.model.state_dict().items()}
    random_state = rng_state()
    assert timed_epoch(controller, runner_of) == 2.5
    assert torch.equal(rng_state()["torch"], random_state["torch"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in controller.model.state_dict().items())
    assert controller.model.training == small_net().training

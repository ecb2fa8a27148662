"""What a search will cost is told before it begins."""

from __future__ import annotations

from dataclasses import replace

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
    """A trajectory of (seconds, trained)."""
    return [replace(RECORD, seconds=seconds, trained=trained) for seconds, trained in epochs]


def never() -> float:
    raise AssertionError("an epoch was timed although the history tells how long one takes")


def test_epochs_and_time_of_a_new_search() -> None:
    cost = expected_cost([], 60, lambda: 2.5, None)
    assert (cost.epochs, cost.seconds_per_epoch, cost.seconds) == (60, 2.5, 150)
    assert str(cost) == "2.5 s per epoch: up to 60 epochs take about 2 min"


def test_history_tells_how_long_an_epoch_takes() -> None:
    history = [
        replace(RECORD, seconds=seconds, trained=trained) for seconds, trained in ((9, False), (1, True), (3, True))
    ]
    cost = expected_cost(history, 10, never, None)
    assert (cost.epochs, cost.seconds_per_epoch, cost.seconds) == (10, 2, 16)


@pytest.mark.parametrize(("limit", "epochs"), [(100.0, 10), (13.0, 4), (9.5, 2), (1.0, 2)])
def test_time_limit_allows_fewer_epochs(limit: float, epochs: int) -> None:
    history = [
        replace(RECORD, seconds=seconds, trained=trained) for seconds, trained in ((4, False), (2, True), (2, True))
    ]
    assert expected_cost(history, 10, never, limit).epochs == epochs


def test_finished_search_costs_nothing_more() -> None:
    history = [replace(RECORD, seconds=2.0)] * 5
    cost = expected_cost(history, 5, never, 1.0)
    assert (cost.epochs, cost.seconds) == (5, 0)


def test_timing_an_epoch_leaves_no_trace() -> None:
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
    random = rng_state()
    assert timed_epoch(controller, runner_of) > 0
    assert torch.equal(rng_state()["torch"], random["torch"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in controller.model.state_dict().items())
    assert controller.model.training == small_net().training

"""The expected cost of a search, which is reported as soon as it is known, and how it keeps to a time limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kedro_aat.training.cost import expected_cost
from kedro_aat.training.records import EpochRecord
from tests.training.test_records import RECORD


def history_of(*epochs: tuple[float, bool]) -> list[EpochRecord]:
    """A trajectory whose epochs are pairs (seconds, trained)."""
    return [replace(RECORD, seconds=seconds, trained=trained) for seconds, trained in epochs]


def test_cost_of_a_new_search_is_unknown() -> None:
    cost = expected_cost(history_of((2.5, False)), 60)
    assert (cost.epochs, cost.seconds_per_epoch, cost.seconds) == (60, None, None)
    assert str(cost) == "Up to 60 epochs"


def test_first_epoch_tells_the_cost() -> None:
    cost = expected_cost(history_of((1, False), (2.5, True)), 61)
    assert (cost.epochs, cost.seconds_per_epoch, cost.seconds) == (61, 2.5, 150)
    assert str(cost) == "2.5 s per epoch: up to 61 epochs take about 2 min more"


def test_seconds_per_epoch_come_from_the_history() -> None:
    history = history_of((9, False), (1, True), (3, True))
    cost = expected_cost(history, 10)
    assert (cost.epochs, cost.seconds_per_epoch, cost.seconds) == (10, 2, 16)


@pytest.mark.parametrize(("left", "epochs"), [(92.0, 10), (5.0, 4), (1.5, 2), (-1.0, 2)])
def test_time_limit_allows_fewer_epochs(left: float, epochs: int) -> None:
    history = history_of((4, False), (2, True), (2, True))
    assert expected_cost(history, 10, left).epochs == epochs


def test_cheap_epochs_count_as_what_they_cost() -> None:
    """Four epochs of a cut model that cost half each leave as much room as two whole ones."""
    history = [replace(RECORD, seconds=1.0, cost=0.5)] * 4
    cost = expected_cost(history, 10)
    assert (cost.epochs, cost.seconds_per_epoch, cost.seconds) == (10, 2, 16)
    assert expected_cost(history, 10, 6.0).epochs == 2 + 3
    assert expected_cost(history * 4, 10).seconds == 4


def test_finished_search_costs_nothing_more() -> None:
    history = [replace(RECORD, seconds=2.0)] * 5
    cost = expected_cost(history, 5, 1.0)
    assert (cost.epochs, cost.seconds) == (5, 0)

"""The scheduler that follows a search's rate path within an epoch."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedro_aat.compression.controller import CompressionScheduler
from kedro_aat.compression.schedule import EpochScheduler, PathScheduler, ScheduleSettings
from tests.compression.rates import Rates

PATH = tuple(rate / 10 for rate in range(1, 9))  # 0.1 ... 0.8


def rates_of_steps(num_steps: int, path: tuple[float, ...] = PATH, steps_per_epoch: int | None = 0) -> list[float]:
    """The rate at each step of an epoch; `steps_per_epoch` is what the scheduler was told, 0 for the right number."""
    rates = Rates()
    scheduler = PathScheduler(rates, num_steps if steps_per_epoch == 0 else steps_per_epoch)
    scheduler.follow_rate_path(path)
    scheduler.epoch_step()
    found = []
    for _ in range(num_steps):
        scheduler.step()
        found.append(rates.last)
    return found


def test_each_rate_of_a_path_has_equally_many_steps() -> None:
    assert rates_of_steps(8) == list(PATH)
    assert rates_of_steps(16) == [rate for rate in PATH for _ in range(2)]
    assert rates_of_steps(9) == [0.1, *PATH]
    assert rates_of_steps(20) == [PATH[step * 8 // 20] for step in range(20)]
    assert rates_of_steps(4, (0.2, 0.4)) == [0.2, 0.2, 0.4, 0.4]


def test_last_step_trains_the_last_rate_even_if_the_path_is_longer_than_the_epoch() -> None:
    assert rates_of_steps(4) == [0.1, 0.3, 0.5, 0.8]
    assert rates_of_steps(1) == [0.8]


def test_rate_is_set_only_when_it_changes() -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, 16)
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    for _ in range(16):
        scheduler.step()
    assert rates.all == [0.8, *PATH]


@pytest.mark.parametrize("first_step", [0, 1, 5])
def test_step_can_be_given(first_step: int) -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, 8)
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    scheduler.step(first_step)
    assert rates.last == PATH[first_step]
    scheduler.step()
    assert rates.last == PATH[first_step + 1]


def test_every_step_begins_with_the_given_function() -> None:
    events: list[str | float] = []
    scheduler = PathScheduler(events.append, 2, before_step=lambda: events.append("before"))
    scheduler.follow_rate_path((0.2, 0.4))
    scheduler.epoch_step()
    for _ in range(3):
        scheduler.step()
    assert events == [0.4, "before", 0.2, "before", 0.4, "before"]


@given(num_steps=st.integers(1, 100), length=st.integers(1, 12))
def test_each_rate_has_its_share_of_any_number_of_steps(num_steps: int, length: int) -> None:
    path = tuple(rate / 20 for rate in range(1, length + 1))
    rates = rates_of_steps(num_steps, path)
    assert rates == sorted(rates)
    assert rates[-1] == path[-1]
    for rate in path if num_steps >= length else ():
        assert abs(rates.count(rate) - num_steps / length) < 1 or length == 1


def test_rate_without_steps_is_the_last_one() -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, 16)
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    assert rates.last == 0.8


def test_rate_is_the_last_one_if_the_number_of_steps_is_unknown() -> None:
    assert rates_of_steps(5, steps_per_epoch=None) == [0.8] * 5


@pytest.mark.parametrize("num_steps", [1, 8])
def test_steps_counted_in_one_epoch_are_used_in_the_next(num_steps: int) -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, None)
    assert scheduler.current_step == -1
    scheduler.epoch_step()
    for _ in range(num_steps):
        scheduler.step()
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    assert rates.take() == [0.8]
    for _ in range(num_steps):
        scheduler.step()
    assert rates.all == (list(PATH) if num_steps == 8 else [])


def test_longer_epoch_than_expected_ends_at_the_last_rate() -> None:
    assert rates_of_steps(12, steps_per_epoch=8) == [*PATH, 0.8, 0.8, 0.8, 0.8]
    assert rates_of_steps(5, steps_per_epoch=3) == [0.1, 0.3, 0.8, 0.8, 0.8]


def test_path_lasts_one_epoch() -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, 8)
    scheduler.follow_rate_path(PATH)
    for _ in range(2):
        scheduler.epoch_step()
        for _ in range(8):
            scheduler.step()
    assert rates.all == [0.8, *PATH]


@pytest.mark.parametrize("num_steps", [0, 3])
def test_unfinished_path_does_not_continue_in_the_next_epoch(num_steps: int) -> None:
    """A rate that the loop sets at the end of an epoch is not changed afterwards."""
    rates = Rates()
    scheduler = PathScheduler(rates, 8)
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    for _ in range(num_steps):
        scheduler.step()
    rates.take()
    scheduler.epoch_step()
    for _ in range(8):
        scheduler.step()
    assert rates.take() == []


def test_path_of_one_rate_is_a_constant() -> None:
    assert rates_of_steps(3, (0.4,)) == [0.4, 0.4, 0.4]


@pytest.mark.parametrize("path", [(0.4,) * 8, (0.2, 0.2, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4)])
def test_equal_rates_of_a_path_are_set_once(path: tuple[float, ...]) -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, 16)
    for _ in range(2):
        scheduler.follow_rate_path(path)
        scheduler.epoch_step()
        for _ in range(16):
            scheduler.step()
        assert rates.take() == ([0.4] if path[0] == 0.4 else [0.4, 0.2, 0.4])


def test_step_before_the_first_epoch_changes_nothing() -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, 8)
    scheduler.step()
    assert rates.all == []
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    for _ in range(8):
        scheduler.step()
    assert rates.all == [0.8, *PATH]


@pytest.mark.parametrize("num_steps", [1, 8])
def test_scheduler_continues_from_its_state(num_steps: int) -> None:
    old = PathScheduler(Rates(), None)
    old.epoch_step()
    for _ in range(num_steps):
        old.step()
    rates = Rates()
    new = PathScheduler(rates, None)
    new.load_state(json.loads(json.dumps(old.get_state())))
    new.follow_rate_path(PATH)
    new.epoch_step()
    for _ in range(num_steps):
        new.step()
    assert rates.all == [0.8, *(PATH if num_steps == 8 else [])]


def test_state_of_a_new_scheduler_has_the_given_number_of_steps() -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, None)
    scheduler.load_state(json.loads(json.dumps(PathScheduler(Rates(), 8).get_state())))
    assert scheduler.steps_per_epoch == 8


def test_scheduler_takes_the_number_of_steps_from_an_epoch_schedulers_state() -> None:
    """A search may return to a checkpoint that was saved under the controller's own schedule."""
    before = EpochScheduler(ScheduleSettings(), Rates())
    before.epoch_step()
    for _ in range(8):
        before.step()
    rates = Rates()
    scheduler = PathScheduler(rates, None)
    scheduler.load_state(json.loads(json.dumps(before.get_state())))
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    for _ in range(8):
        scheduler.step()
    assert rates.all == [0.8, *PATH]


NEW_SCHEDULERS: dict[str, CompressionScheduler] = {
    "the controller's schedule": EpochScheduler(ScheduleSettings(), Rates()),
    "a rate path": PathScheduler(Rates(), None),
}


@pytest.mark.parametrize("name", NEW_SCHEDULERS)
def test_state_without_a_number_of_steps_does_not_change_it(name: str) -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, 8)
    scheduler.load_state(json.loads(json.dumps(NEW_SCHEDULERS[name].get_state())))
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    for _ in range(8):
        scheduler.step()
    assert rates.all == [0.8, *PATH]

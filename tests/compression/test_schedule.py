"""Rate schedules, and the scheduler that follows one."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedro_aat.compression.schedule import EpochScheduler, ScheduleSettings
from kedro_aat.errors import ConfigurationError
from tests.compression.rates import Rates


def per_epoch(num_epochs: int, **settings: Any) -> list[float]:
    """The rate in each epoch."""
    rates = Rates()
    scheduler = EpochScheduler(ScheduleSettings(**settings), rates)
    found = []
    for _ in range(num_epochs):
        scheduler.epoch_step()
        found.append(rates.last)
    return found


TABLES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "constant": ({"kind": "constant", "initial_rate": 0.3}, [0.3, 0.3, 0.3]),
    "linear": (
        {"kind": "polynomial", "initial_rate": 0.1, "target_rate": 0.5, "target_epoch": 4, "power": 1.0},
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.5],
    ),
    "concave": (  # 0.8 * (1 - (1 - e / 4)^2)
        {"kind": "polynomial", "target_rate": 0.8, "target_epoch": 4, "power": 2.0},
        [0.0, 0.35, 0.6, 0.75, 0.8, 0.8],
    ),
    "convex": (  # 0.8 * (e / 4)^2
        {"kind": "polynomial", "target_rate": 0.8, "target_epoch": 4, "power": 2.0, "concave": False},
        [0.0, 0.05, 0.2, 0.45, 0.8, 0.8],
    ),
    "falling": (
        {"kind": "polynomial", "initial_rate": 0.5, "target_rate": 0.1, "target_epoch": 4, "power": 1.0},
        [0.5, 0.4, 0.3, 0.2, 0.1, 0.1],
    ),
    "at once": (
        {"kind": "polynomial", "initial_rate": 0.1, "target_rate": 0.5, "target_epoch": 0},
        [0.5, 0.5],
    ),
    "exponential": (  # density 0.8 -> 0.2: half of it each epoch
        {"kind": "exponential", "initial_rate": 0.2, "target_rate": 0.8, "target_epoch": 2},
        [0.2, 0.6, 0.8, 0.8],
    ),
    "start at another rate": (  # which comes before the initial rate
        {
            **{"kind": "polynomial", "initial_rate": 0.1, "target_rate": 0.5, "target_epoch": 2, "power": 1.0},
            **{"start_epoch": 2, "start_rate": 0.0},
        },
        [0.0, 0.0, 0.1, 0.3, 0.5, 0.5],
    ),
    "multistep": (
        {"kind": "multistep", "multistep_epochs": (1, 3), "multistep_rates": (0.1, 0.4, 0.6)},
        [0.1, 0.4, 0.4, 0.6, 0.6],
    ),
    "adaptive": (
        {"kind": "adaptive", "initial_rate": 0.1, "target_rate": 0.2, "patience": 2},
        [0.1, 0.15, 0.15, 0.2, 0.2, 0.2],
    ),
    "frozen before its end": (  # the masks are frozen, but the rate continues to change, as in NNCF
        {
            **{"kind": "polynomial", "target_rate": 0.5, "target_epoch": 5, "power": 1.0},
            "freeze_epoch": 3,
        },
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
    ),
    "frozen from the first epoch on": (
        {"kind": "constant", "initial_rate": 0.3, "freeze_epoch": 0},
        [0.3, 0.3],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_rate_of_each_epoch(name: str) -> None:
    settings, expected = TABLES[name]
    assert per_epoch(len(expected), **settings) == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in TABLES if not name.startswith("frozen")])
def test_final_rate_is_the_rate_at_the_end(name: str) -> None:
    settings, expected = TABLES[name]
    schedule = ScheduleSettings(**settings)
    assert schedule.final_rate == pytest.approx(expected[-1])
    assert schedule.rate(1000) == pytest.approx(schedule.final_rate)
    assert EpochScheduler(schedule, Rates()).target_level == schedule.final_rate


@pytest.mark.parametrize("kind", ["polynomial", "exponential", "adaptive"])
@given(
    initial=st.floats(0, 0.99),
    target=st.floats(0, 0.99),
    target_epoch=st.integers(0, 100),
    power=st.floats(0.1, 5),
    concave=st.booleans(),
    epoch=st.floats(0, 200),
)
def test_rates_are_between_the_initial_and_the_target_rate(
    kind: Any, initial: float, target: float, target_epoch: int, power: float, concave: bool, epoch: float
) -> None:
    schedule = ScheduleSettings(
        kind=kind,
        initial_rate=initial,
        target_rate=target,
        target_epoch=target_epoch,
        power=power,
        concave=concave,
    )
    lowest, highest = min(initial, target), max(initial, target)
    assert lowest - 1e-12 <= schedule.rate(epoch) <= highest + 1e-12
    assert 0 <= schedule.rate(epoch) < 1
    assert schedule.rate(1e9) == pytest.approx(target)


@pytest.mark.parametrize("kind", ["polynomial", "exponential"])
@given(initial=st.floats(0, 0.99), target=st.floats(0, 0.99), target_epoch=st.integers(1, 100))
def test_rate_at_the_target_epoch_is_exactly_the_target(
    kind: Any, initial: float, target: float, target_epoch: int
) -> None:
    schedule = ScheduleSettings(kind=kind, initial_rate=initial, target_rate=target, target_epoch=target_epoch)
    assert schedule.rate(target_epoch) == target


@pytest.mark.parametrize("next_epoch", [0, 3, 7])
def test_epoch_can_be_given(next_epoch: int) -> None:
    rates = Rates()
    settings = ScheduleSettings(kind="polynomial", target_rate=0.5, target_epoch=5, power=1.0)
    scheduler = EpochScheduler(settings, rates)
    scheduler.epoch_step(next_epoch)
    assert rates.last == pytest.approx(min(0.5, next_epoch / 10))
    scheduler.epoch_step()
    assert scheduler.current_epoch == next_epoch + 1


BY_STEP: dict[str, Any] = {
    "kind": "polynomial",
    "target_rate": 0.4,
    "target_epoch": 2,
    "power": 1.0,
    "update_per_optimizer_step": True,
}


def test_the_epoch_in_which_steps_are_counted_can_come_before_the_schedule() -> None:
    settings = ScheduleSettings(**BY_STEP, initial_rate=0.1, begins_after_counting=True)
    rates = Rates()
    scheduler = EpochScheduler(settings, rates)
    scheduler.steps_per_epoch = 7  # from elsewhere
    scheduler.epoch_step()
    for _ in range(4):
        scheduler.step()
    assert (rates.all, scheduler.current_epoch) == ([], -1)
    resumed = EpochScheduler(settings, rates)
    resumed.load_state(json.loads(json.dumps(scheduler.get_state())))
    resumed.epoch_step()
    assert (rates.last, resumed.current_epoch, resumed.steps_per_epoch) == (0.1, 0, 4)
    for _ in range(3):
        resumed.step()
    assert rates.last == pytest.approx(0.1 + 0.3 * 2 / 8)
    known = EpochScheduler(settings.model_copy(update={"steps_per_epoch": 4}), rates)
    known.epoch_step()
    assert known.current_epoch == 0


def test_rate_of_each_optimizer_step() -> None:
    rates = Rates()
    scheduler = EpochScheduler(ScheduleSettings(**BY_STEP, steps_per_epoch=4), rates)
    epochs = []
    for _ in range(3):
        scheduler.epoch_step()
        epoch = []
        for _ in range(4):
            scheduler.step()
            epoch.append(rates.last)
        epochs.append(epoch)
    assert epochs[0] == pytest.approx([0.0, 0.05, 0.1, 0.15])
    assert epochs[1] == pytest.approx([0.2, 0.25, 0.3, 0.35])
    assert epochs[2] == pytest.approx([0.4, 0.4, 0.4, 0.4])


def test_steps_are_counted_in_the_first_epoch() -> None:
    rates = Rates()
    scheduler = EpochScheduler(ScheduleSettings(**BY_STEP), rates)
    scheduler.epoch_step()
    for _ in range(4):
        scheduler.step()
    assert set(rates.take()) == {0.0}
    scheduler.epoch_step()
    for _ in range(4):
        scheduler.step()
    assert rates.take()[-4:] == pytest.approx([0.2, 0.25, 0.3, 0.35])


@pytest.mark.parametrize("num_steps", [1, 4])
def test_number_of_steps_is_unknown_until_an_epoch_was_counted(num_steps: int) -> None:
    scheduler = EpochScheduler(ScheduleSettings(**BY_STEP), Rates())
    assert scheduler.current_step == -1
    scheduler.step()  # does not count: no epoch has begun
    assert scheduler.current_step == 0
    scheduler.epoch_step()
    assert scheduler.steps_per_epoch is None
    scheduler.epoch_step()  # an epoch without steps does not count either
    assert scheduler.steps_per_epoch is None
    for _ in range(num_steps):
        scheduler.step()
    scheduler.epoch_step()
    assert scheduler.steps_per_epoch == num_steps


def test_number_of_steps_in_the_settings_is_not_replaced_by_a_count() -> None:
    scheduler = EpochScheduler(ScheduleSettings(**BY_STEP, steps_per_epoch=4), Rates())
    for _ in range(2):
        scheduler.epoch_step()
        scheduler.step()
        assert scheduler.steps_per_epoch == 4


def test_step_can_be_given() -> None:
    rates = Rates()
    scheduler = EpochScheduler(ScheduleSettings(**BY_STEP, steps_per_epoch=4), rates)
    scheduler.epoch_step()
    scheduler.step(2)
    assert rates.last == pytest.approx(0.1)
    scheduler.step()
    assert rates.last == pytest.approx(0.15)


def test_every_step_begins_with_the_given_function() -> None:
    events: list[str | float] = []
    scheduler = EpochScheduler(
        ScheduleSettings(**BY_STEP, steps_per_epoch=4), events.append, before_step=lambda: events.append("before")
    )
    scheduler.epoch_step()
    for _ in range(2):
        scheduler.step()
    assert events == [0.0, "before", 0.0, "before", pytest.approx(0.05)]


def test_steps_change_nothing_if_the_rate_changes_per_epoch() -> None:
    rates = Rates()
    scheduler = EpochScheduler(
        ScheduleSettings(**{**BY_STEP, "update_per_optimizer_step": False}, steps_per_epoch=4), rates
    )
    scheduler.epoch_step()
    rates.take()
    for _ in range(4):
        scheduler.step()
    assert rates.take() == []


def test_frozen_schedule_does_not_set_the_same_rate_again() -> None:
    rates = Rates()
    settings = ScheduleSettings(kind="constant", initial_rate=0.3, freeze_epoch=1)
    scheduler = EpochScheduler(settings, rates)
    for _ in range(3):
        scheduler.epoch_step()
    assert rates.all == [0.3]


def test_restored_scheduler_knows_which_rate_is_set() -> None:
    settings = ScheduleSettings(kind="constant", initial_rate=0.3, freeze_epoch=1)
    old = EpochScheduler(settings, Rates())
    old.epoch_step()
    rates = Rates()
    new = EpochScheduler(settings, rates)
    new.load_state(json.loads(json.dumps(old.get_state())))
    new.epoch_step()
    assert rates.all == []


def test_state_without_a_number_of_steps_does_not_change_it() -> None:
    scheduler = EpochScheduler(ScheduleSettings(**BY_STEP, steps_per_epoch=4), Rates())
    scheduler.load_state({"current_epoch": 0, "current_step": 2})
    assert scheduler.steps_per_epoch == 4


@pytest.mark.parametrize("num_epochs", [0, 1, 2])
@pytest.mark.parametrize("num_steps", [0, 3])
@pytest.mark.parametrize("steps_per_epoch", [None, 4])
def test_scheduler_continues_from_its_state(num_epochs: int, num_steps: int, steps_per_epoch: int | None) -> None:
    settings = ScheduleSettings(**BY_STEP, steps_per_epoch=steps_per_epoch)
    old_rates, new_rates = Rates(), Rates()
    old, new = EpochScheduler(settings, old_rates), EpochScheduler(settings, new_rates)
    for _ in range(num_epochs):
        old.epoch_step()
        for _ in range(num_steps):
            old.step()
    old_rates.take()
    new.load_state(json.loads(json.dumps(old.get_state())))
    for scheduler in (old, new):
        for _ in range(2):
            scheduler.step()
            scheduler.epoch_step()
            scheduler.step()
    assert new_rates.all == old_rates.all
    assert (new.current_epoch, new.current_step) == (old.current_epoch, old.current_step)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "multistep", "multistep_epochs": (1, 2)}, "one rate more than epochs, but got 2 rates for 2"),
        (
            {"kind": "multistep", "multistep_epochs": (5, 2), "multistep_rates": (0.1, 0.2, 0.3)},
            r"must rise, but got \[5, 2\]",
        ),
        ({"target_rate": 1.0}, "target_rate: .*less than 1, but got 1.0"),
        ({"initial_rate": -0.1}, "initial_rate: .*, but got -0.1"),
        ({"power": 0.0}, "power: .*greater than 0, but got 0.0"),
        ({"kind": "polinomial"}, "Did you mean 'polynomial'"),
        ({"target_epochs": 5}, "target_epochs: unknown key .*Did you mean 'target_epoch'"),
    ],
)
def test_mistakes_in_settings_are_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ScheduleSettings.model_validate(settings)


@pytest.mark.parametrize(("first", "last"), [(0.0, 0.5), (0.1, 0.4), (0.37, 0.5), (0.0, 0.998)])
def test_exponential_with_bias_rises_fast_at_first(first: float, last: float) -> None:
    schedule = ScheduleSettings(
        kind="exponential_with_bias", initial_rate=first, target_rate=last, target_epoch=16, start_epoch=3
    )
    rates = [schedule.rate(epoch) for epoch in range(24)]
    assert rates[:4] == [first] * 4
    assert rates[3 + 2] == pytest.approx(0.75 * last)
    assert rates == sorted(rates)
    assert rates[3 + 16 :] == [last] * 5


@pytest.mark.parametrize("initial", [0.4, 0.375])
def test_exponential_with_bias_must_begin_below_three_quarters(initial: float) -> None:
    with pytest.raises(ConfigurationError, match="below three quarters of its target rate"):
        ScheduleSettings.model_validate({"kind": "exponential_with_bias", "initial_rate": initial, "target_rate": 0.5})


@pytest.mark.parametrize("kind", ["polynomial", "exponential"])
def test_rise_begins_at_the_start_epoch(kind: Literal["polynomial", "exponential"]) -> None:
    settings: dict[str, Any] = {"kind": kind, "initial_rate": 0.1, "target_rate": 0.7, "target_epoch": 4}
    early, late = ScheduleSettings(**settings), ScheduleSettings(**settings, start_epoch=2)
    assert [late.rate(epoch) for epoch in range(9)] == [0.1, 0.1, *(early.rate(epoch) for epoch in range(7))]


def test_rates_of_a_multistep_schedule_may_be_empty_if_it_is_another_one() -> None:
    settings = ScheduleSettings(kind="polynomial", multistep_rates=(), multistep_epochs=())
    assert settings.final_rate == settings.target_rate

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedro_aat.compression.schedule import EpochScheduler, PathScheduler, ScheduleSettings
from kedro_aat.errors import ConfigurationError


class Rates:
    """Notes every rate that a scheduler sets."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def __call__(self, rate: float) -> None:
        self.all.append(rate)

    @property
    def last(self) -> float:
        return self.all[-1]

    def take(self) -> list[float]:
        taken, self.all = self.all, []
        return taken


def per_epoch(num_epochs: int, **settings: Any) -> list[float]:
    """The rate of each epoch."""
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
    "multistep": (
        {"kind": "multistep", "multistep_epochs": (1, 3), "multistep_rates": (0.1, 0.4, 0.6)},
        [0.1, 0.4, 0.4, 0.6, 0.6],
    ),
    "adaptive": (
        {"kind": "adaptive", "initial_rate": 0.1, "target_rate": 0.2, "patience": 2},
        [0.1, 0.1, 0.15, 0.15, 0.2, 0.2, 0.2],
    ),
    "frozen before its end": (  # the masks no longer follow the weights, but the rate goes on, as in the original
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
def test_final_rate_is_where_the_schedule_ends(name: str) -> None:
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
def test_rates_lie_between_the_ends(
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


@pytest.mark.parametrize("next_epoch", [0, 3, 7])
def test_epoch_can_be_named(next_epoch: int) -> None:
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


def test_steps_change_nothing_where_the_rate_moves_by_epoch() -> None:
    rates = Rates()
    scheduler = EpochScheduler(
        ScheduleSettings(**{**BY_STEP, "update_per_optimizer_step": False}, steps_per_epoch=4), rates
    )
    scheduler.epoch_step()
    rates.take()
    for _ in range(4):
        scheduler.step()
    assert rates.take() == []


def test_frozen_schedule_sets_no_rate_again_that_it_has_set() -> None:
    rates = Rates()
    settings = ScheduleSettings(kind="constant", initial_rate=0.3, freeze_epoch=1)
    scheduler = EpochScheduler(settings, rates)
    for _ in range(3):
        scheduler.epoch_step()
    assert rates.all == [0.3]


@pytest.mark.parametrize("num_epochs", [0, 1, 2])
@pytest.mark.parametrize("num_steps", [0, 3])
@pytest.mark.parametrize("steps_per_epoch", [None, 4])
def test_scheduler_goes_on_from_its_state(num_epochs: int, num_steps: int, steps_per_epoch: int | None) -> None:
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
def test_mistaken_settings_are_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ScheduleSettings.model_validate(settings)


# --- the path that a search asks for ---------------------------------------------------------------------------

PATH = tuple(rate / 10 for rate in range(1, 9))  # 0.1 ... 0.8


def followed(num_steps: int, path: tuple[float, ...] = PATH, steps_per_epoch: int | None = 0) -> list[float]:
    """The rate at each step of an epoch."""
    rates = Rates()
    scheduler = PathScheduler(rates, num_steps if steps_per_epoch == 0 else steps_per_epoch)
    scheduler.follow_rate_path(path)
    scheduler.epoch_step()
    found = []
    for _ in range(num_steps):
        scheduler.step()
        found.append(rates.last)
    return found


def test_path_is_followed_in_equal_parts_of_an_epoch() -> None:
    assert followed(8) == list(PATH)
    assert followed(16) == [rate for rate in PATH for _ in range(2)]
    assert followed(4) == [0.1, 0.3, 0.5, 0.7]
    assert followed(1) == [0.1]
    assert followed(20) == [PATH[step * 8 // 20] for step in range(20)]


@given(num_steps=st.integers(1, 100), length=st.integers(1, 12))
def test_every_rate_gets_its_share_of_the_steps(num_steps: int, length: int) -> None:
    path = tuple(rate / 20 for rate in range(1, length + 1))
    rates = followed(num_steps, path)
    assert rates == sorted(rates)
    for rate in path:
        assert abs(rates.count(rate) - num_steps / length) < 1 or length == 1


def test_function_that_never_steps_gets_the_last_rate() -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, 16)
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    assert rates.last == 0.8


def test_last_rate_is_kept_where_the_steps_of_an_epoch_are_unknown() -> None:
    assert followed(5, steps_per_epoch=None) == [0.8] * 5


def test_unknown_steps_are_counted_in_one_epoch_and_serve_the_next() -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, None)
    scheduler.epoch_step()
    for _ in range(8):
        scheduler.step()
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    rates.take()
    for _ in range(8):
        scheduler.step()
    assert rates.all == list(PATH)


def test_epoch_that_is_longer_than_thought_ends_at_the_last_rate() -> None:
    assert followed(12, steps_per_epoch=8) == [*PATH, 0.8, 0.8, 0.8, 0.8]


def test_path_is_over_with_its_epoch() -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, 8)
    scheduler.follow_rate_path(PATH)
    for _ in range(2):
        scheduler.epoch_step()
        for _ in range(8):
            scheduler.step()
    assert rates.all == [0.8, *PATH]


@pytest.mark.parametrize("num_steps", [0, 3])
def test_path_that_was_not_ended_does_not_go_on_in_the_next_epoch(num_steps: int) -> None:
    """A rate that is set from outside at the end of an epoch holds from then on."""
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
    assert followed(3, (0.4,)) == [0.4, 0.4, 0.4]


def test_step_before_anything_else_does_no_harm() -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, 8)
    scheduler.step()
    assert rates.all == []
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    for _ in range(8):
        scheduler.step()
    assert rates.all == [0.8, *PATH]


def test_path_scheduler_goes_on_from_its_state() -> None:
    old = PathScheduler(Rates(), None)
    old.epoch_step()
    for _ in range(8):
        old.step()
    rates = Rates()
    new = PathScheduler(rates, None)
    new.load_state(json.loads(json.dumps(old.get_state())))
    new.follow_rate_path(PATH)
    new.epoch_step()
    for _ in range(8):
        new.step()
    assert rates.all == [0.8, *PATH]


def test_path_scheduler_takes_the_state_of_a_schedule_that_counted_the_steps() -> None:
    """A search goes back to a checkpoint of the phase in which the controller's own schedule was at work."""
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


def test_path_scheduler_keeps_what_it_knows_where_another_state_knows_less() -> None:
    rates = Rates()
    scheduler = PathScheduler(rates, 8)
    scheduler.load_state(json.loads(json.dumps(EpochScheduler(ScheduleSettings(), Rates()).get_state())))
    scheduler.follow_rate_path(PATH)
    scheduler.epoch_step()
    for _ in range(8):
        scheduler.step()
    assert rates.all == [0.8, *PATH]


@pytest.mark.parametrize(("first", "last"), [(0.0, 0.5), (0.1, 0.4), (0.37, 0.5), (0.0, 0.998)])
def test_exponential_with_bias_is_steep_at_first(first: float, last: float) -> None:
    schedule = ScheduleSettings(
        kind="exponential_with_bias", initial_rate=first, target_rate=last, target_epoch=16, start_epoch=3
    )
    rates = [schedule.rate(epoch) for epoch in range(24)]
    assert rates[:4] == [first] * 4
    assert rates[3 + 2] == pytest.approx(0.75 * last)
    assert rates == sorted(rates)
    assert rates[3 + 16 :] == [last] * 5


def test_exponential_with_bias_needs_room_to_rise() -> None:
    with pytest.raises(ConfigurationError, match="below three quarters of its target rate"):
        ScheduleSettings.model_validate({"kind": "exponential_with_bias", "initial_rate": 0.4, "target_rate": 0.5})


@pytest.mark.parametrize("kind", ["polynomial", "exponential"])
def test_rise_begins_at_its_start_epoch(kind: Literal["polynomial", "exponential"]) -> None:
    settings: dict[str, Any] = {"kind": kind, "initial_rate": 0.1, "target_rate": 0.7, "target_epoch": 4}
    early, late = ScheduleSettings(**settings), ScheduleSettings(**settings, start_epoch=2)
    assert [late.rate(epoch) for epoch in range(9)] == [0.1, 0.1, *(early.rate(epoch) for epoch in range(7))]

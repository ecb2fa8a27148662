"""A time limit is kept in wall time, whatever takes the time. What these tests slow down moves their clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedro_aat.budget import Outcome
from kedro_aat.errors import InterruptedRunError
from kedro_aat.search import Frontier
from kedro_aat.search.policy import Epoch, Problem, Stop
from kedro_aat.training import stage
from kedro_aat.training.checkpoints import RunCheckpoints
from kedro_aat.training.cost import ask_in_time
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.stopwatch import FILE_NAME, Stopwatch
from tests.training.checkpoints.small_search import Ended, search
from tests.training.test_records import RECORD

LONG = {"kind": "frontier", "maximal_total_epochs": 60}


class Clock:
    """A clock that stands still but for what is made slow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self._monkeypatch = monkeypatch
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def slow_down(self, owner: Any, name: str, seconds: float, **more: Any) -> None:
        """Lets each call of a function take some seconds, and gives it more arguments."""
        function: Callable[..., Any] = getattr(owner, name)

        def slow(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs, **more)

        self._monkeypatch.setattr(owner, name, slow)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def slow_disk(clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A disk on which training waits for each checkpoint."""
    save = RunCheckpoints.save

    def slow(self: RunCheckpoints, checkpoint: Any, dump: Any = None, *, wait: bool = True, **more: Any) -> None:
        save(self, checkpoint, dump, **more)
        clock.now += seconds

    monkeypatch.setattr(RunCheckpoints, "save", slow)


@pytest.mark.parametrize(
    ("epoch", "validation", "disk", "hashing"),
    [(2.0, 0.0, 0.0, 0.0), (0.1, 0.0, 2.0, 0.0), (1.0, 1.0, 0.0, 0.0), (1.0, 0.5, 0.5, 4.0)],
)
def test_limit_is_kept_to_within_an_epoch_and_a_save(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    epoch: float,
    validation: float,
    disk: float,
    hashing: float,
) -> None:
    clock.slow_down(DefaultTraining, "train_epoch", epoch)
    clock.slow_down(DefaultTraining, "validate", validation)
    clock.slow_down(stage, "data_fingerprint", hashing)
    slow_disk(clock, monkeypatch, disk)
    began = clock.now
    ended = search(tmp_path, policy=LONG, time_limit=30.0)
    wall = clock.now - began
    assert 30 - 2 * (epoch + validation + disk) <= wall <= 30 + epoch + validation + disk
    assert ended.seconds == pytest.approx(wall)
    assert ended.result.outcome is Outcome.WITHIN_BUDGET
    assert "The time limit leaves no time for another epoch" in ended.result.reason


def test_epochs_are_as_long_as_what_passes_between_them(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock.slow_down(DefaultTraining, "train_epoch", 2.0)
    clock.slow_down(DefaultTraining, "validate", 0.5)
    slow_disk(clock, monkeypatch, 1.0)
    first, *others = search(tmp_path).result.history
    assert first.seconds == pytest.approx(0.5)
    assert {round(row.seconds, 6) for row in others if row.trained} == {3.5}


def test_no_epoch_is_trained_only_to_be_timed(clock: Clock, tmp_path: Path) -> None:
    clock.slow_down(DefaultTraining, "train_epoch", 1.0)
    began = clock.now
    ended = search(tmp_path)
    assert clock.now - began == sum(row.trained for row in ended.result.history) == len(ended.trained)


def interrupted(root: Path, stop_after: int) -> None:
    with pytest.raises(InterruptedRunError):
        search(root, policy=LONG, time_limit=30.0, stop_after=stop_after)


@pytest.mark.parametrize("damage", [None, "removed", "torn", "infinite"])
def test_limit_holds_for_all_processes_together(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str | None
) -> None:
    clock.slow_down(DefaultTraining, "train_epoch", 1.0)
    slow_disk(clock, monkeypatch, 1.0)
    used = 0.0
    for stop_after in (3, 6):
        began = clock.now
        interrupted(tmp_path, stop_after)
        used += clock.now - began
        clock.now += 1000.0  # nobody works on it
    (file,) = tmp_path.glob(f"*/{FILE_NAME}")
    assert float(file.read_text()) == pytest.approx(used)
    if damage == "removed":
        file.unlink()
    elif damage is not None:
        file.write_text({"torn": "1e", "infinite": "inf"}[damage])
    began = clock.now
    ended = search(tmp_path, policy=LONG, time_limit=30.0)
    whole = used + clock.now - began
    assert 26 <= whole <= 32
    # Without the file, what the epochs took is known, but not what came after the last of them.
    assert ended.seconds == pytest.approx(whole, abs=0.01 if damage is None else 3.0)


def test_result_that_is_read_again_costs_no_time(clock: Clock, tmp_path: Path) -> None:
    clock.slow_down(DefaultTraining, "train_epoch", 1.0)
    clock.slow_down(DefaultTraining, "validate", 0.25)
    used = search(tmp_path).seconds
    for _ in range(2):
        clock.now += 50.0
        assert search(tmp_path).seconds == pytest.approx(used, abs=0.001)


def test_more_time_goes_on_where_the_first_ended(clock: Clock, tmp_path: Path) -> None:
    clock.slow_down(DefaultTraining, "train_epoch", 1.0)
    first = search(tmp_path, policy=LONG, time_limit=10.0)
    more = search(tmp_path, policy=LONG, time_limit=20.0)
    assert 8 <= len(first.trained) <= 10
    assert 18 <= len(first.trained) + len(more.trained) <= 20


def test_time_that_is_used_up_still_gives_the_initial_model_a_chance(tmp_path: Path) -> None:
    ended: Ended = search(tmp_path, time_limit=-1.0)
    assert [row.trained for row in ended.result.history] == [False]
    assert ended.result.outcome is Outcome.INFEASIBLE


def test_policy_is_told_how_many_epochs_there_is_time_for(clock: Clock) -> None:
    policy, stopwatch = Frontier(maximal_total_epochs=60), Stopwatch(limit=30.0)
    state = policy.initial(Problem())
    history = [replace(RECORD, seconds=1.0, trained=False)]
    cost, asked, move = ask_in_time(policy, state, history, stopwatch)
    assert (cost.epochs, asked.maximal_total_epochs) == (60, 60)
    history.append(replace(RECORD, seconds=3.0, trained=True))
    clock.now += 4.0
    cost, asked, move = ask_in_time(policy, state, history, stopwatch)
    assert asked.maximal_total_epochs == cost.epochs == 1 + 25 // 3
    assert isinstance(move, Epoch)
    clock.now += 24.0
    *_, move = ask_in_time(policy, state, history, stopwatch)
    assert isinstance(move, Stop)
    assert move.reason.endswith("has used 28 of its 30 s.")

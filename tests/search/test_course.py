"""The whole course of searches, as it was recorded: results do not change between versions by accident.

`python -m tests.search.test_course` records it anew, after a change that is meant to alter it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kedro_aat.search.attempts import u_of
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Epoch, EpochResult, Problem
from kedro_aat.search.tactics import LR_RATIO, Tactic, Tactics
from tests.search.landscapes import DROP, RANKINGS

RECORDED = Path(__file__).with_name("courses.json")


@dataclass(frozen=True)
class Told:
    """Where an epoch was, how many came before it, and how it trained."""

    u: float
    number: int
    tactic: Tactic


@dataclass(frozen=True)
class Case:
    """A search, and the margin of each epoch, in tolerated drops."""

    policy: Frontier
    problem: Problem
    margin: Callable[[Told], float]
    standard_error: float | None = 0.2 * DROP
    early_stops: frozenset[int] = frozenset()
    not_compressed: frozenset[int] = frozenset()
    granularity: int | None = None
    saving: float = 0.0


def noise(number: int) -> float:
    return 0.3 * math.sin(5 * number)


def curve(slope: float, boundary: float) -> Callable[[Told], float]:
    return lambda told: 1 - math.exp(slope * (told.u - boundary)) + (noise(told.number) if told.number else 0.1)


def cliff(boundary: float, recovery: float) -> Callable[[Told], float]:
    """Fails above the boundary, less so with every epoch."""
    return lambda told: 0.5 if told.u < boundary else -0.6 * recovery ** (told.number % 7) - (told.u - boundary)


def by_lr(best: int) -> Callable[[Told], float]:
    """Within budget below u = 1.5 with the best learning rate, and a drop less for each half decade beside it."""
    return lambda told: (0.5 if told.u < 1.5 else -1.0) - abs(math.log(told.tactic.lr_factor, LR_RATIO) - best)


WIDE = Problem(maximal_rate=0.99, tolerated_drop=DROP)
NARROW = Problem(minimal_rate=0.3, maximal_rate=0.9, initial_rate=0.1, tolerated_drop=DROP)
CHOICE = Problem(
    maximal_rate=0.99, tolerated_drop=DROP, first_target_rate=0.3, rankings=RANKINGS, can_sample=True, can_distill=True
)
CASES = {
    "gentle": Case(Frontier(maximal_total_epochs=40), WIDE, curve(2, 1)),
    "steep": Case(Frontier(maximal_total_epochs=60, acceptance_z=1), WIDE, curve(8, 2.5), standard_error=0.05 * DROP),
    "narrow": Case(Frontier(maximal_total_epochs=30, num_path_steps=3), NARROW, curve(3, 1.5)),
    "unknown error": Case(Frontier(maximal_total_epochs=30), WIDE, curve(2, 1), standard_error=None),
    "cliff": Case(Frontier(maximal_total_epochs=100, polish_share=0.1), WIDE, cliff(1.2, 0.8)),
    "slow cliff": Case(Frontier(maximal_total_epochs=60, epochs_per_rate=6), WIDE, cliff(0.9, 0.95)),
    "easy": Case(Frontier(maximal_total_epochs=20), WIDE, lambda told: 1.0 + noise(told.number)),
    "hopeless": Case(Frontier(maximal_total_epochs=30), WIDE, lambda told: -1.5 - told.u + noise(told.number)),
    "far from hope": Case(Frontier(maximal_total_epochs=30), WIDE, lambda told: -7 - told.u),
    "a learning rate that is too low": Case(Frontier(maximal_total_epochs=30), WIDE, by_lr(3)),
    "a learning rate that is far too high": Case(
        Frontier(maximal_total_epochs=30), WIDE, lambda told: by_lr(-1)(told) - 6 * (told.tactic.lr_factor > 1)
    ),
    "no drop": Case(
        Frontier(maximal_total_epochs=30),
        Problem(maximal_rate=0.99),
        lambda told: 0.4 * (1 - told.u) + noise(told.number),
    ),
    "stopped early": Case(
        Frontier(maximal_total_epochs=40),
        WIDE,
        curve(2, 1),
        early_stops=frozenset({2, 6, 35}),
        not_compressed=frozenset({1, 4}),
    ),
    "all tactics": Case(Frontier(maximal_total_epochs=60), CHOICE, cliff(0.9, 0.9)),
    "fixed tactics": Case(
        Frontier(maximal_total_epochs=30, tactics=Tactics(importance=("taylor",), learning_rate_factor=(1, 10))),
        CHOICE,
        cliff(0.9, 0.9),
    ),
    "few filters": Case(Frontier(maximal_total_epochs=30), WIDE, cliff(0.7, 0.9), granularity=3),
    "cheap": Case(Frontier(maximal_total_epochs=20), WIDE, curve(2, 1), saving=0.8),
    "a polish of two epochs": Case(Frontier(maximal_total_epochs=2, polish_share=1), WIDE, curve(2, 1)),
    "only a polish of what is out of budget": Case(
        Frontier(maximal_total_epochs=20, polish_share=1), NARROW, lambda told: told.number / 10 - 0.5 - told.u
    ),
    "only a polish": Case(Frontier(maximal_total_epochs=20, polish_share=1), WIDE, curve(2, 1)),
    "a lucky climb": Case(
        Frontier(maximal_total_epochs=40), WIDE, lambda told: (0.4 if told.number < 24 else -0.5) - (told.u - 1)
    ),
}


def course(case: Case) -> list[list[Any]]:
    """The epochs of a search and its end: first and last rate of the path, and everything else that was asked for."""
    policy, state, rate = case.policy, case.policy.initial(case.problem), case.problem.initial_rate
    tactic, epochs = Tactic(), list[list[Any]]()
    while isinstance(move := policy.ask(state), Epoch):
        number = len(epochs)
        rate, tactic = move.rate_path[-1] if move.rate_path else rate, move.tactic or tactic
        achieved = round(rate * case.granularity) / case.granularity if case.granularity else rate
        margin = DROP * case.margin(Told(u_of(rate), number, tactic))
        result = EpochResult(
            checkpoint=number,
            trained=move.train,
            requested_rate=rate,
            achieved_rate=achieved,
            metric=margin,
            margin=margin,
            standard_error=case.standard_error,
            cost=1 - case.saving * achieved,
            fully_compressed=number not in case.not_compressed,
            early_stop=number in case.early_stops,
        )
        state = policy.load(policy.tell(state, result).model_dump_json())
        path = move.rate_path or (-1.0,)
        numbers = (path[0], path[-1], move.lr_scale, move.lr_scale_at_end or -1.0)
        start = -1 if move.start_from is None else move.start_from
        ranking = case.problem.rankings.index(tactic.ranking) if tactic.ranking in case.problem.rankings else -1
        flags = (int(move.train), int(move.new_optimizer), ranking, int(tactic.distill))
        epochs.append([*(float(f"{number:.9g}") for number in numbers), start, *flags, *sorted(state.needed)])
    return [*epochs, [move.outcome.value, move.best]]


@pytest.mark.parametrize("name", CASES)
def test_search_takes_the_recorded_course(name: str) -> None:
    recorded = json.loads(RECORDED.read_text())[name]
    epochs = course(CASES[name])
    assert len(epochs) == len(recorded)
    assert epochs[-1] == recorded[-1]
    for number, (epoch, expected) in enumerate(zip(epochs[:-1], recorded[:-1], strict=True)):
        assert epoch == pytest.approx(expected, rel=1e-6), number


if __name__ == "__main__":
    courses = {name: course(case) for name, case in CASES.items()}
    # One epoch per line.
    text = ",\n".join(
        f'"{name}": [\n' + ",\n".join(json.dumps(epoch) for epoch in epochs) + "\n]" for name, epochs in courses.items()
    )
    RECORDED.write_text("{\n" + text + "\n}\n")

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

from kedro_aat.search.frontier import Frontier, u_of
from kedro_aat.search.policy import Epoch, EpochResult, Problem

RECORDED = Path(__file__).with_name("courses.json")
DROP = 0.01


@dataclass(frozen=True)
class Case:
    """A search, and the margin of each epoch: a function of u and of the number of the epoch, in tolerated drops."""

    policy: Frontier
    problem: Problem
    margin: Callable[[float, int], float]
    standard_error: float | None = 0.2 * DROP
    early_stops: frozenset[int] = frozenset()
    not_compressed: frozenset[int] = frozenset()
    granularity: int | None = None


def noise(number: int) -> float:
    return 0.3 * math.sin(5 * number)


def curve(slope: float, boundary: float) -> Callable[[float, int], float]:
    return lambda u, number: 1 - math.exp(slope * (u - boundary)) + (noise(number) if number else 0.1)


def cliff(boundary: float, recovery: float) -> Callable[[float, int], float]:
    """Fails above the boundary, less so with every epoch."""
    return lambda u, number: 0.5 if u < boundary else -0.6 * recovery ** (number % 7) - (u - boundary)


def listed(*margins: float) -> Callable[[float, int], float]:
    """These margins first, then a cliff."""
    return lambda u, number: margins[number] if number < len(margins) else cliff(0.5, 0.9)(u, number)


WIDE = Problem(maximal_rate=0.99, tolerated_drop=DROP)
NARROW = Problem(minimal_rate=0.3, maximal_rate=0.9, initial_rate=0.1, tolerated_drop=DROP)
CASES = {
    "gentle": Case(Frontier(maximal_total_epochs=40), WIDE, curve(2, 1)),
    "steep": Case(Frontier(maximal_total_epochs=60, acceptance_z=1), WIDE, curve(8, 2.5), standard_error=0.05 * DROP),
    "narrow": Case(Frontier(maximal_total_epochs=30, first_step=0.2, num_path_steps=3), NARROW, curve(3, 1.5)),
    "unknown error": Case(Frontier(maximal_total_epochs=30), WIDE, curve(2, 1), standard_error=None),
    "cliff": Case(Frontier(maximal_total_epochs=100, polish_share=0.1), WIDE, cliff(1.2, 0.8)),
    "slow cliff": Case(
        Frontier(maximal_total_epochs=60, epochs_per_rate=6, lowest_trial_lr=0.3, first_step=0.3),
        WIDE,
        cliff(0.9, 0.95),
    ),
    "easy": Case(Frontier(maximal_total_epochs=30, first_step=0.1), WIDE, lambda u, number: 1.0 + noise(number)),
    "hopeless": Case(Frontier(maximal_total_epochs=30), WIDE, lambda u, number: -1.5 - u + noise(number)),
    "nearly hopeless": Case(Frontier(maximal_total_epochs=40), NARROW, lambda u, number: number / 20 - 1 - u / 4),
    "no drop": Case(
        Frontier(maximal_total_epochs=30),
        Problem(maximal_rate=0.99),
        lambda u, number: 0.4 * (1 - u) + noise(number),
    ),
    "stopped early": Case(
        Frontier(maximal_total_epochs=40),
        WIDE,
        curve(2, 1),
        early_stops=frozenset({2, 6, 35}),
        not_compressed=frozenset({1, 4}),
    ),
    "as many epochs as a trial may have": Case(
        Frontier(maximal_total_epochs=30), WIDE, listed(1.0, -0.6, -0.4, -0.25, -0.12, -0.04, -0.01)
    ),
    "one epoch less": Case(
        Frontier(maximal_total_epochs=30), WIDE, listed(1.0, -0.6, -0.4, -0.25, -0.12, -0.09, -0.01)
    ),
    "two epochs per rate": Case(Frontier(maximal_total_epochs=30, epochs_per_rate=2), WIDE, cliff(1.2, 0.5)),
    "few filters": Case(Frontier(maximal_total_epochs=30), WIDE, cliff(0.7, 0.9), granularity=3),
    "a polish of two epochs": Case(Frontier(maximal_total_epochs=2, polish_share=1), WIDE, curve(2, 1)),
    "only a polish of what is out of budget": Case(
        Frontier(maximal_total_epochs=20, polish_share=1), NARROW, lambda u, number: number / 10 - 0.5 - u
    ),
    "only a polish": Case(
        Frontier(maximal_total_epochs=20, polish_share=1, polish_lr=0.8, lowest_polish_lr=0.1), WIDE, curve(2, 1)
    ),
}


def course(case: Case) -> list[list[Any]]:
    """The epochs of a search and its end: first and last rate of the path, and everything else that was asked for."""
    policy, state, rate = case.policy, case.policy.initial(case.problem), case.problem.initial_rate
    epochs: list[list[Any]] = []
    while isinstance(move := policy.ask(state), Epoch):
        number = len(epochs)
        rate = move.rate_path[-1] if move.rate_path else rate
        achieved = round(rate * case.granularity) / case.granularity if case.granularity else rate
        margin = DROP * case.margin(u_of(rate), number)
        result = EpochResult(
            checkpoint=number,
            trained=move.train,
            requested_rate=rate,
            achieved_rate=achieved,
            metric=margin,
            margin=margin,
            standard_error=case.standard_error,
            fully_compressed=number not in case.not_compressed,
            early_stop=number in case.early_stops,
        )
        state = policy.load(policy.tell(state, result).model_dump_json())
        path = move.rate_path or (-1.0,)
        numbers = (path[0], path[-1], move.lr_scale)
        start = -1 if move.start_from is None else move.start_from
        flags = (int(move.train), int(move.new_optimizer))
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

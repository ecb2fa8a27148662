"""Searches of the frontier strategy in worlds whose margins depend on what it trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kedro_aat.search.attempts import u_of
from kedro_aat.search.frontier import NEAR, RESUMABLE, Frontier
from kedro_aat.search.policy import Epoch, EpochResult, Problem
from kedro_aat.search.tactics import LR_RATIO, Ranking, Tactic
from kedro_aat.testing.simulated_search import Answer, Course, Search, World, search

DROP = 0.01
PROBLEM = Problem(maximal_rate=0.99, tolerated_drop=DROP)
RANKINGS = tuple(
    Ranking(importance=importance, ranking=ranking)
    for importance, ranking in (("l2", "local"), ("l2", "global"), ("taylor", "global"))
)
# Margins of a trial that came near, that has learned enough to go on from, and that had no chance.
NEARLY, FAR = RESUMABLE / 2, NEAR - 3
FIRST_U = u_of(PROBLEM.first_target_rate)


@dataclass(frozen=True)
class Trained:
    """An epoch that was trained, for which a margin is wanted.

    Attributes:
        number: Number of epochs trained before it.
        age: Number of epochs since the last new optimizer.
        u: Position of its rate.
        tactic: How it trained.
        lr_scale: Its learning rate at the beginning.
    """

    number: int
    age: int
    u: float
    tactic: Tactic
    lr_scale: float


# The margin of an epoch, in tolerated drops, and None if it fails.
Margins = Callable[[Trained], float | None]


@dataclass(frozen=True)
class Landscape(World):
    """A world in which the first validation has a margin of one drop, and all others those of a function."""

    margins: Margins = lambda trained: None
    standard_error: float | None = None
    first_standard_error: float | None = None

    def answer(self, move: Epoch, past: Course) -> Answer:
        if not past.results:
            return Answer(margin=DROP, standard_error=self.first_standard_error)
        moves = [*past.moves, move]
        rate = move.rate_path[-1] if move.rate_path else past.results[-1].requested_rate
        begun = max(number for number, each in enumerate(moves) if each.new_optimizer)
        tactic = next(each.tactic for each in reversed(moves) if each.tactic is not None)
        trained = Trained(len(past.moves) - 1, len(past.moves) - begun, u_of(rate), tactic, move.lr_scale)
        margin = self.margins(trained)
        if margin is None:
            return Answer(margin=0.0, fails=True)
        return Answer(margin=DROP * margin, standard_error=self.standard_error)


def explored(
    margins: Margins,
    *,
    problem: Problem = PROBLEM,
    standard_error: float | None = None,
    first_standard_error: float | None = None,
    saving: float = 0.0,
    **settings: Any,
) -> Search:
    """Runs a search of 40 epochs, or as the settings say. Standard errors are given in tolerated drops."""
    told = [None if error is None else DROP * error for error in (standard_error, first_standard_error)]
    world = Landscape(problem, (), saving=saving, margins=margins, standard_error=told[0], first_standard_error=told[1])
    return search(Frontier(**{"maximal_total_epochs": 40, **settings}), world)


@dataclass(frozen=True)
class Phase:
    """A trial of the climb, or a polish.

    Attributes:
        start: Checkpoint in which it began.
        u: Position of its first epoch.
        tactic: How it trained.
        moves: Its epochs.
        results: Their results.
        is_polish: Whether it belongs to the polish, which anneals from one epoch to the next, not within each.
    """

    start: int | None
    u: float
    tactic: Tactic
    moves: list[Epoch]
    results: list[EpochResult]
    is_polish: bool


def phases(whole: Search) -> list[Phase]:
    """Divides a search into trials of the climb and polishes."""
    found: list[Phase] = []
    for move, result in zip(whole.course.moves[1:], whole.course.results[1:], strict=True):
        if move.start_from is not None and move.tactic is not None:  # not again after a failed epoch
            is_polish = move.lr_scale_at_end is None
            found.append(Phase(move.start_from, u_of(result.requested_rate), move.tactic, [], [], is_polish))
        found[-1].moves.append(move)
        found[-1].results.append(result)
    return found


def trials(whole: Search) -> list[Phase]:
    return [each for each in phases(whole) if not each.is_polish]


def polishes(whole: Search) -> list[Phase]:
    return [each for each in phases(whole) if each.is_polish]


def returned(whole: Search) -> EpochResult:
    assert whole.stop.best is not None
    return whole.course.results[whole.stop.best]


def half_decades(factor: float) -> int:
    return round(math.log(factor, LR_RATIO))


def lr_factors(phases: list[Phase]) -> list[float]:
    return [phase.tactic.lr_factor for phase in phases]


def only_up_to(u: float, beyond: float) -> Any:
    return lambda trained: 0.5 if trained.u <= u + 1e-9 else beyond

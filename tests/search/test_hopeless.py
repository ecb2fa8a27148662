"""Networks that a cut destroys: how soon the frontier strategy leaves a place where its trials stand still."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kedro_aat.budget import Outcome
from kedro_aat.search.attempts import u_of
from kedro_aat.search.frontier import MAXIMAL_RACERS, Frontier
from kedro_aat.search.policy import Problem
from kedro_aat.search.polish import MOST_UNDONE, NUM_LOST, expected_at_end
from kedro_aat.testing.simulated_search import Search
from tests.search.landscapes import (
    DROP,
    FIRST_U,
    RANKINGS,
    Margins,
    Trained,
    explored,
    half_decades,
    lr_factors,
    polishes,
    returned,
    trials,
)

CHOICE = Problem(maximal_rate=0.99, tolerated_drop=DROP, rankings=RANKINGS, can_sample=True, can_distill=True)
NO_CHOICE = Problem(maximal_rate=0.99, tolerated_drop=DROP)
# A network that has lost a class is so far below the budget.
LOST = -12.5
# Epochs of the first trial at a lower place: no other learning rate is tried there before.
USUAL = Frontier().epochs_per_rate


def wavering(trained: Trained) -> float:
    """A margin that nothing improves, with the scatter of a metric on few examples."""
    return LOST + 0.2 * math.sin(5 * trained.number)


def collapsing_above(u: float, then: Margins = wavering) -> Margins:
    return lambda trained: 0.5 if trained.u < u else then(trained)


def num_at_first_target(whole: Search) -> int:
    lower = (n for n, result in enumerate(whole.course.results) if 0 < u_of(result.requested_rate) < FIRST_U - 1e-9)
    return next(lower) - 1


@pytest.mark.parametrize("problem", [CHOICE, NO_CHOICE], ids=["with rankings", "without"])
@pytest.mark.parametrize("standard_error", [None, 0.5])
def test_a_collapse_at_the_first_target_costs_no_more_than_a_race(
    problem: Problem, standard_error: float | None
) -> None:
    whole = explored(collapsing_above(0.3), problem=problem, standard_error=standard_error)
    assert num_at_first_target(whole) <= MAXIMAL_RACERS
    assert whole.stop.outcome is Outcome.WITHIN_BUDGET


def test_twelve_epochs_are_enough_to_find_a_rate_below_a_collapse() -> None:
    whole = explored(collapsing_above(0.3), problem=CHOICE, maximal_total_epochs=12)
    assert 0 < u_of(returned(whole).requested_rate) < 0.3


def test_where_no_learning_rate_matters_the_rankings_race() -> None:
    def margin(trained: Trained) -> float:
        return 0.5 if trained.u < 1 and trained.tactic.ranking == RANKINGS[2] else wavering(trained)

    whole = explored(margin, problem=CHOICE)
    accepted = next(each for each in trials(whole) if each.results[-1].margin >= 0)
    assert accepted.u == pytest.approx(FIRST_U)
    assert accepted.tactic.ranking == RANKINGS[2]


def test_a_ranking_that_collapses_lower_as_well_is_exchanged_there() -> None:
    def margin(trained: Trained) -> float:
        return 0.5 if trained.u < 0.3 and trained.tactic.ranking == RANKINGS[1] else wavering(trained)

    whole = explored(margin, problem=CHOICE)
    assert returned(whole).requested_rate > 0.1
    lower = [each for each in trials(whole) if each.u < FIRST_U - 1e-9]
    assert all(len(each.moves) < USUAL for each in lower[:2] if each.results[-1].margin < 0)


def by_lr(others: Margins) -> Margins:
    """The usual learning rate is far ahead of all others, so that a trial follows the race."""
    return lambda trained: others(trained) if half_decades(trained.tactic.lr_factor) == 1 else 4 * LOST


def test_a_trial_that_stands_still_before_the_first_success_is_given_up_with_its_learning_rate_half_fallen() -> None:
    whole = explored(by_lr(wavering), problem=NO_CHOICE, epochs_per_rate=6)
    (after_race,) = [each for each in trials(whole) if each.u == pytest.approx(FIRST_U) and len(each.moves) > 1][:1]
    assert len(after_race.moves) == 3


@pytest.mark.parametrize("gain", [2.5, 4.0])
def test_one_that_still_gains_enough_is_not(gain: float) -> None:
    whole = explored(by_lr(lambda trained: LOST + gain * trained.age), problem=NO_CHOICE)
    assert max(len(each.moves) for each in trials(whole) if each.u == pytest.approx(FIRST_U)) >= USUAL


def test_a_network_that_recovers_when_the_learning_rate_falls_is_waited_for() -> None:
    """It names one class until the learning rate of its trial has fallen."""

    def margin(trained: Trained) -> float:
        return 0.5 if trained.u < 0.3 or trained.lr_scale < trained.tactic.lr_factor else LOST

    whole = explored(by_lr(margin), problem=NO_CHOICE)
    first = next(each for each in trials(whole) if each.results[-1].margin >= 0)
    assert first.u == pytest.approx(FIRST_U)


def test_a_learning_rate_that_destroys_a_model_that_a_lower_one_mends_is_not_tried_again() -> None:
    """Before the first success the next one is lower, not another ranking."""

    def margin(trained: Trained) -> float:
        steps = half_decades(trained.tactic.lr_factor)
        return 6 * LOST if steps > 1 else -2.5 + 0.2 * trained.age - steps

    climbed = trials(explored(margin, problem=CHOICE))
    tried = [half_decades(factor) for factor in lr_factors(climbed)]
    assert tried.count(2) == 1
    assert tried[:4] == [1, 2, 1, 0]
    assert len({each.tactic.ranking for each in climbed[:4]}) == 1


# The polish


def destroyed_above(u: float, *, but_not_by: Any = None) -> Margins:
    return lambda trained: 2.0 if trained.u < u or trained.tactic.ranking == but_not_by else LOST


def test_rises_that_destroy_the_model_are_undone_a_few_times_and_then_end() -> None:
    whole = explored(destroyed_above(1.25), problem=NO_CHOICE, standard_error=0.3)
    (polish,) = polishes(whole)
    lost = [result for result in polish.results if result.margin < 0]
    assert 0 < len(lost) <= NUM_LOST * MOST_UNDONE
    assert 1.15 < u_of(returned(whole).requested_rate) < 1.25


def test_what_a_rise_removes_next_is_chosen_by_another_ranking() -> None:
    whole = explored(
        destroyed_above(1.25, but_not_by=RANKINGS[1]),
        problem=CHOICE,
        standard_error=0.3,
        tactics={"importance": "l2", "learning_rate_factor": 3, "distillation": True},
        polish_share=0.9,
    )
    assert u_of(returned(whole).requested_rate) > 1.25
    assert "ranked by l2 (global)" in whole.stop.reason
    single = explored(
        destroyed_above(1.25, but_not_by=RANKINGS[1]),
        problem=CHOICE,
        standard_error=0.3,
        tactics={"importance": "l2", "ranking": "local", "learning_rate_factor": 3, "distillation": True},
        polish_share=0.9,
    )
    assert u_of(returned(single).requested_rate) < 1.25
    assert "ranked by l2 (local)" in single.stop.reason


def test_epochs_of_a_destroyed_model_say_nothing_of_the_one_that_was_restored() -> None:
    """Three of them do not change what is expected at its end."""
    state = explored(destroyed_above(1.25), problem=NO_CHOICE, standard_error=0.3).states[-1]
    kept = tuple(result for result in state.polish if result.margin > 0)
    assert len(kept) < len(state.polish)
    expected, _ = expected_at_end(state, state.polish)
    assert expected == pytest.approx(2.0, abs=0.2)

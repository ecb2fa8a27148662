"""The climb of the frontier strategy: how far the next trial goes, how it trains, and when it is given up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from kedro_aat.search.attempts import u_of
from kedro_aat.search.frontier import GROWTH, LEAST_SHRINKING, MOST_SHRINKING, NEAR, NUM_CHALLENGERS, Frontier
from kedro_aat.search.policy import Problem
from kedro_aat.search.tactics import LR_RATIO
from kedro_aat.testing.policies import laws
from kedro_aat.testing.simulated_search import World, search
from kedro_aat.testing.strategies import worlds
from tests.search.landscapes import (
    DROP,
    FAR,
    FIRST_U,
    NEARLY,
    PROBLEM,
    RANKINGS,
    Phase,
    Trained,
    explored,
    half_decades,
    lr_factors,
    only_up_to,
    returned,
    trials,
)


def test_an_easy_success_doubles_the_increment() -> None:
    first, second, third = trials(explored(lambda trained: 0.5))[:3]
    assert GROWTH[1] == 2
    assert second.start == first.results[-1].checkpoint
    assert second.u - first.u == pytest.approx(2 * FIRST_U)
    assert third.u == pytest.approx(min(second.u + 4 * FIRST_U, u_of(PROBLEM.maximal_rate)))


def accepted_after(num_epochs: int) -> Any:
    """Margins of trials that are within budget from an epoch on; the first is at once."""
    return lambda trained: 0.5 if trained.number == 0 or trained.age + 1 >= num_epochs else -0.5


@pytest.mark.parametrize("num_epochs", GROWTH)
def test_a_slower_success_makes_it_grow_less(num_epochs: int) -> None:
    problem = Problem(maximal_rate=0.99, tolerated_drop=DROP, first_target_rate=0.2)
    first, second, third = trials(explored(accepted_after(num_epochs), problem=problem))[:3]
    assert len(second.moves) == num_epochs
    assert third.u - second.u == pytest.approx(GROWTH[num_epochs] * (second.u - first.u))


def test_an_epoch_anneals_to_nothing_over_the_length_of_a_trial() -> None:
    trial = trials(explored(lambda trained: 0.5 if trained.number == 0 else NEARLY, epochs_per_rate=4))[1]
    scales = [(move.lr_scale, move.lr_scale_at_end) for move in trial.moves]
    assert scales[0][0] == trial.tactic.lr_factor
    assert [end for _, end in scales[:-1]] == [start for start, _ in scales[1:]]
    assert 0 < (scales[-1][1] or 0) < 0.01 * trial.tactic.lr_factor
    assert [move.new_optimizer for move in trial.moves] == [True, False, False, False]


def test_rises_in_equal_steps_of_u_within_the_first_epoch() -> None:
    second = trials(explored(lambda trained: 0.5, num_path_steps=4))[1]
    path = second.moves[0].rate_path
    assert path is not None
    assert [u_of(rate) for rate in path] == pytest.approx([FIRST_U * (1 + (step + 1) / 2) for step in range(4)])


def test_a_near_failure_is_continued_at_a_higher_learning_rate() -> None:
    _, failed, challenger = trials(explored(only_up_to(FIRST_U, NEARLY)))[:3]
    assert challenger.u == failed.u
    assert challenger.start == failed.results[-1].checkpoint
    assert challenger.tactic.lr_factor == pytest.approx(failed.tactic.lr_factor * LR_RATIO)


def test_another_ranking_is_not_continued_from_what_the_first_one_cut() -> None:
    problem = Problem(maximal_rate=0.99, tolerated_drop=DROP, rankings=RANKINGS, can_sample=True)
    whole = explored(only_up_to(FIRST_U, NEARLY), problem=problem, tactics={"learning_rate_factor": 3})
    first, failed, challenger = trials(whole)[:3]
    assert challenger.tactic.ranking != failed.tactic.ranking
    assert challenger.start == first.results[-1].checkpoint
    assert challenger.u == failed.u


def test_a_far_failure_shrinks_the_increment_and_begins_at_the_last_success() -> None:
    first, failed, lower = trials(explored(only_up_to(FIRST_U, FAR)))[:3]
    assert lower.start == first.results[-1].checkpoint
    assert lower.tactic == failed.tactic
    assert MOST_SHRINKING - 1e-9 <= (lower.u - first.u) / (failed.u - first.u) <= LEAST_SHRINKING + 1e-9


def test_a_second_far_failure_is_tried_without_the_teacher() -> None:
    """Distillation can make a rare class disappear, which no learning rate brings back."""

    def margin(trained: Trained) -> float:
        return 2 * NEAR if trained.tactic.distill and trained.u > 0.1 else 0.5

    problem = Problem(maximal_rate=0.99, tolerated_drop=DROP, can_distill=True)
    whole = explored(margin, problem=problem)
    assert not trials(whole)[-1].tactic.distill
    assert returned(whole).requested_rate > 0.5
    fixed = explored(margin, problem=problem, tactics={"distillation": True})
    assert all(each.tactic.distill for each in trials(fixed))


def test_what_is_hopeless_is_given_up_at_once_and_what_stops_early_as_well() -> None:
    hopeless = trials(explored(only_up_to(FIRST_U, -100.0)))[1]
    assert len(hopeless.moves) == 1
    recovering = trials(explored(only_up_to(FIRST_U, NEARLY)))[1]
    assert len(recovering.moves) == Frontier().epochs_per_rate


def test_nothing_is_hopeless_before_the_first_success() -> None:
    """The race has shown the best learning rate, and there is nothing yet from which to go on."""
    whole = explored(lambda trained: -100.0 + trained.age)
    assert any(len(each.moves) > 1 for each in trials(whole))


def lengths(phases: list[Phase]) -> list[int]:
    return [len(each.moves) for each in phases]


def test_trials_become_longer_if_that_helps() -> None:
    """Beyond the first success, only the ninth epoch of a trial is within budget."""

    def margin(trained: Trained) -> float:
        return 0.5 if trained.u <= FIRST_U + 1e-9 or trained.age >= 8 else -1.5 + 0.1 * trained.age

    whole = explored(margin, maximal_total_epochs=100)
    longest = max(trials(whole), key=lambda each: len(each.moves))
    assert len(longest.moves) == 9
    assert longest.results[-1].margin >= 0
    usual = Frontier().epochs_per_rate
    assert {usual, 2 * usual, 9} <= set(lengths(trials(whole)))


def test_trials_that_longer_training_does_not_help_stay_short() -> None:
    whole = explored(only_up_to(FIRST_U, -1.5), maximal_total_epochs=100)
    assert lengths(trials(whole)).count(2 * Frontier().epochs_per_rate) <= NUM_CHALLENGERS + 1
    assert max(lengths(trials(whole))) == 2 * Frontier().epochs_per_rate


def test_trials_of_weights_that_regrow_stay_short() -> None:
    """They gain more from the polish, in which the rate rises a little in each epoch."""
    problem = Problem(maximal_rate=0.99, tolerated_drop=DROP, regrows=True)
    whole = explored(only_up_to(FIRST_U, -1.5), problem=problem, maximal_total_epochs=100)
    assert max(lengths(trials(whole))) == Frontier().epochs_per_rate


def test_a_learning_rate_that_did_worse_than_a_lower_one_is_not_tried_again() -> None:
    """At 10 times the learning rate all is worse; rankings would be tried before it again."""

    def margin(trained: Trained) -> float:
        steps = half_decades(trained.tactic.lr_factor)
        return (0.5 if trained.u <= FIRST_U + 1e-9 else NEARLY - 0.01 * trained.u) if steps < 2 else 2 * NEAR

    problem = Problem(maximal_rate=0.99, tolerated_drop=DROP, rankings=RANKINGS, can_sample=True)
    whole = explored(margin, problem=problem, maximal_total_epochs=60)
    assert [half_decades(factor) for factor in lr_factors(trials(whole))].count(2) == 1


@laws
@given(world=worlds)
def test_early_stop_ends_a_trial(world: World) -> None:
    course = search(Frontier(maximal_total_epochs=12, polish_share=0.2), world).course
    for before, move in zip(course.results, course.moves[1:], strict=False):
        assert not before.early_stop or move.new_optimizer

"""The frontier strategy with the goal `accuracy`: the rate is given, and the most accurate model is wanted."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedro_aat.budget import Outcome
from kedro_aat.search.attempts import u_of
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Problem
from kedro_aat.search.polish import LOWEST_POLISH_LR, RECOVERY_LR
from kedro_aat.testing.policies import laws
from kedro_aat.testing.simulated_search import Search, World, search
from kedro_aat.testing.strategies import worlds
from tests.search.landscapes import DROP, Margins, Trained, explored, polishes, returned, trials

RATE = 0.9
PROBLEM = Problem(goal="accuracy", minimal_rate=RATE, maximal_rate=RATE, tolerated_drop=DROP)


def accurate(margins: Margins, **settings: object) -> Search:
    return explored(margins, problem=PROBLEM, **settings)  # type: ignore[arg-type]


def hills(trained: Trained) -> float:
    """Within budget everywhere, and best in the middle of the polish."""
    return 0.5 - 0.01 * abs(trained.number - 20)


def beyond(trained: Trained) -> float:
    """A boundary far below the given rate."""
    return 1 - 2 * trained.u - 1 / (1 + trained.number)


accuracy_worlds = st.builds(
    lambda world: type(world)(
        **{
            **vars(world),
            "problem": Problem(
                **{**dict(world.problem), "goal": "accuracy", "minimal_rate": world.problem.maximal_rate}
            ),
        }
    ),
    worlds,
)
policies = st.sampled_from(
    [
        Frontier(maximal_total_epochs=15),
        Frontier(maximal_total_epochs=12, polish_share=0, epochs_per_rate=1, num_path_steps=3),
        Frontier(maximal_total_epochs=10, polish_share=1),
    ]
)


@laws
@given(world=accuracy_worlds, policy=policies)
def test_returns_the_largest_margin_of_the_accepted_models_at_the_rate(world: World, policy: Frontier) -> None:
    whole = search(policy, world)
    at_rate = [
        result.margin
        for result in whole.course.results[1:]
        if result.margin >= 0 and result.fully_compressed and result.requested_rate >= world.problem.minimal_rate > 0
    ]
    if whole.stop.best is None:
        assert not at_rate
    else:
        assert returned(whole).margin == max(at_rate)
        assert returned(whole).requested_rate == world.problem.minimal_rate


@laws
@given(world=accuracy_worlds, policy=policies)
def test_the_polish_stays_at_the_rate(world: World, policy: Frontier) -> None:
    for polish in polishes(search(policy, world)):
        assert {result.requested_rate for result in polish.results} == {world.problem.minimal_rate}


def test_climbs_to_the_rate_in_steps_and_spends_the_rest_there() -> None:
    whole = accurate(hills)
    rates = [result.requested_rate for result in whole.course.results[1:]]
    assert 0 < rates[0] < RATE
    assert all(before <= after for before, after in pairwise(rates))
    assert rates.count(RATE) > 35
    assert len(rates) == 40
    assert returned(whole).margin == max(
        result.margin for result in whole.course.results if result.requested_rate == RATE
    )
    assert whole.stop.outcome is Outcome.WITHIN_BUDGET


def test_the_learning_rate_of_the_polish_falls_from_that_of_a_trial_to_the_last_epoch() -> None:
    (polish,) = polishes(accurate(hills))
    scales = [move.lr_scale for move in polish.moves]
    assert scales == sorted(scales, reverse=True)
    factor = polish.tactic.lr_factor
    assert (scales[0], scales[-1]) == pytest.approx((RECOVERY_LR * factor, LOWEST_POLISH_LR * factor))


def test_epochs_that_become_cheap_do_not_end_the_fall_of_the_learning_rate_early() -> None:
    (polish,) = polishes(accurate(hills, saving=0.9))
    scales = [move.lr_scale for move in polish.moves]
    assert len(scales) > 60
    assert scales.count(min(scales)) == 1
    assert scales[-1] == pytest.approx(LOWEST_POLISH_LR * polish.tactic.lr_factor)


def test_what_cannot_be_reached_within_budget_is_trained_at_the_rate_nevertheless() -> None:
    whole = accurate(beyond)
    assert all(each.u <= u_of(RATE) for each in trials(whole))
    at_rate = [result for result in whole.course.results if result.requested_rate == RATE]
    assert len(at_rate) >= 0.4 * 40 - 3  # the share of the polish, less the last trial
    assert whole.stop.outcome is Outcome.INFEASIBLE
    nearest = max(at_rate, key=lambda result: result.margin)
    assert whole.stop.reason.startswith("The most accurate of ")
    assert f"{RATE:.4f}" in whole.stop.reason
    assert f"a metric of {nearest.metric:.5g}, and misses the budget by {-nearest.margin:.2g}" in whole.stop.reason


def test_an_epoch_that_failed_keeps_the_rate() -> None:
    whole = accurate(lambda trained: None if trained.number == 30 else hills(trained))
    failed = next(number for number, result in enumerate(whole.course.results) if result.failed)
    assert whole.course.moves[failed + 1].rate_path == (RATE,)
    assert math.isclose(whole.course.results[failed + 1].requested_rate, RATE)

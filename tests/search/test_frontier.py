"""The frontier strategy: the laws of every policy, and decision tables."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given

from kedro_aat.budget import Outcome
from kedro_aat.search import Policy
from kedro_aat.search.frontier import (
    MAXIMAL_RISE,
    NEAR,
    NUM_EXTRA_EPOCHS,
    NUM_RESUMABLE,
    Frontier,
    FrontierState,
    u_of,
)
from kedro_aat.search.policy import Epoch, EpochResult, Problem
from kedro_aat.testing.policies import PolicyContract, laws
from kedro_aat.testing.simulated_search import Answer, Course, Search, World, search
from kedro_aat.testing.strategies import worlds

PROBLEM = Problem(maximal_rate=0.99, tolerated_drop=0.01)
UP, DOWN, FAR_DOWN = 0.005, -0.002, -0.5


@pytest.mark.parametrize(
    "policy",
    [
        Frontier(maximal_total_epochs=15),
        Frontier(maximal_total_epochs=10, polish_share=1),
        Frontier(maximal_total_epochs=12, polish_share=0, epochs_per_rate=1, num_path_steps=1),
        Frontier(maximal_total_epochs=0),
    ],
    ids=lambda policy: f"{policy.maximal_total_epochs} epochs, polish {policy.polish_share}",
)
class TestFrontier(PolicyContract):
    @laws
    @given(world=worlds)
    def test_best_is_the_highest_rate_within_budget(self, policy: Policy, world: World) -> None:
        """It is the best trial; what the polish settles on replaces it, and is within budget as well."""

        def look(state: FrontierState, course: Course) -> None:
            within = [result for result in course.results if result.fully_compressed and result.margin >= 0]
            if state.best is None:
                assert not within or state.polish
                return
            named = course.results[state.best.checkpoint]
            assert named in within
            assert (named.achieved_rate, named.margin) == (state.best.achieved_rate, state.best.margin)
            if not state.polish:
                assert named.achieved_rate == max(result.achieved_rate for result in within)

        search(policy, world, look=look)


def searched(*margins: float | Answer, **changes: Any) -> Search:
    """Runs a search whose first validation and trained epochs get `margins` in turn."""
    answers = tuple(answer if isinstance(answer, Answer) else Answer(margin=answer) for answer in margins)
    return search(Frontier(**{"maximal_total_epochs": 20, **changes}), World(PROBLEM, answers))


def feasible_up_to(rate: float, problem: Problem = PROBLEM, **changes: Any) -> Search:
    world = World(problem, (Answer(margin=0.0),), feasible_up_to=rate)
    return search(Frontier(**{"maximal_total_epochs": 40, **changes}), world)


def begun(whole: Search) -> list[Epoch]:
    """Returns the first epoch of each trial and of the polish."""
    return [move for move in whole.course.moves if move.new_optimizer and move.train]


def targets(whole: Search) -> list[float]:
    """Returns where these epochs lead, in u."""
    return [u_of(move.rate_path[-1]) for move in begun(whole) if move.rate_path]


def returned(whole: Search) -> EpochResult:
    assert whole.stop.best is not None
    return whole.course.results[whole.stop.best]


def test_climbs_faster_after_each_success_at_the_first_epoch() -> None:
    whole = searched(0.01)
    first, second, third = targets(whole)[:3]
    assert first <= Frontier().first_step + 1e-9
    assert second - first > first * 1.5
    assert third == pytest.approx(u_of(PROBLEM.maximal_rate)) or third - second > second - first


def test_rises_in_equal_steps_of_u_within_the_first_epoch() -> None:
    path = begun(searched(0.01))[0].rate_path
    assert path is not None
    assert len(path) == 8
    u = [0.0, *map(u_of, path)]
    assert [later - before for before, later in pairwise(u)] == pytest.approx([u[1]] * 8)


def test_anneals_while_a_trial_recovers_and_abandons_it_when_it_cannot() -> None:
    recovering = searched(0.01, -0.02, -0.012, -0.007, -0.003, UP).course
    assert [move.lr_scale for move in recovering.moves[1:5]] == pytest.approx([0.15 ** (n / 3) for n in range(4)])
    assert [move.new_optimizer for move in recovering.moves[1:6]] == [True, False, False, False, False]
    hopeless = searched(0.01, FAR_DOWN, FAR_DOWN, UP).course
    assert [move.new_optimizer for move in hopeless.moves[1:4]] == [True, False, True]


def test_early_stop_ends_the_trial() -> None:
    whole = searched(0.01, Answer(margin=DOWN, early_stop=True), UP)
    assert whole.course.moves[2].new_optimizer


@pytest.mark.parametrize("epochs_per_rate", [1, 2])
def test_trial_that_may_still_succeed_gets_a_few_epochs_more(epochs_per_rate: int) -> None:
    whole = searched(Answer(margin=UP, fully_compressed=False), epochs_per_rate=epochs_per_rate)
    assert {len(trial.results) for trial in whole.states[-1].trials} == {epochs_per_rate + NUM_EXTRA_EPOCHS}


def test_margin_of_exactly_zero_is_within_budget() -> None:
    whole = searched(0.0)
    assert {trial.accepted for trial in whole.states[-1].trials} == {True}
    assert whole.states[-1].settled is not None
    assert returned(whole).achieved_rate == PROBLEM.maximal_rate


def test_partial_compression_is_never_returned() -> None:
    whole = searched(-0.01, Answer(margin=UP, fully_compressed=False))
    assert whole.stop.outcome is Outcome.INFEASIBLE


def test_a_failed_checkpoint_nearby_is_resumed_and_otherwise_the_best() -> None:
    problem = Problem(maximal_rate=0.99, tolerated_drop=0.05)
    whole = feasible_up_to(0.7, problem, maximal_total_epochs=100, polish_share=0.1)
    trials, resumed = whole.states[-1].trials, []
    for number, trial in enumerate(trials):
        begun_at = trial.results[0].checkpoint
        failed = [other for other in trials[:number] if not other.accepted][-NUM_RESUMABLE:]
        nearest = min(failed, key=lambda other: abs(other.u - trial.u), default=None)
        is_near = nearest is not None and abs(nearest.u - trial.u) <= NEAR
        accepted = [other for other in trials[:number] if other.accepted]
        source = nearest if is_near else max(accepted, key=lambda other: other.u, default=None)
        expected = source.best.checkpoint if source else 0
        assert expected in whole.states[begun_at].needed
        assert whole.course.moves[begun_at].start_from == expected
        resumed.append(is_near)
    assert set(resumed) == {True, False}


def test_polishes_with_a_falling_learning_rate_to_the_last_epoch() -> None:
    whole = feasible_up_to(0.7)
    length = len(whole.states[-1].polish)
    scales = [move.lr_scale for move in whole.course.moves[-length:]]
    assert length >= 0.4 * 40
    assert (scales[0], scales[-1]) == pytest.approx((0.5, 0.02))
    assert scales == sorted(scales, reverse=True)
    assert sum(move.train for move in whole.course.moves) == 40
    assert whole.states[-1].current is None


def test_rises_of_the_polish_shrink_to_nothing_over_its_second_half() -> None:
    whole = searched(0.01, maximal_total_epochs=60, first_step=0.01)
    polish = whole.states[-1].polish
    rises = [u_of(after.requested_rate) - u_of(before.requested_rate) for before, after in pairwise(polish)]
    assert max(rises) == pytest.approx(MAXIMAL_RISE)
    for epoch, rise in enumerate(rises, start=1):
        assert rise <= MAXIMAL_RISE * min(1.0, 2 * (1 - epoch / len(polish))) + 1e-9


def test_other_requests_with_the_mask_that_failed_are_not_trained_on() -> None:
    world = World(PROBLEM, (Answer(margin=0.0),), granularity=2, feasible_up_to=0.3)
    whole = search(Frontier(maximal_total_epochs=30), world)
    failed: dict[float, float] = {}
    for trial in whole.states[-1].trials:
        result = trial.results[0]
        if failed.get(result.achieved_rate, result.requested_rate) != result.requested_rate:
            assert len(trial.results) == 1
        if not trial.accepted:
            failed[result.achieved_rate] = result.requested_rate
    assert failed


def test_other_requests_with_the_mask_that_was_accepted_are_trained_on() -> None:
    answers = tuple(Answer(margin=margin) for margin in (0.01, UP, *[DOWN] * 20))
    whole = search(Frontier(maximal_total_epochs=20, first_step=0.4), World(PROBLEM, answers, granularity=2))
    accepted, second, third = whole.states[-1].trials[:3]
    assert accepted.accepted
    assert [trial.best.achieved_rate for trial in (accepted, second, third)] == [0.5] * 3
    assert [len(trial.results) for trial in (accepted, second, third)] == [1, 2, 1]


@pytest.mark.parametrize("boundary", [0.05, 0.3, 0.6, 0.9, 0.98])
def test_settles_at_the_boundary(boundary: float) -> None:
    best = returned(feasible_up_to(boundary))
    assert best.margin >= 0
    assert u_of(boundary) - u_of(best.achieved_rate) < 0.05


def test_met_at_once_returns_the_maximal_rate() -> None:
    whole = searched(UP)
    assert returned(whole).achieved_rate == pytest.approx(PROBLEM.maximal_rate)
    assert max(result.requested_rate for result in whole.course.results) <= PROBLEM.maximal_rate


def test_never_met_is_infeasible() -> None:
    whole = searched(FAR_DOWN)
    assert whole.stop.outcome is Outcome.INFEASIBLE
    assert whole.stop.best is None


def test_met_only_up_to_the_maximal_rate() -> None:
    problem = Problem(maximal_rate=0.8, tolerated_drop=0.8)
    assert returned(feasible_up_to(0.8, problem)).achieved_rate == pytest.approx(0.8, abs=0.02)


def noisy(z: float, standard_error: float | None, noise: float = 0.004) -> Search:
    """Runs a search with a boundary at u = 1, a slope of two drops per u, and alternating noise."""
    policy, course = Frontier(maximal_total_epochs=40, acceptance_z=z), Course()
    state, states = policy.initial(PROBLEM), [policy.initial(PROBLEM)]
    rate = 0.0
    while isinstance(move := policy.ask(state), Epoch):
        rate = move.rate_path[-1] if move.rate_path else rate
        number = len(course.results)
        margin = 0.01 * (1 - math.exp(2 * (u_of(rate) - 1))) + noise * math.sin(5 * number) * (number > 0)
        result = EpochResult(
            checkpoint=number,
            trained=move.train,
            requested_rate=rate,
            achieved_rate=rate,
            metric=margin,
            margin=margin,
            standard_error=standard_error,
        )
        course.moves.append(move)
        course.results.append(result)
        state = policy.tell(state, result)
        states.append(state)
    return Search(course, states, move)


def test_heavy_noise_does_not_decide() -> None:
    whole = noisy(0.5, 0.003)
    best = u_of(returned(whole).achieved_rate)
    luckiest = max(u_of(result.requested_rate) for result in whole.course.results if result.margin >= 0)
    assert 0.6 < best < 1.0 < luckiest + 0.2


def test_a_lower_z_returns_a_higher_rate() -> None:
    rates = [returned(noisy(z, 0.003)).achieved_rate for z in (0.0, 0.5, 1.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_without_a_standard_error_z_has_no_effect() -> None:
    assert noisy(0.0, None).course == noisy(3.0, None).course


def test_the_first_margin_shows_whether_the_baseline_was_lucky() -> None:
    """A first margin below the drop suggests that the baseline was measured too high, and the reverse."""
    policy = Frontier()

    def offset(margin: float, initial_rate: float = 0.0) -> float:
        first = EpochResult(
            checkpoint=0,
            trained=False,
            requested_rate=initial_rate,
            achieved_rate=initial_rate,
            metric=margin,
            margin=margin,
            standard_error=0.002,
        )
        problem = Problem(tolerated_drop=0.01, initial_rate=initial_rate)
        return policy.tell(policy.initial(problem), first).offset

    assert offset(0.01) == 0
    assert offset(0.012) == pytest.approx(0.1)
    assert offset(0.008) == pytest.approx(-0.1)
    assert offset(0.5) == pytest.approx(0.2)  # no more than noise explains
    assert offset(0.012, initial_rate=0.5) == 0  # not the baseline

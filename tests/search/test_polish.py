"""The polish of the frontier strategy: its rates and learning rates, its reserve, and when it begins anew."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import example, given

from kedro_aat.search.attempts import u_of
from kedro_aat.search.frontier import POLISH_SHARE, POLISH_SHARE_IF_REGROWING, Frontier
from kedro_aat.search.policy import Problem
from kedro_aat.search.polish import (
    CAUTIOUS_Z,
    LOWEST_POLISH_LR,
    MANY_EXAMPLES,
    MAXIMAL_FALL,
    MAXIMAL_RISE,
    NUM_LOST,
    POLISH_LR,
    SHORTEST_POLISH,
    USUAL_Z,
)
from kedro_aat.testing.policies import laws
from kedro_aat.testing.simulated_search import Answer, Search, World, search
from kedro_aat.testing.strategies import worlds
from tests.search.landscapes import DROP, Trained, explored, phases, polishes, returned, trials


def noise(number: int) -> float:
    return 0.3 * math.sin(5 * number)


def noisy(trained: Trained) -> float:
    """A boundary at u = 1, a slope of two drops per u there, and noise."""
    return 1 - math.exp(2 * (trained.u - 1)) + noise(trained.number)


def flat_then_cliff(trained: Trained) -> float:
    return 0.5 if trained.u < 1.2 else -8.0


def test_polishes_with_a_falling_learning_rate_to_the_last_epoch() -> None:
    whole = explored(flat_then_cliff)
    (polish,) = polishes(whole)
    scales = [move.lr_scale for move in polish.moves]
    assert len(scales) >= POLISH_SHARE * 40 - Frontier().epochs_per_rate
    assert sum(move.train for move in whole.course.moves) == 40
    assert (scales[0], scales[-1]) == pytest.approx(
        (POLISH_LR * polish.tactic.lr_factor, LOWEST_POLISH_LR * polish.tactic.lr_factor)
    )
    assert scales == sorted(scales, reverse=True)


def test_begins_at_the_most_compressed_model_that_was_accepted_with_its_tactic() -> None:
    whole = explored(flat_then_cliff)
    best = max((each for each in trials(whole) if each.results[-1].margin >= 0), key=lambda each: each.u)
    (polish,) = polishes(whole)
    assert (polish.start, polish.tactic) == (best.results[-1].checkpoint, best.tactic)
    assert polish.u == pytest.approx(best.u)


def test_without_one_it_begins_at_the_trial_that_came_nearest() -> None:
    whole = explored(lambda trained: -0.5 - trained.u)
    nearest = max(
        trials(whole), key=lambda each: (max(result.margin for result in each.results), -each.tactic.lr_factor)
    )
    assert polishes(whole)[0].start == nearest.results[-1].checkpoint
    assert polishes(whole)[0].u == pytest.approx(nearest.u)


@laws
@given(world=worlds)
@example(
    world=World(  # a rise destroys a model that was kept, which is then restored
        Problem(minimal_rate=0.0, maximal_rate=0.48, tolerated_drop=0.0, first_target_rate=0.5),
        (Answer(margin=0.01),),
        granularity=8,
        feasible_up_to=0.25,
    )
)
def test_what_was_cut_does_not_learn_again(world: World) -> None:
    """The rate never falls below that of the model that is trained on, unless the problem says that it may.

    That model is the one of the epoch before, or of the checkpoint that is restored.
    """
    whole = search(Frontier(maximal_total_epochs=15), world)
    for polish in polishes(whole):
        for before, move, after in zip(polish.results, polish.moves[1:], polish.results[1:], strict=False):
            trained_on = before if move.start_from is None else whole.course.results[move.start_from]
            may_fall = before.failed or world.problem.regrows
            assert may_fall or after.requested_rate >= trained_on.requested_rate - 1e-12


@pytest.mark.parametrize("num_scarce", [3, 100])
def test_the_rate_does_not_rise_before_a_model_was_kept(num_scarce: int) -> None:
    """A rise that destroys the model could not be undone."""

    def margin(trained: Trained) -> float:
        return -2.7 if trained.u > 1.3 else 0.02 if trained.age <= num_scarce else 0.7

    polish = polishes(explored(margin, standard_error=0.3))[0]
    begun, *later = [result.requested_rate for result in polish.results]
    assert later[: num_scarce - 1] == [begun] * len(later[: num_scarce - 1])
    assert (max(later) > begun) == (len(later) > num_scarce)


def test_an_epoch_that_failed_does_not_change_its_tactic() -> None:
    """The checkpoint to which the model returns may be that of a trial with another tactic."""
    whole = explored(
        lambda trained: None if trained.lr_scale < 0.7 and trained.number < 20 else flat_then_cliff(trained)
    )
    (polish,) = polishes(whole)
    again = [move.tactic for move, before in zip(polish.moves[1:], polish.results, strict=False) if before.failed]
    assert again
    assert set(again) == {polish.tactic}


@laws
@given(world=worlds)
def test_a_learning_rate_of_a_polish_never_rises(world: World) -> None:
    for polish in polishes(search(Frontier(maximal_total_epochs=15), world)):
        scales = [move.lr_scale for move in polish.moves]
        assert scales == sorted(scales, reverse=True)
        assert scales[-1] >= LOWEST_POLISH_LR * polish.tactic.lr_factor * (1 - 1e-9)


@pytest.mark.parametrize("saving", [0.5, 0.9])
def test_cheap_epochs_allow_more_of_them(saving: float) -> None:
    whole = explored(lambda trained: 1 - math.exp(2 * (trained.u - 1.5)), saving=saving)
    results = [result for result in whole.course.results if result.trained]
    assert len(results) > 45
    assert 30 <= sum(result.cost for result in results) <= 40 + 1e-9


def test_epochs_that_become_cheap_neither_lower_the_rate_nor_the_learning_rate_further() -> None:
    """The polish begins at rate 0, where an epoch costs most, so it may have more left than were planned."""
    (polish,) = polishes(explored(lambda trained: 1.1 - trained.u, saving=0.9, polish_share=1))
    found = [result.requested_rate for result in polish.results]
    assert len(found) >= 40
    assert found == sorted(found)
    assert polish.moves[-1].lr_scale == pytest.approx(LOWEST_POLISH_LR * polish.tactic.lr_factor)


@pytest.mark.parametrize("regrows", [True, False])
def test_falls_where_what_was_cut_learns_again(regrows: bool) -> None:
    problem = Problem(maximal_rate=0.99, tolerated_drop=DROP, regrows=regrows)
    whole = explored(
        lambda trained: 0.5 if trained.u < (1.5 if trained.number < 24 else 1.0) else -1.0, problem=problem
    )
    falls = [
        u_of(before.requested_rate) - u_of(after.requested_rate)
        for polish in polishes(whole)
        for before, after in pairwise(polish.results)
    ]
    assert (max(falls) > 0) == regrows
    assert max(falls) <= MAXIMAL_FALL + 1e-9


def test_rises_shrink_to_nothing_over_the_second_half() -> None:
    problem = Problem(maximal_rate=0.9999, tolerated_drop=DROP, first_target_rate=0.1)
    whole = explored(lambda trained: 0.9, problem=problem, polish_share=0.9)
    (polish,) = polishes(whole)
    u, num = [u_of(result.requested_rate) for result in polish.results], len(polish.results)
    rises = [after - before for before, after in pairwise(u)]
    assert max(rises) == pytest.approx(MAXIMAL_RISE)
    for epoch, rise in enumerate(rises, start=1):
        assert rise <= MAXIMAL_RISE * min(1.0, 2 * (1 - epoch / num)) + 1e-9


def test_one_that_fails_begins_anew_lower() -> None:
    """The last epochs of the climb were lucky: the polish cannot repeat them above u = 0.9."""

    def margin(trained: Trained) -> float:
        lucky = trained.number < 20
        return 0.2 if trained.u < (1.5 if lucky else 0.9) else -0.6 if trained.u < 1.5 else -3.0

    whole = explored(margin, standard_error=0.1)
    first, *others = polishes(whole)
    assert others
    for before, after in pairwise([first, *others]):
        assert len(before.moves) * 2 >= len(before.moves) + len(after.moves)
        assert len(after.moves) >= SHORTEST_POLISH
        assert after.u < before.u
        assert after.start in {each.results[-1].checkpoint for each in trials(whole)}
    assert returned(whole).margin >= 0


def test_without_any_success_it_begins_anew_from_the_uncompressed_model() -> None:
    whole = explored(lambda trained: 0.5 if trained.u < 0.2 else -0.8, standard_error=0.1)
    assert not any(each.results[-1].margin >= 0 for each in trials(whole))
    assert polishes(whole)[-1].start == 0
    assert returned(whole).margin >= 0


def test_a_rise_that_destroys_the_model_is_undone() -> None:
    """Filters that come back know nothing, so a lower rate alone would not help."""
    whole = explored(lambda trained: 1.5 if trained.u < 1.25 else -12.0, standard_error=0.4)
    (polish,) = polishes(whole)
    undone = [(move, move.start_from) for move in polish.moves[1:] if move.start_from is not None]
    assert undone
    for move, checkpoint in undone:
        kept = whole.course.results[checkpoint]
        assert kept.margin > 0
        assert move.rate_path == (kept.requested_rate,)
    lost = [result for result in polish.results if result.margin < 0]
    assert len(lost) <= NUM_LOST * (1 + len(undone))


def test_one_that_keeps_a_model_does_not_begin_anew() -> None:
    """Not even if nothing is expected to be kept any more."""
    worse_later = explored(lambda trained: 0.5 if trained.u < 1.2 and trained.number < 28 else -1.0)
    assert len(polishes(worse_later)) == 1
    assert returned(worse_later).margin > 0


# The reserve


def rates(whole: Search) -> list[float]:
    return [result.requested_rate for result in whole.course.results]


@pytest.mark.parametrize("first", [None, 0.001, 3.0])
def test_the_reserve_is_that_of_the_epochs_seen_not_of_the_first_validation(first: float | None) -> None:
    """The baseline that is compared with itself has nearly no standard error."""
    expected = explored(noisy, standard_error=0.3, first_standard_error=0.3)
    assert rates(explored(noisy, standard_error=0.3, first_standard_error=first)) == rates(expected)


def test_larger_standard_errors_keep_more_in_reserve() -> None:
    returned_rates = [returned(explored(noisy, standard_error=error)).requested_rate for error in (0.0, 0.3, 0.6)]
    assert returned_rates == sorted(returned_rates, reverse=True)
    assert returned_rates[0] > returned_rates[-1]


@pytest.mark.parametrize("standard_error", [0.3, None])
def test_a_lower_z_returns_a_higher_rate(standard_error: float | None) -> None:
    """Without standard errors, the scatter of the margins takes their place."""
    found = [
        returned(explored(noisy, standard_error=standard_error, acceptance_z=z)).requested_rate for z in (0.0, 0.5, 2.0)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


@pytest.mark.parametrize(
    ("standard_error", "num_validation", "z"),
    [
        (0.3, None, USUAL_Z),
        (0.3, 100, USUAL_Z),
        (None, MANY_EXAMPLES, USUAL_Z),
        (None, MANY_EXAMPLES - 1, CAUTIOUS_Z),
        (None, None, CAUTIOUS_Z),
    ],
)
def test_the_default_of_z_depends_on_what_is_known(
    standard_error: float | None, num_validation: int | None, z: float
) -> None:
    problem = Problem(maximal_rate=0.99, tolerated_drop=DROP, num_validation=num_validation)
    default, chosen = (
        explored(noisy, problem=problem, standard_error=standard_error, acceptance_z=each) for each in (None, z)
    )
    assert rates(default) == rates(chosen)


def test_single_weights_have_a_longer_polish() -> None:
    for regrows, share in ((False, POLISH_SHARE), (True, POLISH_SHARE_IF_REGROWING)):
        problem = Problem(maximal_rate=0.99, tolerated_drop=DROP, regrows=regrows)
        default, chosen = (explored(noisy, problem=problem, polish_share=each) for each in (None, share))
        assert rates(default) == rates(chosen)


def test_margins_without_scatter_need_no_reserve() -> None:
    first, second = (explored(flat_then_cliff, acceptance_z=z) for z in (0.0, 3.0))
    assert rates(first) == rates(second)


def test_heavy_noise_does_not_decide() -> None:
    whole = explored(noisy, standard_error=0.3)
    best = u_of(returned(whole).requested_rate)
    assert 0.5 < best < 1.05


def test_a_model_is_kept_only_with_its_reserve() -> None:
    """A margin above 0 that the standard error explains is not kept by the polish."""
    whole = explored(lambda trained: 0.05 if trained.u < 1.5 else -8.0, standard_error=0.5, acceptance_z=1)
    (polish, *_) = polishes(whole)
    before = next(state for state in whole.states if state.polish)
    assert all(result.margin >= 0 for result in polish.results)
    assert [phase.is_polish for phase in phases(whole)].count(True) >= 1
    assert whole.states[-1].safe == before.safe


# Single weights, which learn again when they come back

REGROWING = Problem(maximal_rate=0.998, tolerated_drop=DROP, regrows=True, first_target_rate=0.7, can_distill=True)
NUM_CLIMBED = round((1 - POLISH_SHARE_IF_REGROWING) * 40)


def test_falls_in_time_where_the_climb_was_lucky_far_above_the_boundary() -> None:
    """What is returned is near the boundary, not the model of the race."""

    def margin(trained: Trained) -> float:
        if trained.number < NUM_CLIMBED:
            return 1.0 if trained.u < 1.3 else 0.05 if trained.u < 4.5 else -9.0
        return 1 - math.exp(0.7 * (trained.u - 3))

    whole = explored(margin, problem=REGROWING, standard_error=0.4)
    assert polishes(whole)[0].u > 4
    assert 2 < u_of(returned(whole).requested_rate) < 3


def test_begins_anew_from_the_model_with_its_reserve_where_a_fall_gains_nothing() -> None:
    """What the polish has learned wrong stays so at any rate."""

    def margin(trained: Trained) -> float:
        if trained.number < NUM_CLIMBED:
            return 0.9 if trained.u < 1.3 else 0.05 if trained.u < 4 else -9.0
        is_first_polish = trained.number - trained.age < NUM_CLIMBED + Frontier().epochs_per_rate
        return -0.1 if is_first_polish else 0.9 - 0.3 * (trained.u - 1.2)

    whole = explored(margin, problem=REGROWING, standard_error=0.4)
    first, second = polishes(whole)
    assert len(first.moves) >= len(second.moves)
    assert second.moves[0].lr_scale == pytest.approx(first.moves[0].lr_scale)
    assert u_of(REGROWING.first_target_rate) <= second.u < first.u
    assert returned(whole).requested_rate > second.results[0].requested_rate


@laws
@given(world=worlds)
def test_does_not_fall_below_the_model_that_is_returned_otherwise(world: World) -> None:
    whole = search(Frontier(maximal_total_epochs=15), world)
    for state in whole.states:
        if len(state.polish) < 2 or state.safe is None or state.safe.checkpoint >= state.polish[0].checkpoint:
            continue
        before, latest = state.polish[-2:]
        lowest = min(before.requested_rate, state.safe.requested_rate)
        assert before.failed or latest.requested_rate >= lowest - 1e-9


def test_the_polish_keeps_the_teacher_of_the_model_that_was_accepted() -> None:
    """Trials that failed far below the budget without it say nothing against it."""
    whole = explored(
        lambda trained: 0.5 if trained.u < 1.3 else -8.0 if trained.tactic.distill else -7.0, problem=REGROWING
    )
    assert {trial.tactic.distill for trial in trials(whole)} == {True, False}
    assert polishes(whole)[0].tactic.distill

"""The frontier strategy: the laws of every policy, its climb, and what it returns."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given

from kedro_aat.budget import Outcome
from kedro_aat.errors import ConfigurationError
from kedro_aat.search.attempts import u_of
from kedro_aat.search.frontier import (
    FIRST_LR_FACTOR,
    GROWTH,
    LEAST_SHRINKING,
    MAXIMAL_RACERS,
    MOST_SHRINKING,
    NEAR,
    NUM_CHALLENGERS,
    RESUMABLE,
    Frontier,
)
from kedro_aat.search.policy import Epoch, Problem
from kedro_aat.search.polish import POLISH_LR
from kedro_aat.search.tactics import LR_RATIO, Ranking, Tactics
from kedro_aat.testing.policies import PolicyContract, laws
from kedro_aat.testing.simulated_search import Answer, World, search
from kedro_aat.testing.strategies import worlds
from tests.search.landscapes import (
    DROP,
    PROBLEM,
    RANKINGS,
    Margins,
    Phase,
    Trained,
    explored,
    polishes,
    returned,
    trials,
)

# Margins of a trial that came near, that has learned enough to go on from, and that had no chance.
NEARLY, FAR = RESUMABLE / 2, NEAR - 3
FIRST_U = u_of(PROBLEM.first_target_rate)
TACTICS = [
    Tactics(),
    Tactics.model_validate({"importance": "taylor", "learning_rate_factor": [1, 3, 10, 30]}),
    Tactics.model_validate({"ranking": "global", "distillation": [False, True]}),
    Tactics.model_validate({"importance": ["taylor", "l2"], "learning_rate_factor": 0.5, "distillation": False}),
]


@pytest.mark.parametrize(
    "policy",
    [
        Frontier(maximal_total_epochs=15),
        Frontier(maximal_total_epochs=10, polish_share=1),
        Frontier(maximal_total_epochs=12, polish_share=0, epochs_per_rate=1, num_path_steps=3, tactics=TACTICS[1]),
        Frontier(maximal_total_epochs=0),
    ],
    ids=lambda policy: f"{policy.maximal_total_epochs} epochs, polish {policy.polish_share}",
)
class TestFrontier(PolicyContract):
    pass


def by_lr(margins: dict[int, float]) -> Margins:
    """Margins by the number of half decades between a learning-rate factor and 1; all others are far."""
    return lambda trained: margins.get(half_decades(trained.tactic.lr_factor), FAR)


def half_decades(factor: float) -> int:
    return round(math.log(factor, LR_RATIO))


def lr_factors(phases: list[Phase]) -> list[float]:
    return [phase.tactic.lr_factor for phase in phases]


# The first questions


@pytest.mark.parametrize(("initial_rate", "path"), [(0.0, None), (0.3, (0.0,))])
def test_the_first_question_validates_the_uncompressed_model(initial_rate: float, path: tuple[float] | None) -> None:
    policy = Frontier()
    first = policy.ask(policy.initial(Problem(initial_rate=initial_rate)))
    assert first == Epoch(train=False, rate_path=path, new_optimizer=True)


@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_the_first_trial_goes_to_the_first_target_with_a_raised_learning_rate(rate: float) -> None:
    problem = Problem(maximal_rate=0.99, tolerated_drop=DROP, first_target_rate=rate)
    first = trials(explored(lambda trained: 0.5, problem=problem))[0]
    assert first.start == 0
    assert first.u == pytest.approx(u_of(rate))
    assert first.tactic.lr_factor == FIRST_LR_FACTOR == pytest.approx(math.sqrt(10))
    assert len(first.moves) == 1


# The race


def raced(margins: Any, **settings: Any) -> list[Phase]:
    """Returns the first trials, up to the first that begins elsewhere or goes elsewhere."""
    climbed = trials(explored(margins, **settings))
    num = next((number for number, each in enumerate(climbed) if (each.start, each.u) != (0, climbed[0].u)), None)
    return climbed[:num]


def test_a_first_trial_within_budget_ends_the_race() -> None:
    assert lr_factors(raced(lambda trained: 0.5)) == [FIRST_LR_FACTOR]


def test_the_race_goes_up_while_the_learning_rate_helps() -> None:
    factors = lr_factors(raced(by_lr({1: -4, 2: -2, 3: 0.5})))
    assert factors == pytest.approx([FIRST_LR_FACTOR * LR_RATIO**n for n in range(3)])


def test_a_winner_of_the_race_is_climbed_from_with_its_learning_rate() -> None:
    after = trials(explored(by_lr({1: -4, 2: 0.5})))[2]
    assert after.tactic.lr_factor == pytest.approx(FIRST_LR_FACTOR * LR_RATIO)
    assert after.start == 2
    assert after.u > FIRST_U


def test_a_race_that_came_near_does_not_look_below() -> None:
    whole = explored(by_lr({1: NEARLY, 2: NEARLY - 1}), maximal_total_epochs=20)
    assert lr_factors(trials(whole)[:2]) == pytest.approx([FIRST_LR_FACTOR, FIRST_LR_FACTOR * LR_RATIO])
    next_one = trials(whole)[2]
    assert next_one.tactic.lr_factor == FIRST_LR_FACTOR
    assert (next_one.start, next_one.u) == (1, trials(whole)[0].u)  # it goes on with what came near


@pytest.mark.parametrize(
    ("margins", "tried"),
    [
        ({1: FAR + 1}, [1, 2, 0]),
        ({0: FAR + 1, 2: FAR - 1}, [1, 2, 0, -1]),
        ({2: FAR + 1, 3: FAR - 1}, [1, 2, 3]),
        ({0: 0.5}, [1, 2, 0]),
    ],
)
def test_a_race_that_came_nowhere_near_looks_above_and_below(margins: dict[int, float], tried: list[int]) -> None:
    racers = [half_decades(factor) for factor in lr_factors(raced(by_lr(margins)))]
    assert racers[: len(tried)] == tried
    assert len(tried) <= MAXIMAL_RACERS


# The climb


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


def only_up_to(u: float, beyond: float) -> Any:
    return lambda trained: 0.5 if trained.u <= u + 1e-9 else beyond


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


# Divergence


def diverging_from(lr_factor: float, otherwise: float = NEARLY) -> Any:
    return lambda trained: None if trained.tactic.lr_factor >= lr_factor * 0.99 else otherwise


@pytest.mark.parametrize("steps", [0, -1, -2])
def test_a_race_in_which_trials_diverge_goes_down_until_one_does_not(steps: int) -> None:
    climbed = trials(explored(diverging_from(FIRST_LR_FACTOR * LR_RATIO**steps)))
    tried = [half_decades(factor) for factor in lr_factors(climbed)]
    assert tried[: 2 - steps] == [1 - n for n in range(2 - steps)]


def never_raised_to_one_that_diverged(climbed: list[Phase]) -> bool:
    diverged, before = math.inf, math.inf
    for each in climbed:
        factor = each.tactic.lr_factor
        if factor > before and factor >= diverged * (1 - 1e-9):
            return False
        before = factor
        diverged = min(diverged, factor) if each.results[-1].failed else diverged
    return True


@pytest.mark.parametrize("beyond", [NEARLY, FAR])
@pytest.mark.parametrize("steps", [-1, 0, 1, 2])
def test_a_learning_rate_is_not_raised_to_one_that_diverged(steps: int, beyond: float) -> None:
    limit = FIRST_LR_FACTOR * LR_RATIO**steps
    whole = explored(lambda trained: diverging_from(limit, only_up_to(0.9, beyond)(trained))(trained))
    assert never_raised_to_one_that_diverged(trials(whole))


def test_after_an_epoch_of_the_polish_that_failed_the_rate_is_lower() -> None:
    def margin(trained: Trained) -> float | None:
        return None if trained.number == 30 else only_up_to(1.5, FAR)(trained)

    whole = explored(margin)
    assert whole.course.results[31].failed
    assert u_of(whole.course.results[32].requested_rate) < u_of(whole.course.results[30].requested_rate)
    assert whole.course.moves[32].new_optimizer
    assert whole.stop.outcome is Outcome.WITHIN_BUDGET


# Tactics that the user fixed


@pytest.mark.parametrize("tactics", TACTICS, ids=str)
@laws
@given(world=worlds)
def test_tactics_of_the_user_are_respected_in_every_question(tactics: Tactics, world: World) -> None:
    whole = search(Frontier(maximal_total_epochs=15, tactics=tactics), world)
    offered = tactics.rankings(world.problem.rankings)
    if not world.problem.can_sample:  # taylor is used only if nothing else is allowed
        offered = tuple(each for each in offered if each.importance != "taylor") or offered
    used = [move.tactic for move in whole.course.moves if move.tactic is not None]
    assert {tactic.ranking for tactic in used} <= set(offered)
    assert not tactics.learning_rate_factor or {tactic.lr_factor for tactic in used} <= {*tactics.learning_rate_factor}
    assert not tactics.distillation or {tactic.distill for tactic in used} <= {*tactics.distillation}


def test_everything_that_is_allowed_is_tried_where_trials_fail_nearly() -> None:
    problem = Problem(
        maximal_rate=0.99, tolerated_drop=DROP, rankings=RANKINGS, can_sample=True, can_distill=True, num_validation=99
    )
    climbed = trials(explored(only_up_to(FIRST_U, NEARLY), problem=problem, maximal_total_epochs=120))
    assert {each.tactic.ranking for each in climbed} == {*RANKINGS}
    assert len({each.tactic.lr_factor for each in climbed}) > 1
    without = problem.model_copy(update={"can_sample": False})
    climbed = trials(explored(only_up_to(FIRST_U, NEARLY), problem=without, maximal_total_epochs=120))
    assert {each.tactic.ranking for each in climbed} == {*RANKINGS[:2]}


def test_a_ranking_is_fixed_by_a_single_value() -> None:
    problem = Problem(maximal_rate=0.99, tolerated_drop=DROP, rankings=RANKINGS, can_sample=True)
    settings = Frontier.model_validate({"tactics": {"importance": "taylor", "learning_rate_factor": [1, 3, 10, 30]}})
    climbed = trials(explored(only_up_to(FIRST_U, NEARLY), problem=problem, tactics=settings.tactics))
    assert {each.tactic.ranking for each in climbed} == {Ranking(importance="taylor", ranking="global")}
    assert {*lr_factors(climbed)} <= {1, 3, 10, 30}


def test_tactics_that_leave_nothing_to_try_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match="tactics"):
        Frontier(tactics=Tactics(importance=("unknown",))).initial(Problem(rankings=RANKINGS))


# What is returned


def slope(steepness: float, boundary: float) -> Any:
    return lambda trained: 1 - math.exp(steepness * (trained.u - boundary))


@pytest.mark.parametrize("boundary", [0.3, 0.8, 1.5, 3.0])
def test_settles_near_the_boundary(boundary: float) -> None:
    best = returned(explored(slope(2, boundary), maximal_total_epochs=60))
    assert best.margin >= 0
    assert 0 <= boundary - u_of(best.requested_rate) < 0.2


def test_met_at_once_returns_the_maximal_rate() -> None:
    whole = explored(lambda trained: 0.9)
    assert returned(whole).requested_rate == pytest.approx(PROBLEM.maximal_rate)
    assert max(result.requested_rate for result in whole.course.results) <= PROBLEM.maximal_rate


def test_the_reason_names_the_tactic_of_the_model_that_is_returned() -> None:
    tactics = {"importance": "l2", "ranking": "global", "learning_rate_factor": 3, "distillation": True}
    problem = Problem(maximal_rate=0.99, tolerated_drop=DROP, rankings=RANKINGS, can_distill=True)
    whole = explored(lambda trained: 0.9, problem=problem, tactics=tactics)
    words = "times the learning rate, ranked by l2 (global), with the baseline as teacher."
    assert f"The model was last trained at up to {3 * POLISH_LR:.3g} {words}" in whole.stop.reason
    assert max(polishes(whole)[-1].moves, key=lambda move: move.lr_scale).lr_scale == pytest.approx(3 * POLISH_LR)
    assert "A rate of 0.9900 was reached, the highest one." in whole.stop.reason
    assert "teacher" not in explored(lambda trained: 0.9).stop.reason


def test_never_met_is_infeasible() -> None:
    whole = explored(lambda trained: FAR)
    assert whole.stop.outcome is Outcome.INFEASIBLE
    assert whole.stop.best is None
    assert whole.states[-1].num_epochs <= 40


def test_partial_compression_is_never_returned() -> None:
    answers = (Answer(margin=DROP), Answer(margin=DROP, fully_compressed=False))
    whole = search(Frontier(maximal_total_epochs=3), World(PROBLEM, answers))
    assert whole.stop.best is None or returned(whole).fully_compressed


@laws
@given(world=worlds)
def test_a_model_that_was_found_is_replaced_but_not_lost(world: World) -> None:
    states = search(Frontier(maximal_total_epochs=15), world).states
    for before, after in pairwise(states):
        assert before.returned is None or after.returned is not None


def test_a_polish_that_fell_to_rate_0_returns_what_the_climb_found() -> None:
    def margin(trained: Trained) -> float | None:
        return None if trained.number >= 18 and trained.u > 0 else only_up_to(FIRST_U, FAR)(trained)

    whole = explored(margin)
    assert any(result.requested_rate == 0 for result in polishes(whole)[-1].results)
    assert returned(whole).requested_rate > 0


def test_within_a_polish_the_most_compressed_model_that_kept_its_reserve_is_returned() -> None:
    whole = explored(slope(2, 1.0), standard_error=0.1)
    num_polished = len(polishes(whole)[-1].moves)
    kept = [state.safe.requested_rate for state in whole.states[-num_polished:] if state.safe is not None]
    assert kept == sorted(kept)
    assert returned(whole).requested_rate == kept[-1]


@laws
@given(world=worlds)
def test_margins_of_any_size_end_in_finite_numbers(world: World) -> None:
    """A budget of no drop, and a metric of any scale."""
    problem = world.problem.model_copy(update={"tolerated_drop": 0.0})
    whole = search(Frontier(maximal_total_epochs=12), World(problem, world.answers))
    assert all(math.isfinite(rate) for move in whole.course.moves for rate in move.rate_path or ())

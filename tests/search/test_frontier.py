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
    MAXIMAL_RACERS,
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
    FAR,
    FIRST_U,
    NEARLY,
    PROBLEM,
    RANKINGS,
    Margins,
    Phase,
    Trained,
    explored,
    half_decades,
    lr_factors,
    only_up_to,
    polishes,
    returned,
    trials,
)

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


def test_a_polish_that_falls_at_the_end_stays_within_the_epochs() -> None:
    """An epoch at a lower rate costs more than the one before, and only so much is left for one like that."""
    policy = Frontier(maximal_total_epochs=10, epochs_per_rate=3, num_path_steps=1, polish_share=1.0)
    problem = Problem(minimal_rate=0.38, maximal_rate=0.69, tolerated_drop=0.0, first_target_rate=0.5, regrows=True)
    answers = (Answer(margin=0.01, achieved_offset=-0.02),)
    world = World(problem, answers, granularity=8, feasible_up_to=0.5989, saving=0.9)
    results = search(policy, world, limit=100).course.results
    assert 9 < sum(result.cost for result in results) <= 10

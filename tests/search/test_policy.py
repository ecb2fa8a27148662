"""What all policies share: the problem, the trials that are kept, and how a search begins."""

from __future__ import annotations

import pytest

from kedro_aat.errors import ConfigurationError
from kedro_aat.search import Policy
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import (
    Epoch,
    EpochResult,
    Problem,
    SearchState,
    Trial,
    with_epochs,
    with_trial,
    worth_returning,
)
from kedro_aat.search.stepping import EarlyExit, Interpolate, UniformDecrease

POLICIES: list[Policy] = [EarlyExit(), UniformDecrease(), Interpolate(), Frontier()]


def result(checkpoint: int, rate: float, margin: float, *, fully_compressed: bool = True) -> EpochResult:
    return EpochResult(
        checkpoint=checkpoint,
        trained=True,
        requested_rate=rate,
        achieved_rate=rate,
        metric=margin,
        margin=margin,
        fully_compressed=fully_compressed,
    )


def test_maximal_rate_is_at_least_the_minimal_one() -> None:
    assert Problem(minimal_rate=0.5, maximal_rate=0.5).maximal_rate == 0.5
    with pytest.raises(ConfigurationError, match=r"maximal_rate: .*at least minimal_rate \(0.5\), but got 0.4"):
        Problem.model_validate({"minimal_rate": 0.5, "maximal_rate": 0.4})


def test_one_trial_is_kept_per_requested_rate() -> None:
    trials = with_trial((), result(0, 0.5, 0.01))
    trials = with_trial(trials, result(1, 0.6, -0.01))
    assert [trial.checkpoint for trial in trials] == [0, 1]
    assert with_trial(trials, result(2, 0.6, -0.02)) == trials
    assert with_trial(trials, result(2, 0.6, -0.01)) == trials
    assert with_trial(trials, result(2, 0.6, 0.02, fully_compressed=False)) == trials
    assert with_trial(trials, result(2, 0.6, 0.02)) == (trials[0], Trial.from_result(result(2, 0.6, 0.02)))


def trial(rate: float, margin: float) -> Trial:
    return Trial.from_result(result(0, rate, margin))


def test_trials_within_budget_are_ordered_by_rate_and_others_by_margin() -> None:
    ascending = [trial(0.9, -0.02), trial(0.1, -0.01), trial(0.3, 0.02), trial(0.5, 0.0), trial(0.5, 0.01)]
    assert sorted(ascending, key=lambda each: each.merit) == ascending


def test_best_is_returned_if_it_is_compressed_as_far_as_is_asked_for() -> None:
    least = trial(0.3, 0.0)
    assert SearchState(candidates=(least, trial(0.9, -0.01))).best == least
    assert worth_returning(least, Problem(minimal_rate=0.3)) == least
    assert worth_returning(least, Problem(minimal_rate=0.31)) is None
    assert worth_returning(trial(0.0, 0.01), Problem()) is None
    assert worth_returning(None, Problem()) is None


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_limit_on_the_epochs_can_be_replaced(policy: Policy) -> None:
    limited = with_epochs(policy, 7)
    assert limited.maximal_total_epochs == 7
    assert limited == type(policy)(maximal_total_epochs=7)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_search_begins_with_a_validation_and_survives_json(policy: Policy) -> None:
    state = policy.initial(Problem(initial_rate=0.25))
    path = (0.0,) if policy.kind == "frontier" else None  # it starts trials from the uncompressed model
    assert policy.ask(state) == Epoch(train=False, rate_path=path, new_optimizer=True)  # type: ignore[arg-type]
    state = policy.tell(state, result(0, 0.25, -0.01))  # type: ignore[arg-type]
    assert policy.load(state.model_dump_json()) == state


def test_early_exit_ends_exactly_on_the_budget() -> None:
    policy = EarlyExit()
    state = policy.tell(policy.initial(Problem()), result(0, 0.5, 0.0))
    stop = policy.ask(state)
    assert not isinstance(stop, Epoch)
    assert (stop.best, stop.reason) == (0, "The metric came within budget.")

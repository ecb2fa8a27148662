"""Simulated scores of baseline and model on the same examples, and what tactics change in a simulated problem."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.simulated_validation import Paired
from benchmarks.simulator import GOOD_LR, OFFERED, Effects, SimulatedProblem, SimulatedRun, posed, with_tactics
from kedro_aat.search.policy import Epoch
from kedro_aat.search.tactics import Ranking, Tactic
from tests.benchmarks.simulated_problems import problem

BEST, WORSE = Ranking(importance="l2"), Ranking(importance="taylor")


def measured_drops(true_drop: float, *, num_epochs: int, num_runs: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Measured drops and told standard errors of models in a lineage, (R, K) each; drop 0.01, N 2,000."""
    drops, errors = [], []
    for seed in range(num_runs):
        validation = Paired(0.9, 0.01, 2000, np.random.default_rng(seed))
        sources = [None, *range(num_epochs - 1)]
        measured = [validation.measure(0.9 - true_drop, source, is_same=False) for source in sources]
        drops.append([validation.baseline - accuracy for accuracy, _ in measured])
        errors.append([error for _, error in measured])
    return np.array(drops), np.array(errors)


@pytest.mark.parametrize(("true_drop", "discordance"), [(0.0, 0.02), (0.01, 0.02), (0.03, 0.04), (-0.02, 0.03)])
def test_measured_drops_are_unbiased_and_as_uncertain_as_told(true_drop: float, discordance: float) -> None:
    drops, errors = measured_drops(true_drop, num_epochs=1)
    spread = math.sqrt((discordance - true_drop**2) / 2000)
    assert drops.mean() == pytest.approx(true_drop, abs=4 * spread / math.sqrt(300))
    assert drops.std() == pytest.approx(spread, rel=0.15)
    assert errors.mean() == pytest.approx(spread, rel=0.03)


def test_half_of_the_error_is_shared_by_all_epochs_and_a_quarter_decays() -> None:
    drops, _ = measured_drops(0.01, num_epochs=12, num_runs=600)
    correlations = np.corrcoef(drops.T)
    assert np.diag(correlations, 1).mean() == pytest.approx(0.5 + 0.25 * 0.8, abs=0.06)
    assert np.diag(correlations, 10).mean() == pytest.approx(0.5 + 0.25 * 0.8**10, abs=0.08)


@pytest.mark.parametrize("accuracy", [0.5, 0.99, 1.0])
def test_a_model_cannot_win_more_examples_than_the_baseline_has_wrong(accuracy: float) -> None:
    validation = Paired(accuracy, 0.02, 100_000, np.random.default_rng(0))
    measured, _ = validation.measure(accuracy - 0.02, None, is_same=False)
    assert validation.baseline - measured == pytest.approx(0.02, abs=0.002)


def test_the_first_validation_compares_the_baseline_with_itself() -> None:
    run = SimulatedRun(problem(), seed=0)
    first = run.answer(Epoch(train=False))
    assert first.metric == run.validation.baseline
    assert first.margin == pytest.approx(0.01, abs=1e-12)
    assert first.standard_error == 1 / 10_002
    trained = run.answer(Epoch())
    assert trained.standard_error == pytest.approx(math.sqrt(0.02 / 10_000), rel=0.3)


def test_a_model_at_a_rate_is_not_the_baseline() -> None:
    run = SimulatedRun(problem(), seed=0, initial_rate=0.5)
    first = run.answer(Epoch(train=False))
    assert first.standard_error is not None
    assert first.standard_error > 10 / 10_002


def test_the_same_model_has_the_same_metric() -> None:
    run = SimulatedRun(problem(jit=0.01), seed=0)
    moves = [Epoch(rate_path=(0.5,)), Epoch(), Epoch(train=False), Epoch(train=False, start_from=0), Epoch()]
    results = [run.answer(move) for move in moves]
    told = [(result.metric, result.standard_error) for result in results]
    assert told[2] == told[1]
    assert told[3] == told[0]
    assert told[4] != told[0]
    assert run.truths[2] == run.truths[1]


def answered(chosen: SimulatedProblem, *moves: dict[str, Any]) -> SimulatedRun:
    run = SimulatedRun(chosen, seed=0)
    for move in moves:
        run.answer(Epoch(**move))
    return run


def test_at_the_good_learning_rate_the_costs_are_the_published_ones() -> None:
    costly = problem(lam=0.004, jit=0.001, breset=0.01)
    usual = answered(costly, {"rate_path": (0.5,), "new_optimizer": True})
    high = replace(costly, effects=Effects(good_lr=10.0))
    assert answered(high, {"rate_path": (0.5,), "new_optimizer": True, "lr_scale": 10.0}).truths == usual.truths
    low = answered(high, {"rate_path": (0.5,), "new_optimizer": True, "lr_scale": 1.0}).checkpoints[-1]
    assert low.penalty == pytest.approx(0.0004)
    # Damage of 0.1 * 0.5^2, of which 0.0225 recovers fast, and 0.01 / 10 of a new optimizer, in sqrt(10) of the time
    duration = (1 + 0.3 * math.log(2)) * math.sqrt(10)
    assert low.fast == pytest.approx(0.0235 * math.exp(-1 / duration))


def test_the_cliff_of_a_model_is_the_mean_of_those_of_its_rankings() -> None:
    ranked = problem(rho=1.0)
    ranked = replace(ranked, effects=Effects(cliffs=((BEST, 1.0), (WORSE, 0.5))))
    half, three_quarters = {"rate_path": (0.5,)}, {"rate_path": (0.75,)}  # u of ln 2, and twice that
    good = answered(ranked, half | {"tactic": Tactic(ranking=BEST)}, three_quarters)
    bad = answered(ranked, half | {"tactic": Tactic(ranking=WORSE)}, three_quarters)
    mixed = answered(ranked, half, three_quarters | {"tactic": Tactic(ranking=WORSE)})
    assert [run.checkpoints[-1].cliff for run in (good, mixed, bad)] == pytest.approx([1.0, 0.75, 0.5])
    assert good.truths[-1] > mixed.truths[-1] > bad.truths[-1]
    back = answered(ranked, half | {"tactic": Tactic(ranking=WORSE)}, {"rate_path": (0.0,)}, half)
    assert back.checkpoints[-1].cliff == 0.5  # the ranking in use stays until another one is chosen


def test_distillation_changes_the_time_of_recovery() -> None:
    distilled = replace(problem(), effects=Effects(distilled_time=0.5))
    moves = {"rate_path": (0.5,), "tactic": Tactic(distill=True)}
    fast = answered(distilled, moves).checkpoints[-1].fast
    assert fast == pytest.approx(0.0225 * math.exp(-2 / (1 + 0.3 * math.log(2))))
    assert answered(distilled, {"rate_path": (0.5,)}).checkpoints[-1].fast > fast


def test_tactics_are_drawn_from_the_problem_alone_and_the_best_ranking_is_as_published() -> None:
    drawn = [with_tactics(problem(id=number)) for number in range(200)]
    assert drawn[3] == with_tactics(problem(id=3))
    good = np.array([each.effects.good_lr for each in drawn])
    assert GOOD_LR[0] <= good.min() < good.max() <= GOOD_LR[1]
    assert np.median(good) == pytest.approx(3.0, rel=0.5)
    for each in drawn:
        assert max(cliff for _, cliff in each.effects.cliffs) == 1.0
    offered = posed(drawn[0], maximal_rate=0.95, initial_rate=0.0)
    assert [(each.importance, each.ranking) for each in offered.rankings] == list(OFFERED)
    assert posed(problem(), maximal_rate=0.95, initial_rate=0.0).rankings == ()

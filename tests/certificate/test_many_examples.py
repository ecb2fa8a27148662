"""The tests of many examples, which are computed in fewer steps than those of few, and are never more lenient."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from kedro_aat.certificate import Certificate, certify
from kedro_aat.certificate import p_values as module
from kedro_aat.certificate.p_values import largest_tail, most_lost, p_of_mean, tail_probability
from tests.certificate.outcomes import counted

Floats = NDArray[np.float64]


@pytest.mark.parametrize(
    ("num_examples", "drop"),
    [
        *((100_000, 0.001), (200_000, 0.0), (300_000, 0.1)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((200_000, -0.01), (300_000, 1e-5))),
    ],
)
def test_steps_never_lower_a_p_value(num_examples: int, drop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = (-1.3, -1.645, -6.0)
    in_steps = [largest_tail(score, num_examples, drop) for score in scores]
    monkeypatch.setattr(module, "_EXACT_DEVIATION", math.inf)
    for score, p_value in zip(scores, in_steps, strict=True):
        exact = largest_tail(score, num_examples, drop)
        assert exact * (1 - 1e-9) <= p_value <= 1.015 * exact


@pytest.mark.parametrize(
    ("num_examples", "drop"),
    [
        (200_000, 0.001),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((200_000, 0.0), (300_000, 2e-5), (300_000, 0.05))),
    ],
)
def test_steps_keep_the_level(num_examples: int, drop: float) -> None:
    alpha, low, high = 0.05, -1.75, -1.55
    while high - low > 2e-4:  # the p-value depends on the score only, and rises with it
        middle = (low + high) / 2
        low, high = (middle, high) if largest_tail(middle, num_examples, drop) <= alpha else (low, middle)
    limits = most_lost(low, num_examples, drop)
    shares = np.concatenate((np.linspace(0, 20 / num_examples, 20), np.linspace(0, 0.7, 16) ** 2, [1 / 3]))
    for true_drop in (drop, 1.5 * drop):
        possible = np.append(shares[2 * shares + true_drop <= 1], (1 - true_drop) / 2)
        level = tail_probability(limits, true_drop + possible, possible).max()
        assert level <= alpha
        if true_drop == drop:
            assert level > 0.97 * alpha


@pytest.mark.parametrize(
    ("num_examples", "lost", "won"),
    [
        *(pytest.param(10**6, *case, marks=pytest.mark.slow) for case in ((0, 0), (100_000, 95_000), (20_000, 60_000))),
        pytest.param(10**6, 300, 200, marks=pytest.mark.slow),
        *[(198_000, 300, 250), (200_000, 66_000, 66_500)],  # where steps begin
    ],
)
def test_certified_exactly_if_the_bound_is_within_the_budget(num_examples: int, lost: int, won: int) -> None:
    first = counted(num_examples, lost, won, 0.01)
    assert first.upper_bound is not None
    assert first.standard_error is not None
    distance = first.upper_bound - first.estimated_drop
    assert 1.6 <= distance / first.standard_error <= 3.1  # 1.645 for many lost examples, 3 for none
    assert counted(num_examples, lost, won, max(0.0, first.upper_bound)).is_certified
    for budget in (first.upper_bound, first.upper_bound - 1e-3 * distance, first.upper_bound + 1e-3 * distance, 0.5):
        if budget >= 0:
            certificate = counted(num_examples, lost, won, budget)
            assert certificate.upper_bound is not None
            assert certificate.is_certified == (certificate.upper_bound <= budget)
            # The exact p-value has bumps of a few percent, at drops of a whole number of examples, for instance.
            assert certificate.upper_bound == pytest.approx(first.upper_bound, abs=0.01 * distance)


def test_bound_of_a_million_examples_without_a_loss() -> None:
    # It was 7% too large.
    assert counted(10**6, 0, 0, 0.01).upper_bound == pytest.approx(-math.log(0.05) / 10**6, rel=1e-3)


@pytest.mark.parametrize(
    ("num_examples", "lost", "won"), [(10, 1, 0), (360, 3, 2), (2500, 0, 0), (2500, 40, 30), (20_000, 300, 200)]
)
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.4])
def test_bound_is_a_budget_that_is_certified(num_examples: int, lost: int, won: int, alpha: float) -> None:
    for budget in (0.0, 0.02, 0.9):
        bound = counted(num_examples, lost, won, budget, alpha).upper_bound
        assert bound is not None
        assert bound >= 0
        assert counted(num_examples, lost, won, bound, alpha).is_certified


def kinds_of_drops(num_examples: int) -> dict[str, Floats]:
    generator = np.random.default_rng(0)
    rare, normal = generator.random(num_examples), generator.normal(size=num_examples)
    return {
        "normal": 0.1 * normal,
        "small": 1e-3 * normal,
        "one failure": np.where(np.arange(num_examples) < 1, 0.7, 1e-5 * normal),
        "rare failures": np.where(rare < 0.005, generator.beta(8, 2, num_examples), 0),
        "rare failures of a noisy model": np.where(rare < 1e-4, 0.8, 1e-3 * normal),
        "rare gains": np.where(rare < 1e-3, -0.8, np.abs(1e-3 * normal)),
        "skewed": 0.01 * normal**2,
        "skewed to gains": -0.01 * normal**2,
        "whole range": generator.uniform(-1, 1, num_examples),
    }


@pytest.mark.parametrize("kind", kinds_of_drops(1))
def test_a_grid_never_lowers_a_p_value_that_could_certify(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drops = np.clip(kinds_of_drops(25_000)[kind], -1, 1)
    standard_error = max(drops.std() / math.sqrt(len(drops)), 1 / len(drops))
    budgets = [drops.mean() + times * standard_error for times in (0.5, 1, 1.645, 2.5, 5)]
    spread = [p_of_mean(drops, 1.0, budget) for budget in budgets]
    monkeypatch.setattr(module, "_MOST_SINGLE_DROPS", math.inf)
    for budget, p_value in zip(budgets, spread, strict=True):
        single = p_of_mean(drops, 1.0, budget)
        if single < 0.45:
            assert single * (1 - 1e-9) <= p_value <= 1.0005 * single


@pytest.mark.parametrize(("num_examples", "lost"), [(25_000, 3), (1_000_000, 0), (1_000_000, 40)])
def test_rare_total_failures_among_many_are_bounded_as_clopper_and_pearson_do(num_examples: int, lost: int) -> None:
    drops = (np.arange(num_examples) < lost).astype(float)
    for budget in (lost + 2) / num_examples, (lost + 30) / num_examples:
        expected = binom.cdf(lost, num_examples, budget)
        assert p_of_mean(drops, 1.0, budget) == pytest.approx(expected, rel=1e-8, abs=0)


def certified_scores(num_examples: int, budget: float) -> Certificate:
    generator = np.random.default_rng(0)
    baseline = generator.beta(8, 2, num_examples)
    candidate = np.clip(baseline + generator.normal(-0.002, 0.1, num_examples), 0, 1)
    return certify(baseline, candidate, tolerated_drop=budget, score_range=(0, 1))


@pytest.mark.parametrize("num_examples", [300, 20_000, 20_001, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_other_scores_are_certified_exactly_if_the_bound_is_within_the_budget(num_examples: int) -> None:
    first = certified_scores(num_examples, 0.05)
    assert first.upper_bound is not None
    distance = first.upper_bound - first.estimated_drop
    for budget in (0.0, first.upper_bound, first.upper_bound - 1e-3 * distance, first.upper_bound + 1e-3 * distance):
        certificate = certified_scores(num_examples, budget)
        assert certificate.upper_bound is not None
        assert certificate.is_certified == (certificate.upper_bound <= budget) == (budget >= first.upper_bound)
        assert certificate.upper_bound == pytest.approx(first.upper_bound, abs=3e-5 * distance)

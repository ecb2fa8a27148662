"""The certificate of scores that are neither right nor wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, multinomial

from kedro_aat.certificate import (
    certify,
)
from kedro_aat.errors import DataError
from tests.certificate.outcomes import counted


@pytest.mark.parametrize(
    ("num_examples", "lost", "drop"),
    [
        *[(1, 0, 0.3), (20, 3, 0.3), (360, 0, 0.01), (360, 1, 0.01), (2500, 15, 0.01), (30_000, 0, 1e-4)],
        *[(50, 0, 0.9), (200, 0, 0.5), (1000, 0, 0.05), (300, 30, 0.01), (3000, 2999, 0.5)],  # nearly 0, and nearly 1
    ],
)
def test_rare_total_failures_are_bounded_as_clopper_and_pearson_do(num_examples: int, lost: int, drop: float) -> None:
    # The scores are not 0 and 1, but the differences are.
    baseline = np.full(num_examples, 0.5)
    candidate = np.where(np.arange(num_examples) < lost, 0, baseline)
    certificate = certify(baseline, candidate, tolerated_drop=drop / 2, score_range=(0, 0.5))
    assert certificate.discordant is None
    assert certificate.p_value == pytest.approx(binom.cdf(lost, num_examples, drop), rel=1e-9, abs=0)
    assert certificate.p_value <= 1


def test_a_t_test_would_certify_what_this_does_not() -> None:
    # A candidate that loses one example in a hundred entirely, and by chance none of these 200.
    scores = np.random.default_rng(0).random(200)
    certificate = certify(scores, scores, tolerated_drop=0.01, score_range=(0, 1))
    assert certificate.p_value == pytest.approx(0.99**200)
    assert not certificate.is_certified


@pytest.mark.parametrize("values", [(-0.9, 0.0, 1.0), (-0.2, 0.05, 1.0), (0.0, 0.1, 0.6)])
def test_bounded_scores_err_at_most_alpha(values: tuple[float, float, float]) -> None:
    # Drops have these three values. All samples of nine, from many mixtures whose mean is exactly the tolerated drop.
    num_examples, drop, alpha = 9, 0.3, 0.1
    cells = [
        (first, second, num_examples - first - second)
        for first in range(num_examples + 1)
        for second in range(num_examples + 1 - first)
    ]

    def is_certified(cell: tuple[int, int, int]) -> bool:
        drops = np.repeat(values, cell)
        scores = np.maximum(drops, 0), np.maximum(-drops, 0)
        return certify(*scores, tolerated_drop=drop, alpha=alpha, score_range=(0, 1)).is_certified

    certified = np.array([cell for cell in cells if is_certified(cell)])
    assert len(certified)
    low, middle, high = values
    for share_high in np.linspace(0, 1, 200):
        # Solve for the shares of the two others, if they exist.
        share_middle = (drop - low - share_high * (high - low)) / (middle - low)
        share_low = 1 - share_high - share_middle
        if min(share_low, share_middle) >= 0:
            assert multinomial.pmf(certified, num_examples, [share_low, share_middle, share_high]).sum() <= alpha


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), num_examples=st.integers(2, 80), drop=st.sampled_from([0.01, 0.05, 0.2]))
def test_laws_of_other_scores(seed: int, num_examples: int, drop: float) -> None:
    generator = np.random.default_rng(seed)
    baseline = generator.random(num_examples)
    candidate = np.clip(baseline + generator.normal(0, 0.05, num_examples), 0, 1)
    first = certify(baseline, candidate, tolerated_drop=drop, score_range=(0, 1))
    assert first.discordant is None
    assert first.upper_bound is not None
    assert first.is_certified == (first.upper_bound <= drop)
    errors = certify(1 - baseline, 1 - candidate, tolerated_drop=drop, higher_is_better=False, score_range=(0, 1))
    assert errors.p_value == pytest.approx(first.p_value)
    kept = candidate.copy()
    kept[0] = max(baseline[0], candidate[0])
    assert certify(baseline, kept, tolerated_drop=drop, score_range=(0, 1)).p_value <= first.p_value + 1e-12


def test_lower_is_better_losses_in_their_range() -> None:
    generator = np.random.default_rng(0)
    baseline = generator.gamma(2, size=2000)
    candidate = np.abs(baseline + generator.normal(0.01, 0.1, 2000))
    limits: dict[str, Any] = {"higher_is_better": False, "score_range": (0.0, 30.0)}
    kept = certify(baseline, candidate, tolerated_drop=0.1, **limits)
    assert kept.is_certified
    assert kept.kind == "exact"
    assert kept.estimated_drop == pytest.approx(0.01, abs=0.01)
    assert not certify(baseline, candidate + 0.1, tolerated_drop=0.1, **limits).is_certified


# The true drop is 1 and .1, twice the budget; most draws of 360 examples contain no example that is far off.
@pytest.mark.parametrize(("rarity", "error", "tolerated"), [(1e-3, 1000.0, 0.5), (1 / 300, 30.0, 0.05)])
@pytest.mark.parametrize("higher_is_better", [False, True])
def test_scores_without_a_limit_are_never_certified(
    rarity: float, error: float, tolerated: float, higher_is_better: bool
) -> None:
    generator = np.random.default_rng(0)
    sign = -1 if higher_is_better else 1
    for score_range in (None, (0, math.inf) if sign == 1 else (-math.inf, 0)):
        baseline = generator.uniform(0, 1, 360)
        candidate = baseline + error * (generator.uniform(size=360) < rarity)
        certificate = certify(
            sign * baseline, sign * candidate, tolerated_drop=tolerated, higher_is_better=higher_is_better,
            score_range=score_range,
        )  # fmt: skip
        assert not certificate.is_certified
        assert certificate.kind is None
        assert certificate.upper_bound is None
        assert "certificate.score_range" in str(certificate.reason)


def test_the_range_of_scores_keeps_the_level() -> None:
    generator = np.random.default_rng(0)
    errors = generator.uniform(size=(500, 360)) < 1 / 300
    certified = 0
    for error in errors:
        baseline = generator.uniform(0, 1, 360)
        certified += certify(
            baseline, baseline + 30.0 * error, tolerated_drop=0.05, higher_is_better=False, score_range=(0, 31)
        ).is_certified
    assert binomtest(certified, len(errors)).proportion_ci(0.98, "exact").low <= 0.05


def test_outcomes_of_errors_without_a_limit_are_not_counted() -> None:
    # Whole errors that are 0 or 1 in this sample, and might be 1,000 in another one.
    certificate = certify(
        np.zeros(3000), np.zeros(3000), tolerated_drop=0.01, higher_is_better=False, score_range=(0, math.inf)
    )
    assert certificate.kind is None
    wide = certify(np.zeros(3000), np.zeros(3000), tolerated_drop=0.01, higher_is_better=False, score_range=(0, 10))
    assert wide.p_value == pytest.approx(0.999**3000)  # not .99**3000


def test_a_known_range_tightens_the_bound() -> None:
    baseline = np.full(200, 0.010)
    candidate = np.full(200, 0.011)
    options: dict[str, Any] = {"tolerated_drop": 0.002, "higher_is_better": False}
    wide = certify(baseline, candidate, score_range=(0, 1), **options)
    narrow = certify(baseline, candidate, score_range=(0, 0.05), **options)
    assert not wide.is_certified
    assert narrow.is_certified


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0, 2.3, -4.0])
def test_constant_scores_are_certified_only_with_enough_examples(value: float) -> None:
    few, many = ([value] * n for n in (20, 3000))
    limits = (value - 0.5, value + 0.5)
    assert not certify(few, few, tolerated_drop=0.01, score_range=limits).is_certified
    assert certify(many, many, tolerated_drop=0.01, score_range=limits).is_certified


def test_large_numbers_of_examples() -> None:
    assert counted(20_000, 300, 200, 0.01).is_certified
    generator = np.random.default_rng(0)
    baseline = generator.random(5_000)
    assert certify(baseline, baseline * 0.995, tolerated_drop=0.01, score_range=(0, 1)).is_certified


@pytest.mark.parametrize("score_range", [(0, 1), (0.3, 2)])
def test_scores_out_of_their_range(score_range: tuple[float, float]) -> None:
    with pytest.raises(DataError, match=r"score_range must include all scores, from 0.2 to 1.5"):
        certify([0.5, 1.5], [0.2, 0.9], tolerated_drop=0.1, score_range=score_range)


def test_bound_is_as_precise_in_any_unit() -> None:
    generator = np.random.default_rng(0)
    baseline, candidate = generator.random((2, 100))
    bounds = []
    for unit in (1e-5, 1.0, 1e5):
        scores = unit * baseline, unit * candidate
        bound = certify(*scores, tolerated_drop=0.1 * unit, score_range=(0, unit)).upper_bound
        assert bound is not None
        bounds.append(bound / unit)
    assert bounds == pytest.approx([bounds[1]] * 3, rel=1e-5)
    at_bound = certify(baseline, candidate, tolerated_drop=bounds[1], score_range=(0, 1))
    assert at_bound.p_value == pytest.approx(0.05, rel=1e-4)


def test_bound_of_a_candidate_that_loses_nearly_everything_is_the_whole_range() -> None:
    assert certify([1.0], [5e-9], tolerated_drop=0.1, score_range=(0, 1)).upper_bound == 1

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import binom, multinomial

from kedro_aat.certificate import (
    Certificate,
    bootstrap_standard_error,
    certify,
    examples_needed,
    paired_standard_error,
    power,
)
from kedro_aat.certificate.p_values import largest_tail, most_lost, tail_probability, tango_score
from kedro_aat.errors import DataError

Floats = NDArray[np.float64]


def outcomes(num_examples: int, lost: int, won: int) -> tuple[Floats, Floats]:
    """Scores of 0 and 1 with so many examples lost and won."""
    baseline, candidate = np.ones(num_examples), np.ones(num_examples)
    candidate[:lost], baseline[lost : lost + won] = 0, 0
    return baseline, candidate


def counted(num_examples: int, lost: int, won: int, tolerated_drop: float, alpha: float = 0.05) -> Certificate:
    return certify(*outcomes(num_examples, lost, won), tolerated_drop=tolerated_drop, alpha=alpha)


@lru_cache
def critical_score(num_examples: int, drop: float, alpha: float = 0.05) -> float:
    """The largest score that the exact test still certifies, among all outcomes."""
    lost, won = (axis.ravel() for axis in np.indices((num_examples + 1, num_examples + 1)))
    possible = lost + won <= num_examples
    scores = np.unique(tango_score(lost[possible], won[possible], num_examples, drop))
    scores = scores[(scores > -8) & (scores < -1)]
    low, high = -1, len(scores) - 1  # scores[low] is certified, scores[high] is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if largest_tail(scores[middle], num_examples, drop) <= alpha else (low, middle)
    return float(scores[low]) if low >= 0 else -math.inf


def exact_power(num_examples: int, drop: float, share_lost: float, share_won: float, alpha: float = 0.05) -> float:
    limits = most_lost(critical_score(num_examples, drop, alpha), num_examples, drop)
    return float(tail_probability(limits, share_lost, share_won)[0])


# --- the standard error ------------------------------------------------------------------------------------------


def test_standard_error_of_a_known_table() -> None:
    # Agresti, Categorical Data Analysis, approval ratings of the prime minister: 150 and 86 of 1600 changed sides.
    plain = math.sqrt(86 + 150 - (86 - 150) ** 2 / 1600) / 1600
    assert plain == pytest.approx(0.0095, abs=5e-5)
    assert paired_standard_error(*outcomes(1600, 86, 150)) == pytest.approx(plain, rel=0.002)


@pytest.mark.parametrize(
    ("num_examples", "lost", "won", "expected"),
    [
        (360, 0, 0, 1 / 362),
        (360, 1, 0, math.sqrt(2 - 1 / 362) / 362),
        (360, 1, 1, math.sqrt(3) / 362),
        (8, 2, 0, math.sqrt(3 - 4 / 10) / 10),
    ],
)
def test_standard_error_counts_one_more_disagreement(num_examples: int, lost: int, won: int, expected: float) -> None:
    assert paired_standard_error(*outcomes(num_examples, lost, won)) == pytest.approx(expected)


def test_standard_error_of_many_scores_is_that_of_the_mean() -> None:
    baseline, candidate = np.random.default_rng(0).normal(size=(2, 20_000))
    plain = float(np.std(baseline - candidate, ddof=1)) / math.sqrt(20_000)
    assert paired_standard_error(baseline, candidate) == pytest.approx(plain, rel=0.001)


vectors = st.integers(1, 30).flatmap(
    lambda n: st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=n, max_size=n)
)


@given(pairs=vectors, factor=st.floats(1e-3, 1e3))
def test_standard_error_is_positive_and_symmetric_and_scales(pairs: list[tuple[float, float]], factor: float) -> None:
    baseline, candidate = np.array(pairs).T
    assume(np.abs(baseline - candidate).max() > 1e-3)
    error = paired_standard_error(baseline, candidate)
    assert error > 0
    assert paired_standard_error(candidate, baseline) == pytest.approx(error)
    assert paired_standard_error(factor * baseline, factor * candidate) == pytest.approx(factor * error, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.7, -3.5, 1e-12])
def test_constant_scores_leave_an_uncertainty(value: float) -> None:
    assert paired_standard_error([value] * 10, [value] * 10) > 0


# --- the bootstrap -----------------------------------------------------------------------------------------------


def resampled(scores: Floats, *, seed: int = 0, num_resamples: int = 4000) -> Floats:
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(len(scores), size=len(scores)) for _ in range(num_resamples))
    return np.array([scores[indices].mean() for indices in drawn])


def test_bootstrap_of_a_mean_is_its_standard_error() -> None:
    baseline, candidate = outcomes(500, 30, 20)
    error = bootstrap_standard_error(resampled(baseline), resampled(candidate))
    assert error == pytest.approx(paired_standard_error(baseline, candidate), rel=0.05)


def test_bootstrap_is_paired() -> None:
    scores = np.random.default_rng(0).random(50)
    means = resampled(scores)
    assert bootstrap_standard_error(means, means) == 0
    # On other resamples the difference would carry the noise of both.
    apart = bootstrap_standard_error(means, resampled(scores, seed=1))
    assert apart == pytest.approx(math.sqrt(2) * means.std(), rel=0.1)


def test_bootstrap_leaves_out_a_few_resamples_without_a_value() -> None:
    values = np.random.default_rng(0).random(100)
    with_gaps = values.copy()
    with_gaps[:10] = math.nan
    assert bootstrap_standard_error(with_gaps, np.zeros(100)) == pytest.approx(values[10:].std(ddof=1))
    with_gaps[10] = math.nan
    with pytest.raises(DataError, match=r"nine tenths of the resamples.*89 *of 100.*too few examples of one class"):
        bootstrap_standard_error(with_gaps, np.zeros(100))


@pytest.mark.parametrize(("first", "second"), [(1, 1), (10, 9), (0, 0)])
def test_bootstrap_of_too_few_or_other_resamples_is_refused(first: int, second: int) -> None:
    with pytest.raises(DataError, match="same resamples of both models"):
        bootstrap_standard_error(np.zeros(first), np.zeros(second))


# --- the certificate of scores that are right or wrong -----------------------------------------------------------


def test_score_without_a_tolerated_drop_is_mcnemars() -> None:
    # Agresti's approval ratings again: z = -4.17.
    assert counted(1600, 86, 150, 0).statistic == pytest.approx((86 - 150) / math.sqrt(86 + 150))


@pytest.mark.parametrize(
    ("num_examples", "lost", "won", "drop"),
    [(44, 0, 1, 0.1), (360, 3, 1, 0.01), (50, 20, 3, 0.2), (100, 2, 40, 0.05), (100, 2, 40, -0.1), (30, 5, 2, -0.3)],
)
def test_score_uses_the_likeliest_shares_under_the_hypothesis(
    num_examples: int, lost: int, won: int, drop: float
) -> None:
    same = num_examples - lost - won

    def unlikelihood(share_won: float) -> float:
        lost_log = lost * math.log(share_won + drop) if lost else 0
        return -(lost_log + won * math.log(share_won) + same * math.log(1 - 2 * share_won - drop))

    bounds = max(0, -drop) + 1e-12, (1 - drop) / 2 - 1e-12
    share_won = minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = num_examples * (2 * share_won + drop - drop**2)
    expected = (lost - won - num_examples * drop) / math.sqrt(variance)
    assert tango_score(np.array(lost), np.array(won), num_examples, drop) == pytest.approx(expected, rel=1e-5)


TABLE = [
    # examples, lost, won, tolerated drop, p-value. Where nothing is won, it is the binomial one.
    (360, 0, 0, 0.01, 0.03),
    (360, 1, 0, 0.01, 0.12),
    (360, 1, 1, 0.01, 0.05),
    (298, 0, 0, 0.01, 0.05),
    (100, 0, 0, 0.0, 1.0),
]


@pytest.mark.parametrize(("num_examples", "lost", "won", "drop", "p_value"), TABLE)
def test_p_values(num_examples: int, lost: int, won: int, drop: float, p_value: float) -> None:
    assert round(counted(num_examples, lost, won, drop).p_value, 2) == p_value


def test_with_360_images_and_one_point_only_no_loss_certifies() -> None:
    none, one, one_each = (counted(360, *discordant, 0.01) for discordant in ((0, 0), (1, 0), (1, 1)))
    assert (none.is_certified, one.is_certified, one_each.is_certified) == (True, False, False)
    assert none.discordant == (0, 0)
    # What a normal approximation would have said of one lost: .084.
    assert one.p_value == pytest.approx(binom.cdf(1, 360, 0.01), rel=0.002)


def test_bound_without_a_loss_is_the_rule_of_three() -> None:
    for num_examples in (50, 360, 2500):
        bound = counted(num_examples, 0, 0, 0.01).upper_bound
        assert bound == pytest.approx(3 / num_examples, rel=0.06)


def test_bounds_at_the_ends() -> None:
    assert counted(5, 5, 0, 0.1).upper_bound == 1
    assert counted(1, 0, 0, 0.1).upper_bound == pytest.approx(0.95, abs=1e-3)
    better = counted(360, 0, 30, 0.01)
    assert better.is_certified
    assert better.estimated_drop < better.upper_bound < 0


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int, float]:
    """Examples, lost, won and a tolerated drop."""
    num_examples = draw(st.integers(1, 30))
    lost = draw(st.integers(0, num_examples))
    won = draw(st.integers(0, num_examples - lost))
    return num_examples, lost, won, draw(st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.3]))


@settings(max_examples=20, deadline=None)
@given(table=tables())
def test_p_value_falls_when_a_lost_example_is_kept_and_when_one_more_is_won(table: tuple[int, int, int, float]) -> None:
    num_examples, lost, won, drop = table
    p_value = counted(*table).p_value
    if lost:
        assert counted(num_examples, lost - 1, won, drop).p_value <= p_value
        assert counted(num_examples, lost - 1, won + 1, drop).p_value <= p_value
    if lost + won < num_examples:
        assert counted(num_examples, lost, won + 1, drop).p_value <= p_value


@settings(max_examples=20, deadline=None)
@given(table=tables(), alpha=st.sampled_from([0.01, 0.05, 0.2]))
def test_certified_exactly_where_the_bound_is_within_the_budget(
    table: tuple[int, int, int, float], alpha: float
) -> None:
    certificate = counted(*table, alpha=alpha)
    assert 0 <= certificate.p_value <= 1
    assert certificate.is_certified == (certificate.upper_bound <= certificate.tolerated_drop)
    assert certificate.estimated_drop <= certificate.upper_bound
    assert Certificate.model_validate_json(certificate.model_dump_json()) == certificate


@settings(max_examples=15, deadline=None)
@given(table=tables(), seed=st.integers(0, 99))
def test_order_direction_and_unit_do_not_matter(table: tuple[int, int, int, float], seed: int) -> None:
    num_examples, lost, won, drop = table
    baseline, candidate = outcomes(num_examples, lost, won)
    first = certify(baseline, candidate, tolerated_drop=drop)
    order = np.random.default_rng(seed).permutation(num_examples)
    assert certify(baseline[order], candidate[order], tolerated_drop=drop) == first
    errors = certify(1 - baseline, 1 - candidate, tolerated_drop=drop, higher_is_better=False)
    assert errors.p_value == first.p_value
    assert errors.upper_bound == pytest.approx(first.upper_bound, abs=1e-6)
    if baseline.any() or candidate.any():
        percent = certify(100 * baseline, 100 * candidate, tolerated_drop=100 * drop)
        assert percent.p_value == pytest.approx(first.p_value)
        assert percent.upper_bound == pytest.approx(100 * first.upper_bound, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(table=tables(), times=st.integers(2, 5))
def test_more_examples_in_the_same_proportions_stay_certified(table: tuple[int, int, int, float], times: int) -> None:
    num_examples, lost, won, drop = table
    if counted(*table).is_certified:
        assert counted(times * num_examples, times * lost, times * won, drop).is_certified


def test_more_examples_in_the_same_proportions_certify_more() -> None:
    p_values = [counted(times * 100, times, times, 0.02).p_value for times in (1, 4, 16)]
    assert p_values == sorted(p_values, reverse=True)
    assert p_values[0] > 0.05 > p_values[-1]


def test_tail_probability_is_that_of_the_trinomial() -> None:
    num_examples, share_lost, share_won = 12, 0.2, 0.1
    limits = most_lost(-0.5, num_examples, 0.1)
    expected = sum(
        multinomial.pmf([lost, won, num_examples - lost - won], num_examples, [share_lost, share_won, 0.7])
        for lost in range(num_examples + 1)
        for won in range(num_examples + 1 - lost)
        if tango_score(np.array(lost), np.array(won), num_examples, 0.1) <= -0.5
    )
    assert tail_probability(limits, share_lost, share_won) == pytest.approx(expected)


DROPS = {50: (0.02, 0.1, 0.2), 100: (0.0, 0.03, 0.1), 360: (0.002, 0.01, 0.05), 2500: (0.01,)}
SHARES_WON = (0, 1e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.38)


@pytest.mark.parametrize(
    ("num_examples", "alpha"),
    [(50, 0.05), (50, 0.1), (100, 0.05), (100, 0.1), (360, 0.05), (360, 0.1), (2500, 0.05)],
)
def test_probability_to_certify_a_violator_is_at_most_alpha(num_examples: int, alpha: float) -> None:
    fine = np.concatenate((SHARES_WON, np.linspace(0, 1, 2000) ** 2 / 2))
    for drop in DROPS[num_examples]:
        limits = most_lost(critical_score(num_examples, drop, alpha), num_examples, drop)
        for true_drop in (drop, 1.5 * drop):
            shares = fine[2 * fine + true_drop <= 1]
            assert tail_probability(limits, true_drop + shares, shares).max() <= alpha


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.3])
def test_the_whole_certificate_of_every_outcome_errs_at_most_alpha(drop: float) -> None:
    num_examples, alpha = 10, 0.1
    all_counts = [(lost, won) for lost in range(num_examples + 1) for won in range(num_examples + 1 - lost)]
    certified = [counts for counts in all_counts if counted(num_examples, *counts, drop, alpha).is_certified]
    assert certified
    cells = np.array([(lost, won, num_examples - lost - won) for lost, won in certified])
    for share in np.linspace(0, (1 - drop) / 2, 60):
        shares = [drop + share, share, max(0, 1 - drop - 2 * share)]
        assert multinomial.pmf(cells, num_examples, shares).sum() <= alpha


# --- the certificate of other scores -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_examples", "lost", "drop"), [(1, 0, 0.3), (20, 3, 0.3), (360, 0, 0.01), (360, 1, 0.01), (2500, 15, 0.01)]
)
def test_rare_total_failures_are_bounded_as_clopper_and_pearson_do(num_examples: int, lost: int, drop: float) -> None:
    # The scores are not 0 and 1, but the differences are.
    baseline = np.full(num_examples, 0.5)
    candidate = np.where(np.arange(num_examples) < lost, 0, baseline)
    certificate = certify(baseline, candidate, tolerated_drop=drop / 2, score_range=(0, 0.5))
    assert certificate.discordant is None
    assert certificate.p_value == pytest.approx(binom.cdf(lost, num_examples, drop), rel=1e-9)


def test_a_t_test_would_certify_what_this_does_not() -> None:
    # A candidate that loses every hundredth example entirely, and by luck none of these 200.
    scores = np.random.default_rng(0).random(200)
    certificate = certify(scores, scores, tolerated_drop=0.01)
    assert certificate.p_value == pytest.approx(0.99**200)
    assert not certificate.is_certified


@pytest.mark.parametrize("values", [(-0.9, 0.0, 1.0), (-0.2, 0.05, 1.0), (0.0, 0.1, 0.6)])
def test_bounded_scores_err_at_most_alpha(values: tuple[float, float, float]) -> None:
    # Drops take these three values; all samples of nine, at many mixtures with exactly the tolerated mean.
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
        # Solve for the shares of the two others, where they exist.
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
    first = certify(baseline, candidate, tolerated_drop=drop)
    assert first.discordant is None
    assert first.is_certified == (first.upper_bound <= drop)
    assert certify(1 - baseline, 1 - candidate, tolerated_drop=drop, higher_is_better=False).p_value == pytest.approx(
        first.p_value
    )
    kept = candidate.copy()
    kept[0] = max(baseline[0], candidate[0])
    assert certify(baseline, kept, tolerated_drop=drop).p_value <= first.p_value + 1e-12


def test_lower_is_better_losses_of_any_size() -> None:
    generator = np.random.default_rng(0)
    baseline = generator.gamma(2, size=2000)
    candidate = baseline + generator.normal(0.01, 0.1, 2000)
    kept = certify(baseline, candidate, tolerated_drop=0.1, higher_is_better=False)
    assert kept.is_certified
    assert kept.estimated_drop == pytest.approx(0.01, abs=0.01)
    assert not certify(baseline, candidate + 0.1, tolerated_drop=0.1, higher_is_better=False).is_certified


def test_a_known_range_tightens_the_bound() -> None:
    baseline = np.full(200, 0.010)
    candidate = np.full(200, 0.011)
    wide = certify(baseline, candidate, tolerated_drop=0.002, higher_is_better=False)
    narrow = certify(baseline, candidate, tolerated_drop=0.002, higher_is_better=False, score_range=(0, 0.05))
    assert not wide.is_certified
    assert narrow.is_certified


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0, 2.3, -4.0])
def test_constant_scores_are_certified_only_with_enough_examples(value: float) -> None:
    few, many = ([value] * n for n in (20, 3000))
    assert not certify(few, few, tolerated_drop=0.01).is_certified
    assert certify(many, many, tolerated_drop=0.01).is_certified


def test_large_numbers_of_examples_are_quick() -> None:
    assert counted(20_000, 300, 200, 0.01).is_certified
    generator = np.random.default_rng(0)
    baseline = generator.random(5_000)
    assert certify(baseline, baseline * 0.995, tolerated_drop=0.01).is_certified


# --- power -------------------------------------------------------------------------------------------------------


def test_power_of_the_digits_test_and_of_a_larger_one() -> None:
    assert round(power(360, 0.003, 0.02, 0.01), 2) == 0.21
    assert power(2500, 0.003, 0.02, 0.01) == pytest.approx(0.8, abs=0.04)
    assert examples_needed(0.003, 0.02, 0.01) == pytest.approx(2500, rel=0.11)


@pytest.mark.parametrize(
    ("num_examples", "true_drop", "discordance", "tolerated_drop"),
    [
        (360, 0.003, 0.02, 0.01),
        (2500, 0.003, 0.02, 0.01),
        (1000, 0.0, 0.02, 0.01),
        (360, 0.0, 0.05, 0.03),
        (500, 0.01, 0.1, 0.05),
        (200, -0.02, 0.1, 0.02),
    ],
)
def test_power_is_close_to_that_of_the_exact_test(
    num_examples: int, true_drop: float, discordance: float, tolerated_drop: float
) -> None:
    shares = (discordance + true_drop) / 2, (discordance - true_drop) / 2
    exact = exact_power(num_examples, tolerated_drop, *shares)
    assert power(num_examples, true_drop, discordance, tolerated_drop) == pytest.approx(exact, abs=0.035)


def test_power_is_none_beyond_the_budget() -> None:
    assert power(10_000, 0.01, 0.02, 0.01) == 0
    assert examples_needed(0.01, 0.02, 0.01) is None


def test_without_disagreement_the_fewest_examples_are_exact() -> None:
    needed = examples_needed(0, 0, 0.01)
    assert needed == 299
    assert (power(298, 0, 0, 0.01), power(299, 0, 0, 0.01)) == (0, 1)
    assert not counted(290, 0, 0, 0.01).is_certified
    assert counted(310, 0, 0, 0.01).is_certified


possible = st.tuples(st.floats(-0.2, 0.2), st.floats(0, 0.5), st.floats(0, 0.3)).filter(
    lambda drawn: abs(drawn[0]) <= drawn[1] and drawn[2] - drawn[0] > 1e-3
)


@given(expected=possible, wanted=st.floats(0.5, 0.95))
def test_examples_needed_are_those_that_reach_the_power(expected: tuple[float, float, float], wanted: float) -> None:
    true_drop, discordance, tolerated_drop = expected
    needed = examples_needed(true_drop, discordance, tolerated_drop, power=wanted)
    assert needed is not None
    assert power(needed, true_drop, discordance, tolerated_drop) >= wanted - 1e-6
    if needed > 1:
        assert (
            power(needed - 1, true_drop, discordance, tolerated_drop) <= wanted + 1e-6
            or power(needed - 2, true_drop, discordance, tolerated_drop) == 0
        )


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [paired_standard_error, lambda *scores: certify(*scores, tolerated_drop=0.1)])
@pytest.mark.parametrize(
    ("baseline", "candidate", "message"),
    [
        ([1, 0, 1], [1, 0], "there are 3 of the baseline and 2 of the candidate"),
        ([], [], "at least one score"),
        ([1, math.nan], [1, 0], "baseline_scores must be finite numbers, but 1 of 2"),
        ([1, 0], [-math.inf, math.nan], "candidate_scores must be finite numbers, but 2 of 2"),
        ([[1, 0]], [[1, 0]], r"shape is \(1, 2\)"),
        (0.9, 0.8, r"shape is \(\)"),
        (["good", "bad"], [1, 0], "baseline_scores must be numbers"),
    ],
)
def test_scores_of_the_wrong_form(function: Callable[..., Any], baseline: Any, candidate: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        function(baseline, candidate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerated_drop": -0.1}, "tolerated_drop must be at least 0"),
        ({"tolerated_drop": 1.0}, "Is it a percentage"),
        ({"tolerated_drop": math.nan}, "tolerated_drop must be"),
        ({"tolerated_drop": 0.1, "alpha": 0.0}, "alpha must be above 0 and below 0.5"),
        ({"tolerated_drop": 0.1, "alpha": 5.0}, "alpha must be above 0 and below 0.5"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        certify([1, 1, 0], [1, 0, 0], **options)


def test_scores_out_of_their_range() -> None:
    with pytest.raises(DataError, match=r"score_range must include all scores, from 0.2 to 1.5"):
        certify([0.5, 1.5], [0.2, 0.9], tolerated_drop=0.1, score_range=(0, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.0, 0.1, 0.1), "num_examples must be at least 1"),
        ((10, 0.2, 0.1, 0.1), "discordance must be at least"),
        ((10, 0.0, 1.1, 0.1), "discordance must be at least"),
        ((10, 0.0, 0.1, 1.0), "Is it a percentage"),
        ((10, 0.0, 0.1, 0.1, 0.7), "alpha must be"),
    ],
)
def test_power_of_what_cannot_be(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        power(*arguments)


def test_examples_for_a_power_that_cannot_be() -> None:
    with pytest.raises(DataError, match="power must be above 0 and below 1"):
        examples_needed(0.0, 0.1, 0.1, power=80)


def test_importing_the_module_loads_neither_scipy_nor_torch() -> None:
    code = "import sys, kedro_aat.certificate; sys.exit(bool({'scipy', 'torch', 'kedro'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

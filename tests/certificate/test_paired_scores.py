"""Standard errors of paired scores, and scores that cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kedro_aat.certificate import (
    bootstrap_standard_error,
    certify,
    paired_standard_error,
)
from kedro_aat.errors import DataError
from tests.certificate.outcomes import Floats, outcomes


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
def test_constant_scores_have_an_uncertainty(value: float) -> None:
    assert paired_standard_error([value] * 10, [value] * 10) > 0


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5, 100.0])
def test_equal_scores_have_one_disagreement_as_large_as_a_score(value: float) -> None:
    assert paired_standard_error([value] * 10, [value] * 10) == pytest.approx((value or 1.0) / 12)


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


def test_bootstrap_of_two_resamples() -> None:
    assert bootstrap_standard_error([0.0, 1.0], [0.0, 0.0]) == pytest.approx(math.sqrt(0.5))


def test_bootstrap_of_small_numbers_is_computed_in_double_precision() -> None:
    values = np.array([1000, 1000.5, 1001, 60000], dtype=np.float16)
    expected = float(np.std(values.astype(np.float64), ddof=1))
    assert bootstrap_standard_error(values, np.zeros(4, dtype=np.float16)) == pytest.approx(expected)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (10, 9), (0, 0)])
def test_bootstrap_rejects_too_few_or_different_resamples(first: int, second: int) -> None:
    with pytest.raises(DataError, match="same resamples of both models"):
        bootstrap_standard_error(np.zeros(first), np.zeros(second))


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

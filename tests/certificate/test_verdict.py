"""The certificate of scores that are right or wrong."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multinomial

from kedro_aat.certificate import (
    Certificate,
    certify,
)
from kedro_aat.errors import DataError
from tests.certificate.outcomes import counted, outcomes, tables

TABLE = [
    # examples, lost, won, tolerated drop, p-value. If no example is won, it is that of the binomial test.
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
    # A normal approximation would give .084 for one lost example.
    assert one.p_value == pytest.approx(binom.cdf(1, 360, 0.01), rel=0.002)


def test_bound_without_a_loss_is_the_rule_of_three() -> None:
    for num_examples in (50, 360, 2500):
        bound = counted(num_examples, 0, 0, 0.01).upper_bound
        assert bound == pytest.approx(3 / num_examples, rel=0.06)


def test_p_value_of_exactly_alpha_certifies() -> None:
    certificate = counted(360, 1, 0, 0.01)
    assert Certificate(**{**dict(certificate), "alpha": certificate.p_value}).is_certified


@pytest.mark.parametrize("drop", [0.0, 1e-6, 0.1, 0.9, 0.999])
def test_bound_does_not_depend_on_the_budget(drop: float) -> None:
    # The p-value at these budgets is between 1 and 1e-300, and below.
    assert counted(100, 0, 0, drop).upper_bound == pytest.approx(1 - 0.05 ** (1 / 100), rel=0.002)


def test_bounds_at_the_ends() -> None:
    assert counted(5, 5, 0, 0.1).upper_bound == 1
    assert counted(1, 0, 0, 0.1).upper_bound == pytest.approx(0.95, abs=1e-3)
    better = counted(360, 0, 30, 0.01)
    assert better.is_certified
    assert better.upper_bound is not None
    assert better.estimated_drop < better.upper_bound < 0


@settings(max_examples=20, deadline=None)
@given(table=tables())
def test_p_value_falls_if_one_example_less_is_lost_and_if_one_more_is_won(table: tuple[int, int, int, float]) -> None:
    num_examples, lost, won, drop = table
    p_value = counted(*table).p_value
    if lost:
        assert counted(num_examples, lost - 1, won, drop).p_value <= p_value
        assert counted(num_examples, lost - 1, won + 1, drop).p_value <= p_value
    if lost + won < num_examples:
        assert counted(num_examples, lost, won + 1, drop).p_value <= p_value


@settings(max_examples=20, deadline=None)
@given(table=tables(), alpha=st.sampled_from([0.01, 0.05, 0.2]))
def test_certified_exactly_if_the_bound_is_within_the_budget(table: tuple[int, int, int, float], alpha: float) -> None:
    certificate = counted(*table, alpha=alpha)
    assert 0 <= certificate.p_value <= 1
    assert certificate.upper_bound is not None
    assert certificate.is_certified == (certificate.upper_bound <= certificate.tolerated_drop)
    assert certificate.estimated_drop <= certificate.upper_bound
    assert Certificate.model_validate_json(certificate.model_dump_json()) == certificate


@settings(max_examples=15, deadline=None)
@given(table=tables(), seed=st.integers(0, 99))
def test_order_direction_and_unit_do_not_matter(table: tuple[int, int, int, float], seed: int) -> None:
    num_examples, lost, won, drop = table
    baseline, candidate = outcomes(num_examples, lost, won)
    first = certify(baseline, candidate, tolerated_drop=drop)
    assert first.upper_bound is not None
    order = np.random.default_rng(seed).permutation(num_examples)
    assert certify(baseline[order], candidate[order], tolerated_drop=drop) == first
    errors = certify(1 - baseline, 1 - candidate, tolerated_drop=drop, higher_is_better=False)
    assert errors.p_value == first.p_value
    assert errors.upper_bound == pytest.approx(first.upper_bound, abs=1e-6)
    if baseline.any() or candidate.any():
        percent = certify(100 * baseline, 100 * candidate, tolerated_drop=100 * drop)
        assert percent.statistic == pytest.approx(first.statistic)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerated_drop": -0.1}, "tolerated_drop must be at least 0"),
        ({"tolerated_drop": 1.0}, "Is it a percentage"),
        ({"tolerated_drop": math.nan}, "tolerated_drop must be"),
        ({"tolerated_drop": 0.1, "alpha": 0.0}, "alpha must be above 0 and below 0.5"),
        ({"tolerated_drop": 0.1, "alpha": 0.5}, "alpha must be above 0 and below 0.5"),
        ({"tolerated_drop": 0.1, "alpha": 5.0}, "alpha must be above 0 and below 0.5"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        certify([1, 1, 0], [1, 0, 0], **options)


def test_importing_the_module_loads_neither_scipy_nor_torch() -> None:
    code = "import sys, kedro_aat.certificate; sys.exit(bool({'scipy', 'torch', 'kedro'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

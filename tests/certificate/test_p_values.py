"""Tango's score, the exact tail probability, and how often the exact test errs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial

from kedro_aat.certificate.p_values import largest_tail, most_lost, tail_probability, tango_score
from tests.certificate.outcomes import counted, critical_score


def test_score_without_a_tolerated_drop_is_mcnemars() -> None:
    # Agresti, Categorical Data Analysis, approval ratings of the prime minister: z = -4.17.
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


@pytest.mark.parametrize(("drop", "expected"), [(0.01, -math.sqrt(10 * 0.01 / 0.99)), (0.0, 0.0)])
def test_score_of_equal_outcomes(drop: float, expected: float) -> None:
    # The likeliest share of won examples is 0. Without a tolerated drop there is no evidence for either side.
    assert counted(10, 0, 0, drop).statistic == pytest.approx(expected)


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


def test_tail_probability_of_all_outcomes_and_of_none() -> None:
    num_examples = 20_000
    every, none = num_examples - np.arange(num_examples + 1), most_lost(-1000, num_examples, 0.1)
    assert (none == -1).all()
    shares_won = np.array([0, 1e-5, 0.2, 0.5])
    assert tail_probability(every, 0.5 * shares_won, shares_won) == pytest.approx(np.ones(4), abs=1e-10)
    assert tail_probability(none, 0.5 * shares_won, shares_won).tolist() == [0] * 4


@pytest.mark.parametrize(
    ("num_examples", "lost", "won", "drop"),
    [
        # The tail is largest at a low share of won examples,
        (50, 0, 1, 0.0),
        (200, 1, 1, 0.01),
        (2500, 0, 1, 0.0),
        # in between,
        (3, 0, 1, 0.3),
        (20, 2, 5, 0.1),
        (5, 0, 3, -0.1),
        # and where nearly all examples are lost or won.
        (50, 0, 15, 0.1),
        (200, 14, 52, 0.05),
    ],
)
def test_p_value_is_the_largest_probability_of_all_shares(num_examples: int, lost: int, won: int, drop: float) -> None:
    score = float(tango_score(np.array(lost), np.array(won), num_examples, drop))
    lowest, highest = max(0.0, -drop), (1 - drop) / 2
    near = np.linspace(0, math.sqrt((highest - lowest) / 2), 1000) ** 2
    shares = np.concatenate((lowest + near, highest - near))
    largest = tail_probability(most_lost(score, num_examples, drop), drop + shares, shares).max()
    assert largest <= largest_tail(score, num_examples, drop) <= 1.0011 * largest


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

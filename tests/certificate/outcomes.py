"""Scores with given numbers of lost and won examples, and what the exact test says about them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from kedro_aat.certificate import Certificate, certify
from kedro_aat.certificate.p_values import largest_tail, most_lost, tail_probability, tango_score

Floats = NDArray[np.float64]


def outcomes(num_examples: int, lost: int, won: int) -> tuple[Floats, Floats]:
    """Returns scores of 0 and 1 with these numbers of examples lost and won."""
    baseline, candidate = np.ones(num_examples), np.ones(num_examples)
    candidate[:lost], baseline[lost : lost + won] = 0, 0
    return baseline, candidate


def counted(num_examples: int, lost: int, won: int, tolerated_drop: float, alpha: float = 0.05) -> Certificate:
    return certify(*outcomes(num_examples, lost, won), tolerated_drop=tolerated_drop, alpha=alpha)


@lru_cache
def critical_score(num_examples: int, drop: float, alpha: float = 0.05) -> float:
    """Returns the largest score that the exact test still certifies, among all outcomes."""
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


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int, float]:
    """Draws numbers of examples, lost ones and won ones, and a tolerated drop."""
    num_examples = draw(st.integers(1, 30))
    lost = draw(st.integers(0, num_examples))
    won = draw(st.integers(0, num_examples - lost))
    return num_examples, lost, won, draw(st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.3]))

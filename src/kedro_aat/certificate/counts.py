"""The exact test of scores that are right or wrong: p-values from the numbers of lost and won examples."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@lru_cache(maxsize=4096)
def p_of_counts(lost: int, won: int, num_examples: int, drop: float) -> float:
    """The exact unconditional p-value of the hypothesis that the true drop is at least `drop`.

    The normal approximation to the score is lenient where few are lost: with 1 of 360 and a budget of 0.01 it says
    .084, and a fair count .124. So outcomes are ordered by the score, and the probability of one at least as extreme
    is computed exactly and maximised over the unknown share of won examples (Hsueh, Liu and Chen 2001, Biometrics
    57:478-483; Sidik 2003, Statistics in Medicine 22:265-278). A larger true drop cannot make it larger: among the
    examples not won the number of lost is binomial, and the score rises with it.

    Args:
        lost: Examples on which the candidate is worse.
        won: Examples on which it is better.
        num_examples: All examples.
        drop: The hypothesis, in (-1, 1).
    """
    return largest_tail(float(tango_score(np.array(lost), np.array(won), num_examples, drop)), num_examples, drop)


def tango_score(lost: NDArray[Any], won: NDArray[Any], num_examples: int, drop: float) -> Floats:
    """Tango's score for the hypothesis that the true drop is `drop`; negative where fewer are lost than it says.

    Tango (1998), Statistics in Medicine 17:891-908: the difference to what the hypothesis expects, in standard
    errors that use the maximum-likelihood estimate of the share of won examples under it, the larger root of
    2n q² + ((2n - lost + won) drop - lost - won) q - won drop (1 - drop) = 0.
    """
    linear = (2 * num_examples - lost + won) * drop - lost - won
    root = np.sqrt(np.maximum(linear**2 + 8 * num_examples * won * drop * (1 - drop), 0))
    share_won = (root - linear) / (4 * num_examples)
    variance = num_examples * (2 * share_won + drop * (1 - drop))
    known = variance > 1e-12  # else neither lost nor won, and a drop of 0: nothing speaks for either side
    difference = lost - won - num_examples * drop
    return np.where(known, difference / np.sqrt(np.where(known, variance, 1)), 0.0)


def largest_tail(score: float, num_examples: int, drop: float) -> float:
    """The largest probability, over the share of won examples, of a score of at most `score` at a true drop `drop`."""
    limits, shares = most_lost(score, num_examples, drop), _shares_won(num_examples, drop)
    largest = float(tail_probability(limits, drop + shares, shares).max())
    # Between two shares it may be larger, by a measured 0.0005 of itself at most.
    return min(1.001 * largest, 1.0)


def most_lost(score: float, num_examples: int, drop: float) -> Indices:
    """Largest number of lost examples with a score of at most `score`, by number of won ones, (N + 1,); -1 if none."""
    won = np.arange(num_examples + 1)
    low, high = np.full(num_examples + 1, -1), num_examples - won
    while (low < high).any():
        middle = (low + high + 1) // 2
        # Outcomes as extreme as the one seen belong to the tail, whatever rounding says.
        inside = tango_score(middle, won, num_examples, drop) <= score + 1e-9
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    return low


def tail_probability(limits: Indices, shares_lost: ArrayLike, shares_won: ArrayLike) -> Floats:
    """Probabilities that no more are lost than `limits`, (N + 1,), as of `most_lost`, allow.

    Args:
        limits: Most that may be lost, by number of won examples, (N + 1,).
        shares_lost: True shares of lost examples, (S,).
        shares_won: True shares of won examples, (S,).

    Returns:
        Probabilities, (S,).
    """
    from scipy.special import bdtr, gammaln, xlog1py, xlogy

    num_examples = len(limits) - 1
    share_lost, share_won = np.atleast_1d(np.asarray(shares_lost), np.asarray(shares_won))
    # Of an example that is not won to be lost.
    chance = np.minimum(share_lost / np.maximum(1 - share_won, 1e-300), 1)
    # The number won is binomial, and beyond this reach of its mean lies less than 1e-14.
    reach = 8 * np.sqrt(num_examples * share_won * (1 - share_won)) + 20
    first = np.maximum(np.floor(num_examples * share_won - reach), 0).astype(np.int64)
    last = np.minimum(np.ceil(num_examples * share_won + reach), num_examples).astype(np.int64)
    # All numbers from first to last, of all shares in one vector, and which share each belongs to.
    sizes = last - first + 1
    of = np.repeat(np.arange(len(sizes)), sizes)
    won = np.arange(len(of)) + (first - np.cumsum(sizes) + sizes)[of]
    of, won = of[limits[won] >= 0], won[limits[won] >= 0]
    rest = num_examples - won
    ways = gammaln(num_examples + 1) - gammaln(won + 1) - gammaln(rest + 1)
    density = np.exp(ways + xlogy(won, share_won[of]) + xlog1py(rest, -share_won[of]))
    sums: Floats = np.bincount(of, weights=density * bdtr(limits[won], rest, chance[of]), minlength=len(sizes)).astype(
        np.float64
    )
    return sums


def _shares_won(num_examples: int, drop: float) -> Floats:
    """The shares of won examples over which the tail is maximised, from the least to the largest possible one.

    Dense where few are won, or few are neither lost nor won: there the tail probability shows the single counts, at
    the scale of a standard error of the square root of the share, 1 / (2 sqrt(N)). Between, it is smooth.
    """
    least, largest = max(0.0, -drop), (1 - drop) / 2
    middle = math.sqrt((largest - least) / 2)
    dense = np.arange(160) / (24 * math.sqrt(num_examples))
    roots = np.concatenate((dense[dense < middle], np.linspace(min(dense[-1], middle), middle, 65)))
    shares = np.concatenate((least + roots**2, largest - roots**2))
    return np.unique(np.clip(shares, least, largest))

"""P-values of the hypothesis that a drop is too large: exact for scores that are right or wrong, a bound for others.

Right or wrong scores are counted: `p_of_counts`. Other scores have a mean of drops that may be rare and large:
`p_of_mean`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A variance below this is zero but for rounding. In squared examples.
_MIN_VARIANCE = 1e-12
# Scores that differ by less than this are equal but for rounding.
_SCORE_TOLERANCE = 1e-9
# Between two shares of the grid the tail probability may be larger, by a measured 0.0007 of itself at most.
_GRID_ALLOWANCE = 1.001
# A number with a smaller standard deviation takes each of its values in a sum. One that is wider needs more than
# 198,000 examples, and one of two thirds of it 88,000.
_EXACT_DEVIATION = 210

# From more examples the drops of other scores are spread over the points of a grid, this many cells wide.
_MOST_SINGLE_DROPS, _NUM_CELLS = 20_000, 2**14
# Relative precision of the integral that is the p-value of other scores.
_PRECISION = 1e-10

# What can happen to an example: it is lost, won, or neither. The score rises with the number of examples of the outcome
# beside each, if that of the outcome itself is the same.
LOST, WON, SAME = range(3)
_BESIDE = {LOST: SAME, WON: LOST, SAME: LOST}

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@lru_cache(maxsize=4096)
def p_of_counts(lost: int, won: int, num_examples: int, drop: float) -> float:
    """Computes the exact unconditional p-value of the hypothesis that the true drop is at least `drop`.

    The normal approximation to the score is lenient if few examples are lost: with 1 of 360 and a budget of 0.01 it
    gives .084, and the exact count .124. So outcomes are ordered by the score, and the probability of one at least as
    extreme is computed exactly and maximized over the unknown share of won examples (Hsueh, Liu and Chen 2001,
    Biometrics 57:478-483; Sidik 2003, Statistics in Medicine 22:265-278). A larger true drop cannot make it larger:
    among the examples not won the number of lost ones is binomial, and the score rises with it.

    Args:
        lost: Number of examples on which the candidate is worse.
        won: Number of examples on which the candidate is better.
        num_examples: Number of all examples.
        drop: The hypothesis, in (-1, 1).
    """
    return largest_tail(float(tango_score(np.array(lost), np.array(won), num_examples, drop)), num_examples, drop)


def tango_score(lost: NDArray[Any], won: NDArray[Any], num_examples: int, drop: float) -> Floats:
    """Computes Tango's score for the hypothesis that the true drop is `drop`.

    Tango (1998), Statistics in Medicine 17:891-908: the difference to what the hypothesis expects, in standard
    errors that use the maximum-likelihood estimate of the share of won examples under it, the larger root of
    2n q² + ((2n - lost + won) drop - lost - won) q - won drop (1 - drop) = 0.

    Args:
        lost: Numbers of lost examples.
        won: Numbers of won examples, of the same shape.
        num_examples: Number of all examples, n.
        drop: The hypothesis, in (-1, 1).

    Returns:
        Scores of the same shape; negative if fewer examples are lost than the hypothesis expects.
    """
    linear = (2 * num_examples - lost + won) * drop - lost - won
    root = np.sqrt(np.maximum(linear**2 + 8 * num_examples * won * drop * (1 - drop), 0))
    share_won = (root - linear) / (4 * num_examples)
    variance = num_examples * (2 * share_won + drop * (1 - drop))
    # Otherwise none is lost or won, and the drop is 0: there is no evidence for either side.
    is_known = variance > _MIN_VARIANCE
    difference = lost - won - num_examples * drop
    return np.where(is_known, difference / np.sqrt(np.where(is_known, variance, 1)), 0.0)


def largest_tail(score: float, num_examples: int, drop: float) -> float:
    """Computes the probability of a score of at most `score`, maximized over the share of won examples.

    Args:
        score: A value of Tango's score.
        num_examples: Number of all examples.
        drop: The true drop, in (-1, 1).
    """
    shares_won = _shares_won(num_examples, drop)
    shares = np.clip(np.stack((shares_won + drop, shares_won, 1 - drop - 2 * shares_won)), 0, 1)  # (3, S)
    rarest = shares.argmin(axis=0)
    largest = max(
        float(_tails(score, num_examples, drop, outcome, shares[:, rarest == outcome]).max(initial=0))
        for outcome in (LOST, WON, SAME)
    )
    return min(_GRID_ALLOWANCE * largest, 1.0)


def most_lost(score: float, num_examples: int, drop: float) -> Indices:
    """Finds the largest number of lost examples at which the score is at most `score`.

    Args:
        score: A value of Tango's score.
        num_examples: Number of all examples, N.
        drop: The hypothesis, in (-1, 1).

    Returns:
        The number for each number of won examples from 0 to N, (N + 1,); -1 if there is none.
    """
    return _limits(score, num_examples, drop, WON, np.arange(num_examples + 1))[0]


def tail_probability(limits: Indices, shares_lost: ArrayLike, shares_won: ArrayLike) -> Floats:
    """Computes the probabilities that no more examples are lost than `limits` allow.

    Args:
        limits: Largest number of lost examples for each number of won ones, as `most_lost` returns them, (N + 1,).
        shares_lost: True shares of lost examples, (S,).
        shares_won: True shares of won examples, (S,).

    Returns:
        Probabilities, (S,).
    """
    share_lost, share_won = np.atleast_1d(np.asarray(shares_lost), np.asarray(shares_won))
    num_examples = len(limits) - 1
    won, share_index = _numbers(num_examples, share_won, np.ones(len(share_won), np.int64))
    return _sums(won, share_index, limits[won], share_won, share_lost, num_examples)


def _tails(score: float, num_examples: int, drop: float, rarest: int, shares: Floats) -> Floats:
    """Computes the probabilities of a score of at most `score`, as a sum over the numbers of the rarest outcome.

    Beside it the number of another outcome is binomial and at least as widely spread, so the sum has the fewest terms.
    Where it would have thousands they change smoothly from one number to the next, and a sum in steps of a third of a
    standard deviation is as precise: its error falls as exp(-c (deviation / step)²), with c above 3 here (Trefethen
    and Weideman 2014, SIAM Review 56:385-458, section 5). Whole limits would not be smooth. Between two of them the
    limit is interpolated, which adds part of the next, less extreme outcome. So a probability is never smaller than the
    exact one, and larger by at most 0.6% at a score of -1.6, and 2% at -7.

    Args:
        score: A value of Tango's score.
        num_examples: Number of all examples.
        drop: The true drop, in (-1, 1).
        rarest: The rarest outcome.
        shares: True shares of lost, won and same examples, (3, S).

    Returns:
        Probabilities, (S,).
    """
    share, share_beside = shares[rarest], shares[_BESIDE[rarest]]
    deviations = np.sqrt(num_examples * share * (1 - share))
    steps = np.where(deviations < _EXACT_DEVIATION, 1, deviations / 3).astype(np.int64)
    numbers, share_index = _numbers(num_examples, share, steps)
    distinct, inverse = np.unique(numbers, return_inverse=True)
    whole, parts = (limits[inverse] for limits in _limits(score, num_examples, drop, rarest, distinct))
    # The interpolation fades in, lest the probability jump where a share crosses from one to the other.
    fading = np.clip(3 * deviations / _EXACT_DEVIATION - 2, 0, 1)
    limits = whole + fading[share_index] * parts
    return steps * _sums(numbers, share_index, limits, share, share_beside, num_examples)


def _limits(score: float, num_examples: int, drop: float, outcome: int, numbers: Indices) -> tuple[Indices, Floats]:
    """Finds how often the outcome beside `outcome` can be seen while the score is at most `score`.

    Args:
        score: A value of Tango's score.
        num_examples: Number of all examples.
        drop: The hypothesis, in (-1, 1).
        outcome: The outcome whose numbers are given.
        numbers: Its numbers, (K,).

    Returns:
        The largest number, -1 if there is none, and the part in [0, 1) of the next one at which a score in between is
        `score`, (K,) each.
    """

    def scores(beside: Indices) -> Floats:
        counts = {outcome: numbers, _BESIDE[outcome]: beside}
        rest = num_examples - numbers - beside
        return tango_score(counts.get(LOST, rest), counts.get(WON, rest), num_examples, drop)

    # Outcomes as extreme as the observed one belong to the tail, despite rounding.
    largest = score + _SCORE_TOLERANCE
    low, high = np.full(len(numbers), -1), num_examples - numbers
    while (low < high).any():
        middle = (low + high + 1) // 2
        is_inside = scores(middle) <= largest
        low, high = np.where(is_inside, middle, low), np.where(is_inside, high, middle - 1)
    has_part = (low >= 0) & (low < num_examples - numbers)
    first = np.where(has_part, low, 0)
    below, above = scores(first), scores(np.minimum(first + 1, num_examples - numbers))
    parts = (largest - below) / np.where(has_part, above - below, 1)
    return low, np.where(has_part, np.clip(parts, 0, 1 - 1e-9), 0.0)


def _numbers(num_examples: int, shares: Floats, steps: Indices) -> tuple[Indices, Indices]:
    """Returns the numbers that a binomial variable can have, all but less than 1e-14 of its probability.

    Args:
        num_examples: Number of all examples.
        shares: Its shares, (S,).
        steps: Distances of the numbers, (S,).

    Returns:
        The numbers of all shares in one vector, and the index of the share of each, (K,) each.
    """
    reach = 8 * np.sqrt(num_examples * shares * (1 - shares)) + 20
    first = np.maximum(np.floor(num_examples * shares - reach), 0).astype(np.int64)
    last = np.minimum(np.ceil(num_examples * shares + reach), num_examples).astype(np.int64)
    sizes = (last - first) // steps + 1
    share_index = np.repeat(np.arange(len(sizes)), sizes)
    position = np.arange(len(share_index)) - (np.cumsum(sizes) - sizes)[share_index]
    return first[share_index] + steps[share_index] * position, share_index


def _sums(
    numbers: Indices, share_index: Indices, limits: Indices | Floats, shares: Floats, shares_beside: Floats, total: int
) -> Floats:
    """Sums the probabilities that an outcome has a number, and the one beside it has no more than its limit.

    Args:
        numbers: Numbers of the outcome, (K,).
        share_index: Index of the share of each number, (K,).
        limits: Largest number of the outcome beside it, (K,).
        shares: True shares of the outcome, (S,).
        shares_beside: True shares of the outcome beside it, (S,).
        total: Number of all examples.

    Returns:
        Probabilities, (S,).
    """
    from scipy.special import betainc, gammaln, xlog1py, xlogy

    # The probability that an example without the outcome has the one beside it.
    chance = np.minimum(shares_beside / np.maximum(1 - shares, 1e-300), 1)
    is_possible = limits >= 0
    numbers, share_index, limits = numbers[is_possible], share_index[is_possible], limits[is_possible]
    rest = total - numbers
    ways = gammaln(total + 1) - gammaln(numbers + 1) - gammaln(rest + 1)
    density = np.exp(ways + xlogy(numbers, shares[share_index]) + xlog1py(rest, -shares[share_index]))
    # The binomial distribution as an incomplete beta function, which is defined between whole numbers, too.
    beside = betainc(np.maximum(rest - limits, 1e-300), limits + 1, 1 - chance[share_index])
    probability = density * np.where(limits < rest, beside, 1)
    sums: Floats = np.bincount(share_index, weights=probability, minlength=len(shares)).astype(np.float64)
    return sums


def _shares_won(num_examples: int, drop: float) -> Floats:
    """Returns shares of won examples at which the tail is computed, from the lowest to the highest possible one.

    They are dense where few examples are won, or few are neither lost nor won: there the tail probability has a bump
    for every count, at the scale of a standard error of the square root of the share, 1 / (2 sqrt(N)). The bumps become
    lower as counts grow, and the shares less dense. In between it is smooth.
    """
    least, largest = max(0.0, -drop), (1 - drop) / 2
    middle = math.sqrt((largest - least) / 2)
    distances = np.concatenate((np.zeros(1), np.ones(159), 1.15 ** np.arange(100))).cumsum()
    dense = distances / max(24 * math.sqrt(num_examples), 64 / middle)
    dense = dense[dense < middle]
    even = np.linspace(0, middle, 17)
    sparse = np.searchsorted(np.diff(dense), even[1]) + 1
    roots = np.concatenate((dense[:sparse], even[even > dense[sparse - 1]]))
    shares = np.concatenate((least + roots**2, largest - roots**2))
    return np.unique(np.clip(shares, least, largest))


def p_of_mean(drops: NDArray[np.float64], worst: float, drop: float) -> float:
    """Computes the p-value of the hypothesis that the mean drop is at least `drop`, for drops of at most `worst`.

    It is the probability that a mean of the observed drops and one `worst` exceeds `drop` under random weights,
    uniform on the simplex (Gaffke 2005, Mathematical Methods of Statistics 14:451-467). For scores of 0 and 1 it is
    the bound of Clopper and Pearson. Its validity for all bounded distributions is a conjecture without a known
    counterexample (Learned-Miller and Thomas 2019, arXiv:1905.06208).

    Such weights are independent exponential variables divided by their sum, so this is the probability that a weighted
    sum of exponential variables is positive. It is computed without simulation, as the integral of exp(K(s)) / s along
    the vertical line through its saddle point, where K is the cumulant generating function of the sum; there the
    integrand hardly oscillates, so small probabilities are precise too (Daniels 1987, International Statistical Review
    55:37-48, on such integrals).

    With more than 20,000 examples each drop is spread over the two nearest of about 16,000 points: see `_on_grid`.

    Args:
        drops: One drop per example, (N,).
        worst: Largest possible drop of one example, in the same unit.
        drop: The hypothesis, less than `worst`.
    """
    from scipy.optimize import brentq

    all_drops = np.append(drops, worst)
    values, counts = (
        np.unique(all_drops, return_counts=True) if len(drops) <= _MOST_SINGLE_DROPS else _on_grid(all_drops)
    )
    values = values - drop
    values = values / values.max()  # `worst` is the largest, so the saddle point lies between 0 and 1

    def slope(s: float) -> float:
        return float(counts @ (values / (1 - s * values))) - 1 / s

    saddle = float(brentq(slope, 1e-12, 1 - 1e-12, xtol=1e-14))
    tilted = values / (1 - saddle * values)
    width = 1 / math.sqrt(float(counts @ tilted**2) + saddle**-2)

    def total(first: float, spacing: float) -> float:
        result, size = 0.0, 1.0
        positions = first + spacing * np.arange(math.ceil(40 / spacing))
        # Many at a time, for speed, but only about 32,000 numbers, for memory.
        for chunk in np.array_split(positions, math.ceil(len(positions) * len(tilted) / 2**15)):
            if size * math.cosh(chunk[0]) < 1e-17:
                break
            # Positions that grow as a hyperbolic sine follow both a normal peak and the slow tail of few examples.
            t = width * np.sinh(chunk)
            reached = np.outer(t, tilted)
            sizes = np.exp(-0.5 * (np.log1p(reached**2) @ counts))
            terms = sizes * np.exp(1j * (np.arctan(reached) @ counts)) / (saddle + 1j * t)
            result += float(terms.real @ np.cosh(chunk))
            size = float(sizes[-1])
        return result

    # Where few of many examples matter the phase of the integrand at its peak's edge is about sqrt(N): with a spacing
    # of 0.05 the p-value of 100,000 examples of which none is lost was 0.3% too small. So it is halved until the
    # integral stays the same.
    spacing, fewer, integral = 0.1, math.inf, 0.1 * (total(0, 0.1) - 0.5 / saddle)
    while abs(integral - fewer) > _PRECISION * abs(integral) and spacing > 0.1 / math.sqrt(len(all_drops)):
        fewer, integral = integral, integral / 2 + spacing / 2 * total(spacing / 2, spacing)
        spacing /= 2
    height = math.exp(-float(counts @ np.log1p(-saddle * values)))
    return float(np.clip(height * width * integral / math.pi, 0.0, 1.0))


def _on_grid(drops: Floats) -> tuple[Floats, Floats]:
    """Spreads each drop over the two nearest points of an even grid from the smallest drop to the largest.

    The shares of both keep its mean, and its exponential weight becomes two gamma weights with the same sum. So the
    weighted mean of all drops keeps its mean too, and is spread more widely (in the convex order). P-values of up to
    0.4 became larger by 0.03% at most in eleven kinds of scores, none smaller; those of about a half and more, which
    certify nothing, may become smaller. The variance grows by at most cell² / 4N, hence the standard error by less than
    0.1% with a million examples, since the range of the drops alone gives it range² / 2N². Rounding all drops up would
    cost half a cell, which can be more than the standard error.

    Args:
        drops: One drop per example, (N,).

    Returns:
        The points that have a share of a drop, and the sums of these shares, (K,) each.
    """
    low, high = drops.min(), drops.max()
    position = (drops - low) * (_NUM_CELLS / (high - low))
    below = np.minimum(position.astype(np.int64), _NUM_CELLS - 1)
    share = position - below
    counts: Floats = np.bincount(below, 1 - share, _NUM_CELLS + 1).astype(np.float64)
    counts[1:] += np.bincount(below, share, _NUM_CELLS)
    has_share = counts > 0
    points: Floats = np.linspace(low, high, _NUM_CELLS + 1)[has_share]
    return points, counts[has_share]

"""The statistics of the accuracy budget: standard errors, the one test that certifies a model, and its power.

All comparisons are paired: baseline and candidate are scored on the same examples, so only the examples on which they
differ speak. A *drop* is baseline minus candidate where higher scores are better and the reverse where lower ones are,
so a positive drop is always a loss. *Lost* examples are those on which the candidate is worse, *won* those on which it
is better.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kedro_aat.errors import DataError
from kedro_aat.validated import Settings

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Certificate(Settings):
    """The result of one paired, one-sided non-inferiority test of one model, on data that nothing was chosen by.

    Attributes:
        statistic: Tango's score for scores that are right or wrong, else the paired t; negative where the drop is
            smaller than tolerated.
        p_value: Largest probability of evidence this strong if the true drop were as large as tolerated, or larger.
        alpha: Accepted probability of certifying a model that breaks its budget.
        examples: Number of paired examples.
        discordant: Numbers of examples lost and won; None where scores are not right or wrong.
        tolerated_drop: The budget, in units of the scores.
        estimated_drop: Mean drop, in units of the scores.
        upper_bound: The smallest tolerated drop that would have been certified: the true drop is below it with
            confidence 1 - alpha.
    """

    statistic: float
    p_value: float
    alpha: float
    examples: int
    discordant: tuple[int, int] | None
    tolerated_drop: float
    estimated_drop: float
    upper_bound: float

    @property
    def is_certified(self) -> bool:
        """Whether the data refute that the budget is broken; never while `upper_bound` is above `tolerated_drop`."""
        return self.p_value <= self.alpha


def paired_standard_error(baseline_scores: ArrayLike, candidate_scores: ArrayLike) -> float:
    """The standard error of the difference of two metrics that are means of scores over the same examples.

    The plain estimate is 0 where all differences are equal, as if a few hundred examples without a disagreement proved
    that there is none. Agresti and Min (2005, Statistics in Medicine 24:729-740) therefore add half an example to each
    cell of the table of paired outcomes, which makes the Wald interval cover as it should: two more examples, one of
    them discordant, half lost and half won. Without a disagreement this gives 1 / (N + 2); with many it changes
    nothing. It is always added, since a floor with a threshold would rank 0 and 1 disagreements wrongly. Where scores
    are not 0 or 1, the added disagreement is as large as the largest difference, or score if there is no difference.

    Args:
        baseline_scores: One score an example, (N,), any units.
        candidate_scores: Scores of the same examples in the same order, (N,).

    Returns:
        The standard error in units of the scores, above 0; its sign and direction do not depend on what is better.

    Raises:
        DataError: If the scores are not finite numbers in two vectors of the same length, at least 1.
    """
    baseline, candidate = _paired(baseline_scores, candidate_scores)
    difference = baseline - candidate
    sizes = (np.abs(difference).max(), np.abs(baseline).max(), 1.0)
    size = next(float(size) for size in sizes if size > 0)
    scaled = difference / size  # so that squares neither overflow nor vanish
    count = len(scaled) + 2
    return size * math.sqrt(float(scaled @ scaled) + 1 - float(scaled.sum()) ** 2 / count) / count


def paired_bootstrap_standard_error(
    metric: Callable[[Indices], tuple[float, float]], num_examples: int, *, num_resamples: int = 1000, seed: int = 0
) -> float:
    """The standard error of the difference of two metrics that are not means over examples, such as AUC or IoU.

    Examples are drawn with replacement, the same ones for both models, and both metrics computed anew each time
    (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 6).

    Args:
        metric: Indices of examples, (N,) with repetitions -> the metrics of baseline and candidate on these examples.
        num_examples: N, the number of examples; at least 2.
        num_resamples: Calls of `metric`; the standard error is itself uncertain by 1 / sqrt(2 * num_resamples).
        seed: The result is a function of it.

    Returns:
        The standard error in units of the metric. It is 0 if no resample tells the models apart.

    Raises:
        DataError: If there are too few examples or resamples, or if the metric is not a finite number on more than a
            tenth of the resamples. Fewer are left out: an AUC has no value on a resample without positives.
    """
    if num_examples < 2 or num_resamples < 2:
        raise DataError(
            f"a bootstrap needs at least 2 examples and 2 resamples, but got {num_examples} and {num_resamples}"
        )
    generator = np.random.default_rng(seed)
    pairs = np.array(
        [metric(generator.integers(num_examples, size=num_examples)) for _ in range(num_resamples)], dtype=np.float64
    )  # (num_resamples, 2)
    differences = pairs[:, 0] - pairs[:, 1]
    finite = differences[np.isfinite(differences)]
    if len(finite) < 0.9 * num_resamples:
        raise DataError(
            f"the metric must be a finite number on at least nine tenths of the resamples, but it is on {len(finite)} "
            f"of {num_resamples}. Are there too few examples of one class?"
        )
    return float(finite.std(ddof=1))


def certify(
    baseline_scores: ArrayLike,
    candidate_scores: ArrayLike,
    *,
    tolerated_drop: float,
    higher_is_better: bool = True,
    alpha: float = 0.05,
    score_range: tuple[float, float] | None = None,
) -> Certificate:
    """Tests once whether the candidate keeps its budget; the null hypothesis is that the true drop is at least it.

    Scores that are all right or wrong (0 and 1, or 0 and 100) are counted, and tested exactly: see `_p_of_counts`.

    Other scores are tested by Gaffke's bound for the mean: see `_p_of_mean`. A paired t test would be simpler, but
    compression fails seldom and badly: a candidate that loses one example in a hundred shows no loss among 200 test
    examples in 13% of all draws, and a t test then is certain of it. Gaffke's bound adds one example, the worst one.

    Args:
        baseline_scores: One score a test example, (N,).
        candidate_scores: Scores of the same examples in the same order, (N,).
        tolerated_drop: Largest tolerated drop of the mean score, in units of the scores; at least 0.
        higher_is_better: Direction of the scores.
        alpha: Accepted probability of certifying a model that breaks its budget, in (0, 0.5).
        score_range: Lowest and highest possible score, for scores that are not right or wrong: how bad an example that
            was not drawn may be. By default the range of [0, 1] and all the scores.

    Raises:
        DataError: If the scores are not finite numbers in two vectors of the same length, at least 1; if they leave
            `score_range`; if `tolerated_drop` is negative, or so large that any model keeps it; or for a wrong alpha.
    """
    baseline, candidate = _paired(baseline_scores, candidate_scores)
    _check_alpha(alpha)
    unit = _unit_of_outcomes(baseline, candidate)
    if unit is not None:
        width = unit
    else:
        observed = min(baseline.min(), candidate.min()), max(baseline.max(), candidate.max())
        lowest, highest = score_range or (min(0.0, observed[0]), max(1.0, observed[1]))
        if not lowest <= observed[0] <= observed[1] <= highest:
            raise DataError(
                f"score_range must hold all scores, from {observed[0]:.4g} to {observed[1]:.4g}, "
                f"but got ({lowest}, {highest})"
            )
        width = highest - lowest
    if not 0 <= tolerated_drop < width:
        raise DataError(
            f"tolerated_drop must be at least 0 and less than the range of the scores ({width:.4g}), "
            f"but got {tolerated_drop}. Is it a percentage? Write {tolerated_drop / 100:.4g}"
        )
    drops = (baseline - candidate) * (1 if higher_is_better else -1)  # (N,)
    mean = float(drops.mean())
    discordant: tuple[int, int] | None = None
    if unit is not None:
        lost, won = discordant = int((drops > 0).sum()), int((drops < 0).sum())
        num_examples = len(drops)
        statistic = float(tango_score(np.array(lost), np.array(won), num_examples, tolerated_drop / unit))

        def p_value(drop: float) -> float:
            return _p_of_counts(lost, won, num_examples, drop / unit)
    else:
        statistic = (mean - tolerated_drop) / paired_standard_error(baseline, candidate)

        def p_value(drop: float) -> float:
            return _p_of_mean(drops, width, drop)

    return Certificate(
        statistic=statistic,
        p_value=p_value(tolerated_drop),
        alpha=alpha,
        examples=len(drops),
        discordant=discordant,
        tolerated_drop=tolerated_drop,
        estimated_drop=mean,
        upper_bound=_upper_bound(p_value, alpha, mean, tolerated_drop, width),
    )


def power(num_examples: int, true_drop: float, discordance: float, tolerated_drop: float, alpha: float = 0.05) -> float:
    """The probability that a candidate will be certified, known before it is tested.

    The normal approximation to the power of Tango's score test, with the restricted estimate that the test settles on
    in large samples (Nam 1997, Biometrics 53:1422-1430). `tests/test_certificate.py` compares it with the exact test.

    Args:
        num_examples: Test examples.
        true_drop: True drop of a metric that is the mean of scores 0 and 1; negative where the candidate is better.
        discordance: Share of examples on which the models disagree, in [|true_drop|, 1]. For other scores in [0, 1],
            the mean of the squared differences, for which the result is an approximation.
        tolerated_drop: The budget, in [0, 1).
        alpha: Level of the test, in (0, 0.5).

    Returns:
        A probability; 0 where the true drop is not within the budget.

    Raises:
        DataError: If an argument is out of its range.
    """
    from scipy.stats import norm

    if num_examples < 1:
        raise DataError(f"num_examples must be at least 1, but got {num_examples}")
    spread_at_budget, spread = _spreads(true_drop, discordance, tolerated_drop, alpha)
    if true_drop >= tolerated_drop or num_examples < _fewest(true_drop, tolerated_drop, alpha):
        return 0.0
    surplus = (tolerated_drop - true_drop) * math.sqrt(num_examples) - norm.isf(alpha) * spread_at_budget
    if spread == 0:
        return float(surplus >= 0)
    return float(norm.cdf(surplus / spread))


def examples_needed(
    true_drop: float, discordance: float, tolerated_drop: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """How many test examples it takes to certify a candidate with the wanted power; see `power`.

    Args:
        true_drop: Expected drop; both it and `discordance` may come from validation data.
        discordance: Expected share of examples on which the models disagree.
        tolerated_drop: The budget.
        alpha: Level of the test.
        power: Wanted probability of being certified, in (0, 1).

    Returns:
        The number, or None where the true drop is not within the budget, so that no number is enough.

    Raises:
        DataError: If an argument is out of its range.
    """
    from scipy.stats import norm

    if not 0 < power < 1:
        raise DataError(f"power must be above 0 and below 1, but got {power}. 0.8 is usual")
    spread_at_budget, spread = _spreads(true_drop, discordance, tolerated_drop, alpha)
    if true_drop >= tolerated_drop:
        return None
    # May be negative, for hardly any power; the fewest examples then bound it.
    root = (norm.isf(alpha) * spread_at_budget + norm.ppf(power) * spread) / (tolerated_drop - true_drop)
    return max(1, math.ceil(max(float(root), 0.0) ** 2), _fewest(true_drop, tolerated_drop, alpha))


def _paired(baseline_scores: ArrayLike, candidate_scores: ArrayLike) -> tuple[Floats, Floats]:
    vectors: list[Floats] = []
    for name, scores in (("baseline_scores", baseline_scores), ("candidate_scores", candidate_scores)):
        try:
            vector = np.asarray(scores, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(f"{name} must be numbers, but got {type(scores).__name__}") from None
        if vector.ndim != 1:
            raise DataError(f"{name} must be one score an example, of shape (N,), but its shape is {vector.shape}")
        if bad := int((~np.isfinite(vector)).sum()):
            raise DataError(f"{name} must be finite numbers, but {bad} of {len(vector)} are NaN or infinite")
        vectors.append(vector)
    baseline, candidate = vectors
    if len(baseline) != len(candidate):
        raise DataError(
            "the scores must be of the same examples in the same order, "
            f"but there are {len(baseline)} of the baseline and {len(candidate)} of the candidate"
        )
    if not len(baseline):
        raise DataError("there must be at least one score, but there are none")
    return baseline, candidate


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise DataError(f"alpha must be above 0 and below 0.5, but got {alpha}. 0.05 is usual")


def _unit_of_outcomes(baseline: Floats, candidate: Floats) -> float | None:
    """What one right example scores, 1 or 100, if all scores are right or wrong; else None."""
    scores = np.concatenate((baseline, candidate))
    return next((unit for unit in (1.0, 100.0) if np.isin(scores, (0.0, unit)).all()), None)


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


@lru_cache(maxsize=4096)
def _p_of_counts(lost: int, won: int, num_examples: int, drop: float) -> float:
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


def _p_of_mean(drops: Floats, worst: float, drop: float) -> float:
    """The p-value of the hypothesis that the mean drop is at least `drop`, for drops of at most `worst`.

    The probability that a mean of the observed drops and one `worst` exceeds `drop` under random weights, uniform on
    the simplex (Gaffke 2005, Mathematical Methods of Statistics 14:451-467). On scores of 0 and 1 it is the bound of
    Clopper and Pearson. That it is valid for all bounded distributions is a conjecture without a known counterexample
    (Learned-Miller and Thomas 2019, arXiv:1905.06208).

    Such weights are independent exponential variables over their sum, so this is the probability that a weighted sum
    of exponential variables is positive. It is computed without simulation, as the integral of exp(K(s)) / s along
    the vertical line through its saddle point, with K the cumulant generating function of the sum; there the integrand
    hardly oscillates, so that small probabilities are precise too (Daniels 1987, International Statistical Review
    55:37-48, on such integrals).

    Args:
        drops: One drop an example, (N,).
        worst: Largest possible drop of an example.
        drop: The hypothesis, less than `worst`.
    """
    from scipy.optimize import brentq

    values, counts = np.unique(np.append(drops, worst) - drop, return_counts=True)
    values = values / values.max()  # `worst` is the largest, so the saddle point lies between 0 and 1

    def slope(s: float) -> float:
        return float(counts @ (values / (1 - s * values))) - 1 / s

    saddle = float(brentq(slope, 1e-12, 1 - 1e-12, xtol=1e-14))
    width = 1 / math.sqrt(float(counts @ (values / (1 - saddle * values)) ** 2) + saddle**-2)
    height = -float(counts @ np.log1p(-saddle * values))
    # Steps that grow as a hyperbolic sine follow both a normal peak and the slow tail of few examples.
    step, total = 0.05, 0.0
    for position in np.arange(0, 40, step):
        t = width * math.sinh(position)
        tilted = t * values / (1 - saddle * values)
        size = math.exp(height - 0.5 * float(counts @ np.log1p(tilted**2)))
        term = cmath.rect(size, float(counts @ np.arctan(tilted))) / complex(saddle, t)
        total += term.real * width * math.cosh(position) * (0.5 if position == 0 else 1)
        if size * math.cosh(position) < 1e-17 * math.exp(height):
            break
    return float(np.clip(total * step / math.pi, 0.0, 1.0))


def _upper_bound(
    p_value: Callable[[float], float], alpha: float, estimated: float, tolerated: float, largest: float
) -> float:
    """The drop at which the p-value is alpha, on that side of `tolerated` on which the p-value says that it lies."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def excess(drop: float) -> float:
        # As a normal score, which is nearly linear in the drop, so that a few steps find the root.
        return float(norm.ppf(np.clip(p_value(drop), 1e-300, 1 - 1e-16)) - norm.ppf(alpha))

    low, high = estimated, tolerated
    if excess(tolerated) > 0:
        low, high = max(tolerated, estimated), largest * (1 - 1e-9)
        if high <= low or excess(high) > 0:
            return largest
    return float(brentq(excess, low, high, xtol=1e-6 * largest, rtol=1e-6))


def _spreads(true_drop: float, discordance: float, tolerated_drop: float, alpha: float) -> tuple[float, float]:
    """Standard deviations of one example's drop: as the score estimates it at the budget, and the true one."""
    _check_alpha(alpha)
    if not 0 <= tolerated_drop < 1:
        raise DataError(
            f"tolerated_drop must be at least 0 and below 1, but got {tolerated_drop}. "
            f"Is it a percentage? Write {tolerated_drop / 100:.4g}"
        )
    if not abs(true_drop) <= discordance <= 1:
        raise DataError(
            f"discordance must be at least the size of true_drop ({abs(true_drop):.4g}) and at most 1, "
            f"but got {discordance}"
        )
    won = (discordance - true_drop) / 2
    # The equation of `tango_score` with shares in place of counts.
    linear = (2 - true_drop) * tolerated_drop - discordance
    share_won = (math.sqrt(linear**2 + 8 * won * tolerated_drop * (1 - tolerated_drop)) - linear) / 4
    at_budget = math.sqrt(2 * share_won + tolerated_drop * (1 - tolerated_drop))
    return at_budget, math.sqrt(discordance - true_drop**2)


def _fewest(true_drop: float, tolerated_drop: float, alpha: float) -> int:
    """Examples without which not even a candidate that loses and wins nothing is certified, (1 - drop)^N = alpha.

    The normal approximation knows no such limit. A candidate that is truly better may be certified with fewer.
    """
    if true_drop < 0 or tolerated_drop == 0:
        return 1
    return math.ceil(math.log(alpha) / math.log1p(-tolerated_drop))

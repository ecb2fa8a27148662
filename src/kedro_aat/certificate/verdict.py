"""The one test that certifies a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from kedro_aat.certificate.p_values import p_of_counts, p_of_mean, tango_score
from kedro_aat.certificate.paired_scores import paired, paired_standard_error, unit_of_outcomes
from kedro_aat.errors import DataError
from kedro_aat.validated import Settings


class Certificate(Settings):
    """The result of one paired, one-sided non-inferiority test of one model, on data that influenced no choice.

    Attributes:
        statistic: Tango's score for scores that are right or wrong, else the paired t; negative if the drop is smaller
            than tolerated.
        p_value: Largest probability of evidence this strong if the true drop were as large as tolerated, or larger.
        alpha: Accepted probability of certifying a model that breaks its budget.
        examples: Number of paired examples.
        discordant: Numbers of examples lost and won; None if scores are not right or wrong.
        unit: Score of a right example if scores are right or wrong; otherwise the width of their range.
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
    unit: float
    tolerated_drop: float
    estimated_drop: float
    upper_bound: float

    @property
    def is_certified(self) -> bool:
        """Whether the data refute that the budget is broken, so that `upper_bound` is at most `tolerated_drop`."""
        return self.p_value <= self.alpha


def certify(
    baseline_scores: ArrayLike,
    candidate_scores: ArrayLike,
    *,
    tolerated_drop: float,
    higher_is_better: bool = True,
    alpha: float = 0.05,
    score_range: tuple[float, float] | None = None,
) -> Certificate:
    """Tests once whether the candidate keeps its budget. The null hypothesis is a true drop of at least the budget.

    Scores that are all right or wrong (0 and 1, or 0 and 100) are counted, and tested exactly: see `p_of_counts`.

    Other scores are tested by Gaffke's bound for the mean: see `p_of_mean`. A paired t test would be simpler, but
    compression fails rarely and badly: a candidate that loses one example in a hundred shows no loss among 200 test
    examples in 13% of all draws, and a t test is then certain of it. Gaffke's bound adds one example, the worst one.

    Args:
        baseline_scores: One score per test example, (N,).
        candidate_scores: Scores of the same examples in the same order, (N,).
        tolerated_drop: Largest tolerated drop of the mean score, in units of the scores; at least 0.
        higher_is_better: Direction of the scores.
        alpha: Accepted probability of certifying a model that breaks its budget, in (0, 0.5).
        score_range: Lowest and highest possible score, for scores that are not right or wrong; it limits how bad an
            example that was not drawn may be. By default the range that includes 0, 1 and all scores.

    Raises:
        DataError: If the scores are not finite numbers in two vectors of the same length, at least 1; if they leave
            `score_range`; if `tolerated_drop` is negative, or so large that any model keeps it; or if `alpha` is out of
            its range.
    """
    baseline, candidate = paired(baseline_scores, candidate_scores)
    check_alpha(alpha)
    unit = unit_of_outcomes(baseline, candidate)
    if unit is not None:
        width = unit
    else:
        observed = min(baseline.min(), candidate.min()), max(baseline.max(), candidate.max())
        lowest, highest = score_range or (min(0.0, observed[0]), max(1.0, observed[1]))
        if not lowest <= observed[0] <= observed[1] <= highest:
            raise DataError(
                f"score_range must include all scores, from {observed[0]:.4g} to {observed[1]:.4g}, "
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
            return p_of_counts(lost, won, num_examples, drop / unit)
    else:
        statistic = (mean - tolerated_drop) / paired_standard_error(baseline, candidate)

        def p_value(drop: float) -> float:
            return p_of_mean(drops, width, drop)

    return Certificate(
        statistic=statistic,
        p_value=p_value(tolerated_drop),
        alpha=alpha,
        examples=len(drops),
        discordant=discordant,
        unit=width,
        tolerated_drop=tolerated_drop,
        estimated_drop=mean,
        upper_bound=_upper_bound(p_value, alpha, mean, tolerated_drop, width),
    )


def check_alpha(alpha: float) -> None:
    """Raises a DataError if `alpha` is not the level of a test, in (0, 0.5)."""
    if not 0 < alpha < 0.5:
        raise DataError(f"alpha must be above 0 and below 0.5, but got {alpha}. 0.05 is usual")


def _upper_bound(
    p_value: Callable[[float], float], alpha: float, estimated: float, tolerated: float, largest: float
) -> float:
    """Finds the drop at which the p-value is alpha, on that side of `tolerated` on which it must lie."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def excess(drop: float) -> float:
        # As a normal score, which is nearly linear in the drop, so that a few iterations find the root.
        return float(norm.ppf(np.clip(p_value(drop), 1e-300, 1 - 1e-16)) - norm.ppf(alpha))

    low, high = estimated, tolerated
    if excess(tolerated) > 0:
        low, high = max(tolerated, estimated), largest * (1 - 1e-9)
        if high <= low or excess(high) > 0:
            return largest
    return float(brentq(excess, low, high, xtol=1e-6 * largest, rtol=1e-6))

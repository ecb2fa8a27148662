"""The one test that certifies a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from kedro_aat.certificate.grouped import GroupedDrops
from kedro_aat.certificate.p_values import p_of_counts, p_of_mean, tango_score
from kedro_aat.certificate.paired_scores import Floats, paired, paired_standard_error, unit_of_outcomes
from kedro_aat.certificate.upper_bound import upper_bound
from kedro_aat.errors import DataError
from kedro_aat.validated import Settings

NO_RANGE = (
    "the scores have no known limit, and one example that was not drawn may be worse than all that were. "
    "Give the lowest and the highest possible score of an example as certificate.score_range"
)


class Certificate(Settings):
    """The result of one paired, one-sided non-inferiority test of one model, on data that influenced no choice.

    Attributes:
        kind: `exact` if the level of the test is at most alpha for any number of examples; `asymptotic` if that was
            shown by simulation, from `holds_from` examples on; None if the scores cannot be tested.
        statistic: Tango's score for scores that are right or wrong, else the paired t; negative if the drop is smaller
            than tolerated. None without a test.
        p_value: Largest probability of evidence this strong if the true drop were as large as tolerated, or larger; 1
            without a test.
        alpha: Accepted probability of certifying a model that breaks its budget.
        examples: Number of paired examples.
        discordant: Numbers of examples lost and won; None if scores are not right or wrong.
        unit: Score of a right example if scores are right or wrong; otherwise the width of their range, or None if it
            is unknown or infinite.
        tolerated_drop: The budget, in units of the scores.
        estimated_drop: Mean drop, in units of the scores.
        standard_error: Standard error of the mean drop; None in files of versions before 0.2.0.
        upper_bound: The smallest tolerated drop that would have been certified: the true drop is below it with
            confidence 1 - alpha. None without a test.
        groups: Number of independent groups of examples; None if every example counts for itself.
        holds_from: Number of examples from which the level of an asymptotic test holds; None if it is exact.
        reason: Why the scores cannot be tested, and how to mend it, in words; None if they were tested.
    """

    kind: Literal["exact", "asymptotic"] | None = "exact"
    statistic: float | None
    p_value: float
    alpha: float
    examples: int
    discordant: tuple[int, int] | None
    unit: float | None
    tolerated_drop: float
    estimated_drop: float
    standard_error: float | None = None
    upper_bound: float | None
    groups: int | None = None
    holds_from: int | None = None
    reason: str | None = None

    @property
    def is_certified(self) -> bool:
        """Whether the data refute that the budget is broken, so that `upper_bound` is at most `tolerated_drop`."""
        return self.kind is not None and self.p_value <= self.alpha


def certify(
    baseline_scores: ArrayLike,
    candidate_scores: ArrayLike,
    *,
    tolerated_drop: float,
    higher_is_better: bool = True,
    alpha: float = 0.05,
    score_range: tuple[float, float] | None = None,
    groups: ArrayLike | None = None,
) -> Certificate:
    """Tests once whether the candidate keeps its budget. The null hypothesis is a true drop of at least the budget.

    Scores that are all right or wrong (0 and 1, or 0 and 100) are counted, and tested exactly: see `p_of_counts`.

    Other scores are tested by Gaffke's bound for the mean: see `p_of_mean`. A paired t test would be simpler, but
    compression fails rarely and badly: a candidate that loses one example in a hundred shows no loss among 200 test
    examples in 13% of all draws, and a t test is then certain of it. Gaffke's bound adds one example, the worst one
    that is possible. So it needs the range of the scores; the worst example that was seen says nothing about the one
    that was not.

    Args:
        baseline_scores: One score per test example, (N,).
        candidate_scores: Scores of the same examples in the same order, (N,).
        tolerated_drop: Largest tolerated drop of the mean score, in units of the scores; at least 0.
        higher_is_better: Direction of the scores.
        alpha: Accepted probability of certifying a model that breaks its budget, in (0, 0.5).
        score_range: Lowest and highest possible score, not of these examples but of any; infinite if there is no limit.
            None if unknown: then scores that are all right or wrong are taken to be right or wrong always, and others
            are not tested.
        groups: The group of each example, (N,), if examples of one group depend on each other: then groups are tested,
            see `GroupedDrops`. None if each example counts for itself.

    Returns:
        The result. Its `kind` is None, and its `reason` says why, if the range is unknown or infinite.

    Raises:
        DataError: If the scores are not finite numbers in two vectors of the same length, at least 1; if they leave
            `score_range`; if `tolerated_drop` is negative, or so large that any model keeps it; or if `alpha` is out of
            its range.
    """
    baseline, candidate = paired(baseline_scores, candidate_scores)
    check_alpha(alpha)
    score_range = known_range(score_range, baseline, candidate)
    width = width_of(score_range)
    unit = unit_of_outcomes(baseline, candidate)
    check_drop(tolerated_drop, width)
    drops = (baseline - candidate) * (1 if higher_is_better else -1)  # (N,)
    mean = float(drops.mean())
    grouped = None if groups is None else GroupedDrops.of(drops, groups, width or math.inf)
    if grouped is not None and not grouped.are_needed:
        grouped = groups = None
    standard_error = paired_standard_error(baseline, candidate, groups)
    statistic: float | None = None
    p_value: Callable[[float], float] | None = None
    discordant: tuple[int, int] | None = None
    if grouped is not None and width is not None:
        if grouped.reason is None:
            statistic = (mean - tolerated_drop) / standard_error
            p_value = grouped.p_value
    elif unit is not None and score_range == (0.0, unit):
        lost, won = discordant = int((drops > 0).sum()), int((drops < 0).sum())
        statistic = float(tango_score(np.array(lost), np.array(won), len(drops), tolerated_drop / unit))
        p_value = partial(_p_of_outcomes, lost, won, len(drops), unit)
    elif width is not None:
        statistic = (mean - tolerated_drop) / standard_error
        p_value = partial(p_of_mean, drops, width)
    return Certificate(
        kind=None if p_value is None else grouped.kind if grouped else "exact",
        statistic=statistic,
        p_value=p_value(tolerated_drop) if p_value else 1.0,
        alpha=alpha,
        examples=len(drops),
        discordant=discordant,
        unit=width,
        tolerated_drop=tolerated_drop,
        estimated_drop=mean,
        standard_error=standard_error,
        upper_bound=upper_bound(
            p_value, alpha, estimated=mean, standard_error=standard_error, tolerated=tolerated_drop, largest=width
        )
        if p_value and width
        else None,
        groups=len(grouped.sizes) if grouped else None,
        holds_from=grouped.holds_from if grouped else None,
        reason=None if p_value else (grouped and width and grouped.reason) or NO_RANGE,
    )


def _p_of_outcomes(lost: int, won: int, num_examples: int, unit: float, drop: float) -> float:
    return p_of_counts(lost, won, num_examples, drop / unit)


def width_of(score_range: tuple[float, float] | None) -> float | None:
    """The largest possible difference of two scores; None if it is unknown or infinite."""
    if score_range is None or not all(map(math.isfinite, score_range)):
        return None
    return score_range[1] - score_range[0]


def known_range(score_range: tuple[float, float] | None, *scores: Floats) -> tuple[float, float] | None:
    """The range of scores as stated, or that of scores that are all right or wrong; None if it is unknown.

    Raises:
        DataError: If the range does not include all of the scores.
    """
    if score_range is None:
        unit = unit_of_outcomes(*scores)
        return None if unit is None else (0.0, unit)
    lowest, highest = score_range
    observed = min(map(np.min, scores)), max(map(np.max, scores))
    if not lowest <= observed[0] <= observed[1] <= highest:
        raise DataError(
            f"score_range must include all scores, from {observed[0]:.4g} to {observed[1]:.4g}, "
            f"but got ({lowest:g}, {highest:g})"
        )
    return score_range


def check_drop(tolerated_drop: float, width: float | None) -> None:
    """Raises a DataError if the budget is negative, or so large that any model keeps it.

    Args:
        tolerated_drop: The budget, in units of the scores.
        width: Width of the range of the scores; None if it is unknown or infinite.
    """
    if not 0 <= tolerated_drop < (math.inf if width is None else width):
        largest = "" if width is None else f" and less than the range of the scores ({width:.4g})"
        raise DataError(
            f"tolerated_drop must be at least 0{largest}, but got {tolerated_drop}. "
            f"Is it a percentage? Write {tolerated_drop / 100:.4g}"
        )


def check_alpha(alpha: float) -> None:
    """Raises a DataError if `alpha` is not the level of a test, in (0, 0.5)."""
    if not 0 < alpha < 0.5:
        raise DataError(f"alpha must be above 0 and below 0.5, but got {alpha}. 0.05 is usual")

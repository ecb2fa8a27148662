"""The test of a metric that is no mean over examples, from its linearized scores."""

from __future__ import annotations

import math
from functools import partial

from numpy.typing import ArrayLike

from kedro_aat.certificate.p_values import p_of_mean
from kedro_aat.certificate.paired_scores import paired, paired_standard_error
from kedro_aat.certificate.upper_bound import upper_bound
from kedro_aat.certificate.verdict import Certificate, check_alpha, check_drop

# Fewest effective examples behind every part of the metric, such as those of the rarest class, for a certificate. In
# benchmarks/asymptotic_certificate.py the level holds with so many, and also with half as many; the table is in
# docs/decisions/asymptotic-certificates.md.
MIN_EFFECTIVE_EXAMPLES = 10
NO_LIMIT = (
    "it is not known how much one example that was not drawn can change this metric. For RMSE and R2, give the lowest "
    "and the highest possible absolute error of an example as certificate.score_range. For others, choose a metric "
    "that can be certified"
)
NO_GROUPS = (
    "for groups of examples that depend on each other, a test is known only of metrics that are a mean over examples. "
    "Use one, such as accuracy or the mean of a score per image"
)


def certify_linearized(
    baseline_scores: ArrayLike,
    candidate_scores: ArrayLike,
    *,
    worst_drop: float | None,
    effective_examples: float,
    tolerated_drop: float,
    higher_is_better: bool = True,
    alpha: float = 0.05,
    is_grouped: bool = False,
) -> Certificate:
    """Tests once whether the candidate keeps its budget. The null hypothesis is a true drop of at least the budget.

    A linearized score is the metric plus the example's first-order influence on it, so the mean drop of the scores is
    the drop of the metric. It is tested by Gaffke's bound for the mean (`p_of_mean`), with the largest drop that one
    more example could have. So the test is careful about examples that were not drawn, as rare total failures, and only
    the linearization is asymptotic.

    Args:
        baseline_scores: One linearized score per test example, (N,).
        candidate_scores: Scores of the same examples in the same order, (N,).
        worst_drop: Largest possible drop of an example's score; None or infinite if there is no limit.
        effective_examples: Effective number of examples behind that part of the metric that has the fewest.
        tolerated_drop: Largest tolerated drop of the metric; at least 0.
        higher_is_better: Direction of the metric.
        alpha: Accepted probability of certifying a model that breaks its budget, in (0, 0.5).
        is_grouped: Whether examples of one group depend on each other.

    Returns:
        The result. Its `kind` is None, and its `reason` says why, if the largest drop is unknown, if there are too few
        effective examples, or if they are grouped.

    Raises:
        DataError: If the scores are not finite numbers in two vectors of the same length, at least 1; if
            `tolerated_drop` is negative, or so large that any model keeps it; or if `alpha` is out of its range.
    """
    baseline, candidate = paired(baseline_scores, candidate_scores)
    check_alpha(alpha)
    drops = (baseline - candidate) * (1 if higher_is_better else -1)  # (N,)
    mean, standard_error = float(drops.mean()), paired_standard_error(baseline, candidate)
    worst = None if worst_drop is None or not math.isfinite(worst_drop) else max(worst_drop, float(drops.max()))
    is_enough = effective_examples >= MIN_EFFECTIVE_EXAMPLES
    check_drop(tolerated_drop, worst if is_enough else None)  # of too few examples the largest drop may be 0
    holds_from = math.ceil(len(drops) * MIN_EFFECTIVE_EXAMPLES / max(effective_examples, 1e-9))
    reason = None
    if is_grouped:
        reason = NO_GROUPS
    elif worst is None:
        reason = NO_LIMIT
    elif not is_enough:
        reason = (
            f"the rarest class, or the few largest terms of the metric, count as only {effective_examples:.0f} "
            f"examples: the test is trusted from {MIN_EFFECTIVE_EXAMPLES}"
        )
        if effective_examples >= 1:
            reason += f", which takes about {holds_from:,} examples like these"
    p_value = partial(p_of_mean, drops, worst) if worst is not None and reason is None else None
    bound = None
    if p_value is not None and worst is not None:
        bound = upper_bound(
            p_value, alpha, estimated=mean, standard_error=standard_error, tolerated=tolerated_drop, largest=worst
        )
    return Certificate(
        kind="asymptotic" if p_value else None,
        statistic=(mean - tolerated_drop) / standard_error if p_value else None,
        p_value=p_value(tolerated_drop) if p_value else 1.0,
        alpha=alpha,
        examples=len(drops),
        discordant=None,
        unit=worst,
        tolerated_drop=tolerated_drop,
        estimated_drop=mean,
        standard_error=standard_error,
        upper_bound=bound,
        holds_from=holds_from if p_value else None,
        reason=reason,
    )

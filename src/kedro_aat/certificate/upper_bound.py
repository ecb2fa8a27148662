"""The smallest budget that a test would have certified: an upper confidence bound of the drop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# The bound is at most this much too large, as a share of its distance to the estimate.
_PRECISION = 1e-5


def upper_bound(
    p_value: Callable[[float], float],
    alpha: float,
    *,
    estimated: float,
    standard_error: float,
    tolerated: float,
    largest: float,
) -> float:
    """Finds the drop at which the p-value is alpha, rounded up, on that side of `tolerated` on which it must lie.

    Args:
        p_value: P-value of the hypothesis that the true drop is at least its argument.
        alpha: Level of the test, in (0, 0.5).
        estimated: Estimated drop. All drops are in the same unit.
        standard_error: Rough standard error of the estimate, above 0, near which the search begins.
        tolerated: The budget, below `largest`.
        largest: Largest possible drop.

    Returns:
        A drop whose p-value is at most alpha, or `largest`; it is at most `tolerated` exactly if that is certified. An
        exact p-value has small bumps, so the result may depend on `tolerated` by about a hundredth of its distance.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    level = float(norm.isf(alpha))
    p_values: dict[float, float] = {}

    def excess(drop: float) -> float:
        # As a normal score, which is nearly linear in the drop, so that a few iterations find the root.
        p = p_values[drop] if drop in p_values else p_values.setdefault(drop, p_value(drop))
        score = level - float(norm.isf(np.clip(p, 1e-300, 1 - 1e-16)))
        return min(score, 0.0) if p <= alpha else max(score, 1e-16)  # despite rounding

    if excess(tolerated) <= 0:
        low, high = estimated, tolerated
    else:
        low, high = max(tolerated, estimated), largest * (1 - 1e-9)
        if high <= low:
            return largest
    # The budget may be a hundred standard errors away, and the largest drop thousands.
    distance = (level + 0.3) * standard_error
    while estimated + distance < high:
        if estimated + distance > low:
            if excess(estimated + distance) <= 0:
                high = estimated + distance
                break
            low = estimated + distance
        distance *= 2
    if excess(high) > 0:
        return largest
    if high > low and excess(low) > 0:
        brentq(excess, low, high, xtol=_PRECISION * (high - estimated), rtol=1e-14)
    # Both ends of the last interval were seen, and certified is only the upper one.
    return min(drop for drop, p in p_values.items() if p <= alpha)

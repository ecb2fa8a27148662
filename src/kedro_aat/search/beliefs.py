"""What the frontier strategy infers about the margin at the end of the polish.

Rates are given as u = -ln(1 - rate), margins and standard errors in tolerated drops.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# The margin over u is about HEIGHT * (1 - exp(slope * (u - boundary))), a curve that was fitted to trained networks.
# HEIGHT is above 1, since light compression helps a little. In drops.
HEIGHT = 1.2
# Each epoch gains this share of what the epoch before it gained.
RECOVERY_RATIO = 0.7

# Beliefs before the polish: mean and standard deviation.
# Nearly anything may be the margin. In drops.
MARGIN_SPREAD = 3.0
# What a full learning rate costs. In drops.
LR_COST = 0.3
LR_COST_SPREAD = 0.3
# Damage that has not recovered when the polish begins. In drops.
DAMAGE = 0.3
DAMAGE_SPREAD = 0.3
# Standard deviation of the slope, as a share of the believed slope. Where a rate that is too high can fall again, the
# epochs may say more than the belief, which comes from failed trials. Of 0.25, 0.5 and 1, the best on simulated
# problems with weights that come back.
SLOPE_SPREAD, SLOPE_SPREAD_IF_REGROWING = 0.25, 1.0
# Standard deviation from epoch to epoch, apart from the sampling of examples. In drops.
JITTER = 0.1

# The lowest slope that is ever inferred, as a share of the believed slope.
LEAST_SLOPE, LEAST_SLOPE_IF_REGROWING = 0.7, 0.2

# Where the variance of a margin comes from. This share stays for some epochs, since weights change slowly.
KEPT = 0.25
# This share is new in each epoch. The rest is luck of the baseline, which all epochs share, so that none can reveal it.
DRAWN_ANEW = 0.25
# Share of what is kept that is left one epoch later.
PERSISTENCE = 0.8


def expectation(
    u: Floats, lr: Floats, margins: Floats, standard_error: float, slope: float, *, regrows: bool = False
) -> tuple[float, float]:
    """Estimates the margin at the latest u when the learning rate has fallen, and the loss of margin per u there.

    A linear regression of all margins on the curve over u, on the learning rate and on damage that recovers, by
    generalized least squares with Gaussian beliefs about the coefficients (Bishop 2006, equations 3.50 and 3.51).
    Nearby epochs have similar errors on the same examples, so ten in a row say less than ten models would. What is
    kept from one epoch to the next is an AR(1) process, whose covariance has a tridiagonal inverse, so the time is
    linear in the epochs (Rue and Held 2005, section 1.1).

    Args:
        u: Positions of the epochs of the polish, (K,).
        lr: Learning-rate scales of the epochs, minus the scale of the last epoch to come, (K,).
        margins: Margins of the epochs, (K,).
        standard_error: Standard error of a margin.
        slope: Loss of margin per u that was believed before the polish.
        regrows: Whether what comes back, when the rate falls, learns again.

    Returns:
        The margin, and the loss of margin per u, which is at least a share of the believed one.
    """
    # Along the curve, in units in which its slope at the latest u is the coefficient.
    gained = -np.expm1(np.clip(slope / HEIGHT * (u - u[-1]), -20, 2)) / (slope / HEIGHT)
    # Numbers near the smallest would take ten times as long.
    damage = np.maximum(np.exp(math.log(RECOVERY_RATIO) * np.arange(len(u))), 1e-30)
    features = np.stack([np.ones(len(u)), gained, -lr, -damage])
    kept, new = KEPT * standard_error**2, DRAWN_ANEW * standard_error**2 + JITTER**2
    weighted = _times_inverse(features, kept, new)
    spread = SLOPE_SPREAD_IF_REGROWING if regrows else SLOPE_SPREAD
    # In the order of the features: margin, slope, cost of the learning rate, damage.
    prior_mean = np.array([0.0, slope, LR_COST, DAMAGE])
    precision = np.array([MARGIN_SPREAD, spread * slope, LR_COST_SPREAD, DAMAGE_SPREAD]) ** -2.0
    expected, inferred_slope, *_ = np.linalg.solve(
        weighted @ features.T + np.diag(precision), weighted @ margins + precision * prior_mean
    )
    # A slope that noise made flat or negative must not reverse the steering, or let the rate run away.
    least = LEAST_SLOPE_IF_REGROWING if regrows else LEAST_SLOPE
    return float(expected), max(float(inferred_slope), least * slope)


def _times_inverse(rows: Floats, kept: float, new: float) -> Floats:
    """Rows times the inverse of the covariance of the margins.

    With the covariance R of the AR(1) process, `kept * R + new * I` is `(kept * I + new * inv(R)) R`.

    Args:
        rows: One column for each epoch, (N, K).
        kept: Variance that stays for some epochs, at least 0.
        new: Variance that is new in each epoch, above 0.

    Returns:
        (N, K).
    """
    from scipy.linalg.lapack import dptsv

    if rows.shape[1] == 1:
        return rows / (kept + new)
    # The inverse of R, times this, is tridiagonal.
    scale = 1 - PERSISTENCE**2
    diagonal = np.full(rows.shape[1], 1 + PERSISTENCE**2)
    diagonal[0] = diagonal[-1] = 1.0
    products = diagonal * rows
    products[:, :-1] -= PERSISTENCE * rows[:, 1:]
    products[:, 1:] -= PERSISTENCE * rows[:, :-1]
    beside = np.full(rows.shape[1] - 1, -new * PERSISTENCE)
    # It is positive definite, since the tridiagonal matrix is diagonally dominant, so there is always a solution.
    *_, solved, _ = dptsv(kept * scale + new * diagonal, beside, products.T, overwrite_b=True)
    return np.asarray(solved.T)

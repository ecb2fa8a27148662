"""What the frontier strategy believes of margins: over the rate after the trials, and at the end of the polish.

Rates come as u = -ln(1 - rate), margins and standard errors in tolerated drops.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# The margin over u is about HEIGHT * (1 - exp(slope * (u - boundary))): what was fitted to trained networks. Far below
# the boundary light compression helps a little, so HEIGHT is above 1.
HEIGHT = 1.2
# Below this many drops only the failure counts, not how bad it was.
LOWEST_MARGIN = -3.0
# What a trial's best margin misses of what longer training would give, and how it strays, in drops.
TRIAL_NOISE = 0.35
# Each epoch gains this share of what the one before it gained.
RECOVERY_RATIO = 0.7
# What is believed before the polish: that a full learning rate costs 0.3 +- 0.3 drops, and as much what has not healed
# when the polish begins; that the slope is known to a quarter of itself; that an epoch jitters by a tenth of the drop.
LR_COST, LR_COST_SPREAD, DAMAGE, DAMAGE_SPREAD, SLOPE_SPREAD, JITTER = 0.3, 0.3, 0.3, 0.3, 0.25, 0.1
# The least share of the believed slope that is ever inferred.
LEAST_SLOPE = 0.7
# Shares of a margin's variance that a model keeps for some epochs, since its weights change slowly, and that each
# epoch draws anew; the rest is the baseline's luck, which all epochs share and none can tell. Of what is kept this
# much is left an epoch later.
KEPT, DRAWN_ANEW, PERSISTENCE = 0.25, 0.25, 0.8


def posterior(u: Floats, margins: Floats, standard_error: float, highest: float) -> tuple[Floats, Floats, Floats]:
    """Boundaries, slopes, and how likely each pair is after trials; the noise is Student's t with 2 degrees.

    Args:
        u: Where the trials were, (K,).
        margins: Their best, (K,).
        standard_error: Of a margin.
        highest: The highest u that may be tried; the boundary may lie beyond.
    """
    variance = standard_error**2 + TRIAL_NOISE**2
    boundaries = np.linspace(0, highest + 1, 100)
    slopes = np.geomspace(0.7, 9, 6)
    exponent = slopes[:, None] * (u - boundaries[:, None, None])  # (boundaries, slopes, trials)
    predicted = np.maximum(HEIGHT - HEIGHT * np.exp(np.minimum(exponent, 20)), LOWEST_MARGIN)
    misses = margins.clip(LOWEST_MARGIN, None) - predicted
    log_likelihood = -1.5 * np.log1p(misses**2 / (2 * variance)).sum(-1)
    likelihood = np.exp(log_likelihood - log_likelihood.max())
    return boundaries, slopes, likelihood / likelihood.sum()


def expectation(u: Floats, lr: Floats, margins: Floats, standard_error: float, slope: float) -> tuple[float, float]:
    """The margin at the latest u when the learning rate has fallen, and how much of it is lost per u there.

    A linear regression of all margins on the curve over u, on the learning rate and on damage that heals, by
    generalised least squares with Gaussian beliefs about the coefficients (Bishop 2006, equations 3.50 and 3.51):
    epochs close to each other err alike on the same examples, so ten in a row say less than ten models would.

    Args:
        u: Of the epochs of the polish, (K,).
        lr: Learning-rate scales, above that of the last epoch to come, (K,).
        margins: Of the epochs, (K,).
        standard_error: Of a margin.
        slope: What is believed to be lost per u, before the polish.
    """
    epochs = np.arange(len(u))
    alike = KEPT * PERSISTENCE ** np.abs(epochs[:, None] - epochs)
    noise = standard_error**2 * (alike + DRAWN_ANEW * np.eye(len(u))) + JITTER**2 * np.eye(len(u))
    # Along the curve, in units in which its slope at the latest u is the coefficient.
    gained = -np.expm1(np.clip(slope / HEIGHT * (u - u[-1]), -20, 2)) / (slope / HEIGHT)
    features = np.stack([np.ones(len(u)), gained, -lr, -(RECOVERY_RATIO**epochs)], axis=1)
    weighted = np.linalg.solve(noise, features).T
    believed = np.array([0.0, slope, LR_COST, DAMAGE])
    precision = np.array([-LOWEST_MARGIN, SLOPE_SPREAD * slope, LR_COST_SPREAD, DAMAGE_SPREAD]) ** -2.0
    expected, seen_slope, *_ = np.linalg.solve(
        weighted @ features + np.diag(precision), weighted @ margins + precision * believed
    )
    # A slope that noise made flat or negative must not turn the steering around, or let the rate run away.
    return float(expected), max(float(seen_slope), LEAST_SLOPE * slope)

"""The test of other scores: a bound for the mean of drops that may be seldom and bad."""

from __future__ import annotations

import cmath
import math

import numpy as np
from numpy.typing import NDArray


def p_of_mean(drops: NDArray[np.float64], worst: float, drop: float) -> float:
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

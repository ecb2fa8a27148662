"""Which whole layers to compress: the least damaged first, until the compressed share is nearest to a rate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor


def relative_energy(difference: Tensor, weight: Tensor) -> float:
    """Sum of squares of a difference over that of the weight, at least 0; 0 for a weight of zeros.

    For a rounding error this is the inverse of the signal-to-quantization-noise ratio.
    """
    energy = float(weight.float().square().sum())
    return float(difference.float().square().sum()) / energy if energy else 0.0


def least_damaged(damages: Sequence[float], sizes: Sequence[int], target: float) -> list[int]:
    """Chooses layers in the order of their damage, as many as bring their total size nearest to the target.

    Args:
        damages: What each layer would lose, for example its `relative_energy`; of equal layers the first is chosen.
        sizes: What each layer adds to the total, for example its number of weights.
        target: Total size to reach, in the unit of `sizes`.

    Returns:
        Indices of the chosen layers, the least damaged first.
    """
    order = sorted(range(len(sizes)), key=lambda index: (damages[index], index))
    totals = [0, *itertools.accumulate(sizes[index] for index in order)]
    nearest = min(range(len(totals)), key=lambda count: abs(totals[count] - target))
    return order[:nearest]

"""Checks of linearized scores that every kind of metric shares."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

# Largest difference of the scores' mean to the metric, relative to the scores. torchmetrics sums in single precision.
TOLERANCE = 1e-4


def agrees(scores: Tensor, metric: Metric) -> bool:
    """Whether the scores are finite, and their mean is the metric."""
    if not bool(scores.isfinite().all()):
        return False
    value = metric.compute().double().cpu()
    if value.numel() != 1:
        return False
    return float((scores.mean() - value).abs()) <= TOLERANCE * float(scores.square().mean().sqrt())


def effective_number(sums: Tensor, sums_of_squares: Tensor) -> float:
    """Smallest effective number of examples behind several sums; 0 if one of them is 0.

    A sum to which few examples give most is known no better than a sum of those few (Kish 1965, Survey Sampling,
    section 11.7: the square of the sum over the sum of squares). Of equal examples it is their number.

    Args:
        sums: Sums over the examples, (K,), each of terms of at least 0.
        sums_of_squares: Sums of the terms' squares, (K,).
    """
    numbers = torch.where(sums > 0, sums.square() / sums_of_squares.clamp(min=1e-300), 0.0)
    return float(numbers.min()) if len(numbers) else 0.0

"""Metrics as functions of a table of counts, for simulations that compute thousands of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# From a table of counts, (..., K, K), with a row per target class, to the metric, (...,).
TableMetric = Callable[[Floats], Floats]


def macro_f1(table: Floats) -> Floats:
    """Mean over classes of 2 tp / (targets + predicted)."""
    right = np.diagonal(table, axis1=-2, axis2=-1)
    return np.asarray((2 * right / np.maximum(table.sum(-1) + table.sum(-2), 1e-300)).mean(-1))


def binary_f1(table: Floats) -> Floats:
    """F1 of class 1."""
    return np.asarray(2 * table[..., 1, 1] / np.maximum(table[..., 1, :].sum(-1) + table[..., :, 1].sum(-1), 1e-300))


def macro_accuracy(table: Floats) -> Floats:
    """Mean over classes of the share of its targets that are right."""
    return np.asarray((np.diagonal(table, axis1=-2, axis2=-1) / np.maximum(table.sum(-1), 1e-300)).mean(-1))


def mean_iou(table: Floats) -> Floats:
    """Mean over classes of intersection over union."""
    right = np.diagonal(table, axis1=-2, axis2=-1)
    return np.asarray((right / np.maximum(table.sum(-1) + table.sum(-2) - right, 1e-300)).mean(-1))


def weighted_f1(table: Floats) -> Floats:
    """F1 of each class, weighted by its targets."""
    right, targets = np.diagonal(table, axis1=-2, axis2=-1), table.sum(-1)
    return np.asarray((targets * 2 * right / np.maximum(targets + table.sum(-2), 1e-300)).sum(-1) / targets.sum(-1))


def binary_precision(table: Floats) -> Floats:
    """Precision of class 1."""
    return np.asarray(table[..., 1, 1] / np.maximum(table[..., :, 1].sum(-1), 1e-300))


def matthews(table: Floats) -> Floats:
    """Matthews' correlation coefficient of two classes."""
    product = table.sum(-1).prod(-1) * table.sum(-2).prod(-1)
    difference = table[..., 0, 0] * table[..., 1, 1] - table[..., 0, 1] * table[..., 1, 0]
    return np.asarray(difference / np.sqrt(np.maximum(product, 1e-300)))


def slopes_of(metric: TableMetric, table: Floats) -> Floats:
    """Derivatives of the metric by each cell of a table (K, K), by complex steps."""
    size = 1e-20 * table.sum()
    steps = 1j * size * np.eye(table.size).reshape(-1, *table.shape)
    slopes: Floats = metric(table + steps).imag.reshape(table.shape) / size
    return slopes

"""Importance of single weights, and the choice of the least important ones without sorting them all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kedro_aat.compression.settings import Importance

# Bits of a float32 dropped for the LAMP bins: what is left tells magnitudes apart to 1 part in 2048.
DROPPED_MANTISSA_BITS = 12


def importance(weight: Tensor, kind: Importance) -> Tensor:
    """Scores of one layer's weights; a higher score is kept longer.

    Args:
        weight: Of any shape.
        kind: `abs`, `squared_abs`; `normed_abs` is relative to the layer's L2 norm; `lamp` is the squared
            weight over the sum of squares of all weights of the layer that are at least as large (Lee et
            al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, its LAMP score), which
            keeps every layer alive at any rate.

    Returns:
        float32, (weight.numel(),), at least 0.
    """
    magnitude = weight.detach().flatten().float().abs()
    tiny = torch.finfo(torch.float32).tiny
    scores: Tensor
    match kind:
        case "abs":
            scores = magnitude
        case "squared_abs":
            scores = magnitude.square()
        case "normed_abs":
            scores = magnitude / magnitude.norm().clamp_min(tiny)
        case "lamp":
            scores = _lamp(magnitude)
    return scores


def _lamp(magnitude: Tensor) -> Tensor:
    # The sum runs over everything at least as large, which would take a sort. Counting sort instead: a
    # non-negative float's bits rise with its value, so their leading part is a bin number. The sum over a
    # weight's own bin is counted whole, an error of at most that bin's share; the order within a layer is exact.
    bins = magnitude.view(torch.int32) >> DROPPED_MANTISSA_BITS
    bins = (bins - bins.min()).long()
    squares = magnitude.double().square()
    in_bin = torch.bincount(bins, weights=squares)
    at_least_as_large = in_bin.flip(0).cumsum(0).flip(0)
    scores = (squares / at_least_as_large[bins].clamp_min(torch.finfo(torch.float64).tiny)).float()
    largest = magnitude.argmax()
    scores[largest] = (magnitude[largest] > 0).float()  # exact for the largest, also where others equal it
    return scores


def keep_most_important(scores: Sequence[Tensor], num_removed: int) -> list[Tensor]:
    """Boolean masks that remove exactly the `num_removed` lowest scores of all tensors together.

    Args:
        scores: 1-D float32 tensors.
        num_removed: From 0 to the number of all scores. Of equal scores the first are removed.

    Returns:
        One mask a tensor, True where the weight is kept.
    """
    flat = torch.cat(list(scores))
    if num_removed <= 0:
        keep = torch.ones_like(flat, dtype=torch.bool)
    else:
        threshold = kth_smallest(flat, num_removed)
        keep = flat > threshold
        num_spared = int(flat.numel() - num_removed - keep.sum())  # equal to the threshold, yet kept
        if num_spared:
            equal = (flat == threshold).nonzero().squeeze(1)
            keep[equal[len(equal) - num_spared :]] = True
    return list(keep.split([score.numel() for score in scores]))


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest value, k from 1 on, selected in linear time whatever the order of the values.

    NumPy's introselect takes 0.06 s for 25 million values, `torch.kthvalue` on the CPU 1.3 s, and quadratic time where
    the order is unlucky.
    """
    if values.device.type != "cpu":
        return values.kthvalue(k).values
    return torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])[0]

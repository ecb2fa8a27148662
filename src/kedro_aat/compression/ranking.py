"""Importance of single weights, and the choice of the least important ones without sorting them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kedro_aat.compression.settings import Importance

# Size of the sample that brackets a threshold, and the bracket's half width in standard deviations.
SAMPLE_SIZE = 1 << 15
# Up to here torch's own selection is quicker than sampling.
SELECTED_DIRECTLY = 1 << 20
BRACKET_DEVIATIONS = 5.0
# Bits of a float32 dropped for the LAMP bins: what is left tells magnitudes apart to 1 part in 2048.
DROPPED_MANTISSA_BITS = 12


def importance(weight: Tensor, kind: Importance) -> Tensor:
    """Scores of one layer's weights; a higher score is kept longer.

    Args:
        weight: Of any shape.
        kind: `abs`, `squared_abs`; `normed_abs` is relative to the layer's L2 norm; `lamp` is the squared
            weight over the sum of squares of all weights of the layer that are at least as large (Lee et
            al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, the LAMP score of
            section 3), which keeps every layer alive at any rate.

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
    return (squares / at_least_as_large[bins].clamp_min(torch.finfo(torch.float64).tiny)).float()


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
    """The k-th smallest value, k from 1 on, as `torch.kthvalue` gives it, in a few passes.

    A regular sample brackets the value; the exact one is then sought among the few values in the bracket.
    """
    if values.numel() <= SELECTED_DIRECTLY:
        return values.kthvalue(k).values
    sample = values[:: values.numel() // SAMPLE_SIZE].sort().values
    size = sample.numel()
    share = k / values.numel()
    spread = BRACKET_DEVIATIONS * (size * share * (1 - share)) ** 0.5 + 2
    low = sample[max(0, int(size * share - spread))]
    high = sample[min(size - 1, int(size * share + spread))]
    num_below = int((values < low).sum())
    bracket = values[(values >= low) & (values <= high)]
    if num_below < k <= num_below + bracket.numel():
        return bracket.kthvalue(k - num_below).values
    return values.kthvalue(k).values  # a sample that misleads costs time, never exactness

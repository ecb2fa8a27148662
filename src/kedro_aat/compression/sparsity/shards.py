"""The exact selection of the least important weights where each rank holds some rows of each layer.

No weight leaves its rank. The bits of a score that is not negative rise with the score, so two histograms of these
bits, which the ranks add up, give the threshold exactly (a radix selection).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kedro_aat.compression.settings import Importance
from kedro_aat.compression.sparsity.importance import LayerScores, bits_of
from kedro_aat.ranks import group
from kedro_aat.ranks.shards import like

# The 31 bits of a score, in two parts: 64 Ki and 32 Ki counts of 8 bytes, 768 KiB together, are added up.
_LOW_BITS = 15
_NUM_HIGH, _NUM_LOW = 1 << 16, 1 << _LOW_BITS


def keep_of_shards(values: Sequence[Tensor], kind: Importance, num_removed: int) -> list[Tensor]:
    """Does as `keep_most_important`; all ranks must call it.

    Besides the two histograms, `lamp` adds up one sum for each of up to 512 Ki magnitudes of each layer, and
    `normed_abs` one sum per layer.

    Args:
        values: Weights of some layers, all of them divided along their first dimension.
        kind: How their importance is measured; see `LayerScores`.
        num_removed: From 1 to the total number of weights.

    Returns:
        One boolean mask per tensor, divided like it, true where the weight is kept.
    """
    layers = [LayerScores(value, kind) for value in values]
    threshold, num_below = _threshold(layers, num_removed)
    keep = [torch.empty(layer.size, dtype=torch.bool, device=layer.device) for layer in layers]
    ties = [_note_kept(layer, mask, threshold) for layer, mask in zip(layers, keep, strict=True)]
    # Of those at the threshold the first go: in the first layers, and in the first rows, which the first ranks hold.
    numbers = torch.zeros(group.world_size(), len(layers), dtype=torch.int64, device=layers[0].device)
    numbers[group.rank()] = torch.tensor([len(places) for places in ties], device=numbers.device)
    in_order = group.summed(numbers).T.flatten()
    before = (in_order.cumsum(0) - in_order).view(len(layers), -1)[:, group.rank()].tolist()
    for mask, places, number in zip(keep, ties, before, strict=True):
        mask[places[max(num_removed - num_below - number, 0) :]] = True
    return [like(value, mask.view(-1, *value.shape[1:])) for mask, value in zip(keep, values, strict=True)]


def _threshold(layers: Sequence[LayerScores], rank: int) -> tuple[int, int]:
    """The score of this rank among those of all layers, from 1 on, as its bits; and how many are below it."""
    high, num_below = _place(_counts(layers, None), rank)
    low, num_below_within = _place(_counts(layers, high), rank - num_below)
    return (high << _LOW_BITS) | low, num_below + num_below_within


def _counts(layers: Sequence[LayerScores], high: int | None) -> Tensor:
    """How many scores of all ranks have which high bits; or, of those with these high bits, which low bits."""
    counts = torch.zeros(_NUM_HIGH if high is None else _NUM_LOW, dtype=torch.int64, device=layers[0].device)
    for layer in layers:
        for _, scores in layer.scored_chunks():
            bits = bits_of(scores)
            of_bins = bits >> _LOW_BITS
            if high is not None:
                of_bins = bits[of_bins == high] & (_NUM_LOW - 1)
            counts += torch.bincount(of_bins, minlength=len(counts))
    return group.summed(counts)


def _place(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin of what has this rank, from 1 on, and how many are in the bins before it."""
    ends = counts.cumsum(0)
    place = int((ends < rank).sum())
    return place, int(ends[place] - counts[place])


def _note_kept(layer: LayerScores, keep: Tensor, threshold: int) -> Tensor:
    """Notes which weights are above the threshold, and returns the places of those at it."""
    ties = [torch.zeros(0, dtype=torch.int64, device=layer.device)]
    for start, scores in layer.scored_chunks():
        bits = bits_of(scores)
        torch.gt(bits, threshold, out=keep[start : start + len(bits)])
        ties.append((bits == threshold).nonzero().squeeze(1) + start)
    return torch.cat(ties)

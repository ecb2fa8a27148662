"""The exact selection of the least important weights, without a sort and without a score of every weight in memory.

Bins of scores say between which two scores the threshold lies (a radix selection). Only the few weights between these
are scored one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kedro_aat.compression.settings import Importance
from kedro_aat.compression.sparsity.importance import LayerScores, bits_of

# If there are no more weights, it is faster to score them all.
_FEW = 1 << 20


def keep_most_important(values: Sequence[Tensor], kind: Importance, num_removed: int) -> list[Tensor]:
    """Removes exactly the `num_removed` least important of all weights together; among equally important, the first.

    Args:
        values: Weights of some layers, each of any shape.
        kind: How their importance is measured; see `LayerScores`.
        num_removed: From 0 to the total number of weights.

    Returns:
        One boolean mask per tensor, with its shape, true where the weight is kept.
    """
    if num_removed <= 0:
        return [torch.ones_like(value, dtype=torch.bool) for value in values]
    layers = [LayerScores(value, kind) for value in values]
    if sum(layer.size for layer in layers) <= _FEW:
        masks = _keep_of_few(torch.cat([layer.all() for layer in layers]), num_removed)
        parts_of = masks.split([layer.size for layer in layers])
        return [mask.view(value.shape) for mask, value in zip(parts_of, values, strict=True)]
    low, high = _bounds(layers, num_removed)
    parts = [_Part(layer, low, high) for layer in layers]
    num_below = sum(part.num_below for part in parts)
    candidates = torch.cat([part.candidates for part in parts])
    threshold = kth_smallest(candidates, num_removed - num_below)
    num_ties = num_removed - num_below - int((candidates < threshold).sum())  # so many of those at the threshold go
    for part in parts:
        num_ties = part.decide(threshold, num_ties)
    return [part.mask.view(value.shape) for part, value in zip(parts, values, strict=True)]


def _keep_of_few(scores: Tensor, num_removed: int) -> Tensor:
    threshold = kth_smallest(scores, num_removed)
    keep = scores > threshold
    if num_spared := int(len(scores) - num_removed - keep.count_nonzero()):  # equal to the threshold, but kept
        equal = (scores == threshold).nonzero().squeeze(1)
        keep[equal[len(equal) - num_spared :]] = True
    return keep


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """Returns the k-th smallest value, k from 1 on, in linear time for any order of the values.

    NumPy's introselect takes 0.06 s for 25 million values. `torch.kthvalue` takes 1.3 s on the CPU, and quadratic time
    if the order is unfavorable.
    """
    if values.device.type != "cpu":
        return values.kthvalue(k).values
    return torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])[0]


def _bounds(layers: Sequence[LayerScores], rank: int) -> tuple[float, float]:
    """Returns two scores between which, inclusively, the score of this rank lies, from 1 on."""
    apart = [layer.score_of_largest for layer in layers if layer.score_of_largest is not None]
    own = torch.tensor(apart, device=layers[0].device)
    counts = torch.cat([*(layer.bins.counts for layer in layers), torch.ones_like(own).long()])

    def score_of_rank(scores: Sequence[Tensor]) -> float:
        ascending, order = torch.cat([*scores, own]).sort()
        return float(ascending[(counts[order].cumsum(0) < rank).sum()])

    lowest = score_of_rank([layer.bins.lowest for layer in layers])
    return lowest, score_of_rank([layer.bins.highest for layer in layers])


class _Part:
    """A layer of which some weights certainly go, some certainly stay, and the others are candidates for either.

    Args:
        layer: The layer.
        low: Lowest score that the threshold can have.
        high: Highest score that it can have.

    Attributes:
        num_below: Number of weights that certainly go.
        candidates: Scores of the candidates, in the order of the weights.
        mask: (weights,) true for a weight that stays; false for candidates until `decide`.
    """

    def __init__(self, layer: LayerScores, low: float, high: float) -> None:
        bins, own = layer.bins, layer.score_of_largest
        goes, stays = bins.highest < low, bins.lowest > high  # the first bins, and the last ones
        self.num_below = int(bins.counts[goes].sum())
        first = [*bins.first.tolist(), None]
        first_candidate, first_kept = first[int(goes.sum())], first[len(goes) - int(stays.sum())]
        self.mask = torch.zeros(layer.size, dtype=torch.bool, device=layer.device)
        places, scores = [], []
        for start, magnitudes in layer.chunks() if first_candidate is not None else ():
            bits, kept = bits_of(magnitudes), self.mask[start : start + len(magnitudes)]
            if first_kept is not None:
                torch.ge(bits, first_kept, out=kept)
            if first_kept != first_candidate:
                found = (torch.ge(bits, first_candidate) ^ kept).nonzero().squeeze(1)
                places.append(found + start)
                scores.append(layer.of(magnitudes[found]))
        self._places = torch.cat([torch.zeros(0, dtype=torch.int64, device=layer.device), *places])
        self.candidates = torch.cat([torch.zeros(0, device=layer.device), *scores])
        if own is not None and layer.largest is not None:
            self._correct(layer.largest, own, low, high)

    def _correct(self, place: int, score: float, low: float, high: float) -> None:
        """Corrects what was said of the weight that has a score of its own, as if it were in a bin."""
        self.num_below += score < low
        self.mask[place] = score > high
        is_other = self._places != place
        self._places, self.candidates = self._places[is_other], self.candidates[is_other]
        if low <= score <= high:
            before = int((self._places < place).sum())
            self._places = _inserted(self._places, before, place)
            self.candidates = _inserted(self.candidates, before, score)

    def decide(self, threshold: Tensor, num_ties: int) -> int:
        """Decides which candidates stay: those above a threshold, and of those at the threshold the last ones.

        Args:
            threshold: The threshold.
            num_ties: How many weights at the threshold go, in this layer and those after it.

        Returns:
            How many weights at the threshold still have to go.
        """
        stays, ties = self.candidates > threshold, (self.candidates == threshold).nonzero().squeeze(1)
        stays[ties[num_ties:]] = True
        self.mask[self._places] = stays
        return max(num_ties - len(ties), 0)


def _inserted(values: Tensor, position: int, value: float) -> Tensor:
    return torch.cat([values[:position], values.new_full((1,), value), values[position:]])

"""The exact selection of the least important weights, without a sort and without a score of every weight in memory.

Bins of scores say between which two scores the threshold lies (a radix selection). Only the few weights between these
are scored one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from kedro_aat.compression.settings import Importance
from kedro_aat.compression.sparsity.importance import LayerScores, bits_of
from kedro_aat.compression.sparsity.shards import keep_of_shards
from kedro_aat.ranks.shards import is_sharded

# If there are no more weights, it is faster to score them all.
_FEW = 1 << 20


def keep_most_important(values: Sequence[Tensor], kind: Importance, num_removed: int) -> list[Tensor]:
    """Removes exactly the `num_removed` least important of all weights together; among equally important, the first.

    Args:
        values: Weights of some layers, each of any shape.
        kind: How their importance is measured; see `LayerScores`.
        num_removed: From 0 to the total number of weights.

    Returns:
        One boolean mask per tensor, with its shape, true where the weight is kept; divided among ranks like the tensor.
    """
    if num_removed <= 0:
        return [torch.ones_like(value, dtype=torch.bool) for value in values]
    if any(map(is_sharded, values)):
        return keep_of_shards(values, kind, num_removed)
    layers = [LayerScores(value, kind) for value in values]
    if sum(layer.size for layer in layers) <= _FEW:
        masks = _keep_of_few(torch.cat([layer.all() for layer in layers]), num_removed)
        parts_of = masks.split([layer.size for layer in layers])
        return [mask.view(value.shape) for mask, value in zip(parts_of, values, strict=True)]
    low, high = _bounds(layers, num_removed)
    parts = [_Part(layer, low, high) for layer in layers]
    num_left = num_removed - sum(part.num_below for part in parts)  # so many candidates go
    if all(part.is_of_one_score for part in parts):  # weights that were masked are zeros, and often the most of all
        for part in parts:
            num_left = part.decide_in_order(num_left)
        return [part.mask.view(value.shape) for part, value in zip(parts, values, strict=True)]
    for part in parts:
        part.score_candidates()
    candidates = torch.cat([part.candidates for part in parts])
    threshold = kth_smallest(candidates, num_left)
    num_ties = num_left - int((candidates < threshold).sum())  # so many of those at the threshold go
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
        is_of_one_score: Whether the lowest possible threshold is the highest one, and the score of all candidates.
        candidates: Scores of the candidates, in the order of the weights; empty before `score_candidates`.
        mask: (weights,) true for a weight that stays; not meaningful before `decide` or `decide_in_order`.
    """

    def __init__(self, layer: LayerScores, low: float, high: float) -> None:
        bins, own = layer.bins, layer.score_of_largest
        goes, stays = bins.highest < low, bins.lowest > high  # the first bins, and the last ones
        self.num_below = int(bins.counts[goes].sum()) + (own is not None and own < low)
        first = [*bins.first.tolist(), None]
        self._score_apart = 0.0 if own is None else own
        self._first_candidate: int | None = first[int(goes.sum())]
        self._first_kept: int | None = first[len(goes) - int(stays.sum())]
        ends = torch.cat([bins.lowest[~goes & ~stays], bins.highest[~goes & ~stays]])
        self.is_of_one_score = low == high and bool((ends == low).all())
        self._layer, self._low, self._high = layer, low, high
        self._places = torch.zeros(0, dtype=torch.int64, device=layer.device)
        self.candidates = torch.zeros(0, device=layer.device)
        self.mask = torch.zeros(layer.size, dtype=torch.bool, device=layer.device)

    def score_candidates(self) -> None:
        """Finds the candidates among the weights, and their scores."""
        places, scores = [self._places], [self.candidates]
        for start, magnitudes, is_candidate in self._chunks():
            found = _places_of(is_candidate)
            places.append(found + start)
            scores.append(self._layer.of(magnitudes[found]))
            if (place := self._place_apart(start, len(magnitudes))) is not None and bool(is_candidate[place]):
                scores[-1][found == place] = self._score_apart
        self._places, self.candidates = torch.cat(places), torch.cat(scores)

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

    def decide_in_order(self, num_ties: int) -> int:
        """Decides which candidates stay if all of them have the same score: the last ones.

        Args:
            num_ties: How many candidates go, in this layer and those after it.

        Returns:
            How many still have to go.
        """
        for start, magnitudes, is_candidate in self._chunks():
            number = _count(is_candidate)
            if num_ties < number:
                if num_ties:
                    is_candidate[_places_of(is_candidate)[:num_ties]] = False
                self.mask[start : start + len(magnitudes)] |= is_candidate
            num_ties = max(num_ties - number, 0)
        return num_ties

    def _chunks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields each chunk with candidates, and which weights they are; notes in `mask` which certainly stay."""
        own = self._score_apart
        for start, magnitudes in self._layer.chunks():
            bits, kept = bits_of(magnitudes), self.mask[start : start + len(magnitudes)]
            if self._first_kept is not None:
                torch.ge(bits, self._first_kept, out=kept)
            has_any = self._first_candidate != self._first_kept and self._first_candidate is not None
            is_candidate = torch.ge(bits, self._first_candidate or 0) ^ kept if has_any else torch.zeros_like(kept)
            if (place := self._place_apart(start, len(bits))) is not None:
                kept[place] = own > self._high
                is_candidate[place] = has_own = self._low <= own <= self._high
                has_any |= has_own
            if has_any:
                yield start, magnitudes, is_candidate

    def _place_apart(self, start: int, length: int) -> int | None:
        """Where in a chunk the weight is that has a score of its own; None if it is elsewhere."""
        largest = self._layer.largest
        return None if largest is None or not start <= largest < start + length else largest - start


def _places_of(chosen: Tensor) -> Tensor:
    if chosen.device.type != "cpu":
        return chosen.nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(chosen.numpy()))  # in a fifth of torch's time


def _count(chosen: Tensor) -> int:
    return int(chosen.count_nonzero() if chosen.device.type != "cpu" else np.count_nonzero(chosen.numpy()))

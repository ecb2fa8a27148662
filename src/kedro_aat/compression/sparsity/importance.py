"""Importance scores of one layer's weights, a chunk at a time, and how many weights have about which score."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kedro_aat.compression.settings import Importance

# Bits of a float32 that the bins of LAMP's sums ignore; the others distinguish magnitudes to 1 part in 2048.
_DROPPED_IN_SUMS = 12
# Bits that `Bins` ignore: 1 part in 64. There are few bins then, and still few weights in each.
_DROPPED = 17
_NUM_BITS = 31  # of a non-negative float32
_TINY, _TINY_NORM = torch.finfo(torch.float64).tiny, torch.finfo(torch.float32).tiny
# Weights in a chunk: on a CPU what stays in its cache, elsewhere what keeps the device busy.
_CHUNK_ON_CPU, _CHUNK = 1 << 17, 1 << 24


@dataclass(frozen=True)
class Bins:
    """Neighboring magnitudes of a layer, and the range of their scores; only bins that are not empty, in rising order.

    Attributes:
        first: (bins,) - int64, the lowest magnitude in the bin as the bits of a float32.
        counts: (bins,) - int64, weights in the bin.
        lowest: (bins,) - lowest score that a weight in the bin can have; never falls from bin to bin.
        highest: (bins,) - highest score; never falls either.
    """

    first: Tensor
    counts: Tensor
    lowest: Tensor
    highest: Tensor


class LayerScores:
    """Scores of one layer's weights; weights with higher scores are kept longer.

    Within a layer the score never falls as the magnitude rises, so bins of magnitudes are bins of scores. All that is
    counted are sums over the weights, which the ranks that hold shards of a layer could add up.

    Args:
        weight: The layer's weight, of any shape and precision; complex weights count by their magnitude.
        kind: `abs` is the magnitude, `squared_abs` its square, and `normed_abs` the magnitude over the layer's L2
            norm. `lamp` is the squared weight over the sum of squares of all weights of the layer that are at least
            as large (the LAMP score of Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR
            2021), which keeps at least one weight in every layer at any rate.

    Attributes:
        size: Number of weights.
        device: Their device.
        largest: Position of the weight that has a score of its own, and is in no bin: of LAMP the largest one, or the
            first of several. None with other importances, or if all weights are zero.
    """

    def __init__(self, weight: Tensor, kind: Importance) -> None:
        self._flat = weight.detach().reshape(-1)
        self._kind = kind
        self.size = self._flat.numel()
        self.device = self._flat.device
        self._chunk = _CHUNK_ON_CPU if self.device.type == "cpu" else _CHUNK
        self._norm = self._flat.abs().float().norm().clamp_min(_TINY_NORM) if kind == "normed_abs" else None
        self.largest: int | None = None
        if kind == "lamp":
            self._sum_squares()

    @property
    def score_of_largest(self) -> float | None:
        """Score of the weight that has one of its own."""
        return None if self.largest is None else 1.0

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Yields the position of each chunk's first weight, and the magnitudes (weights,) as float32."""
        for start in range(0, self.size, self._chunk):
            yield start, self._flat[start : start + self._chunk].abs().float()

    def all(self) -> Tensor:
        """Returns the scores of all weights, (size,)."""
        scores = self.of(self._flat.abs().float())
        if self.largest is not None and self.score_of_largest is not None:
            scores[self.largest] = self.score_of_largest
        return scores

    def of(self, magnitudes: Tensor) -> Tensor:
        """Returns scores (weights,), at least 0, of some of the layer's weights, not considering `largest`.

        Args:
            magnitudes: (weights,) float32.
        """
        scores: Tensor
        match self._kind:
            case "abs":
                scores = magnitudes
            case "squared_abs":
                scores = magnitudes.square()
            case "normed_abs":
                assert self._norm is not None
                scores = magnitudes / self._norm
            case "lamp":
                scores = (magnitudes.double().square_() / self._at_least_as_large[self._row_of(magnitudes)]).float()
        return scores.nan_to_num(nan=torch.inf, posinf=torch.inf)  # there is an order also if the training diverged

    def _sum_squares(self) -> None:
        """Prepares LAMP.

        The sum over all weights that are at least as large would need a sort. This is a counting sort instead. A
        weight's own bin is counted completely, an error of at most the bin's share; the order within a layer is exact.
        """
        self._first_row, self._num_rows = 0, 1 << (_NUM_BITS - _DROPPED_IN_SUMS)
        if self.size <= self._chunk:  # not many more bins than weights
            rows = bits_of(self._flat.abs().float()) >> _DROPPED_IN_SUMS
            self._first_row = int(torch.where(self._flat != 0, rows, self._num_rows - 1).min())
            self._num_rows = max(int(rows.max()) - self._first_row, 0) + 1
        squares = torch.zeros(self._num_rows, dtype=torch.float64, device=self.device)
        highest = 0.0
        for start, magnitudes in self.chunks():
            squares.index_add_(0, self._row_of(magnitudes), magnitudes.double().square_())
            if (highest_of_chunk := float(magnitudes.max())) > highest:
                highest, self.largest = highest_of_chunk, start + int(magnitudes.argmax())
        if self.size > self._chunk and len(filled := squares.nonzero()):
            squares = squares[filled[0] : int(filled[-1]) + 1]
            self._first_row, self._num_rows = int(filled[0]), len(squares)
        self._at_least_as_large = squares.flip(0).cumsum(0).flip(0).clamp_min_(_TINY)

    def _row_of(self, magnitudes: Tensor) -> Tensor:
        # Zeros add nothing, whatever their row; above the last row is nothing.
        return ((bits_of(magnitudes) >> _DROPPED_IN_SUMS) - self._first_row).clamp_(0, self._num_rows - 1)

    @functools.cached_property
    def bins(self) -> Bins:
        """How many weights have about which score."""
        device = self.device
        counts = torch.zeros(1 << (_NUM_BITS - _DROPPED), dtype=torch.int64, device=device)
        ones = torch.ones(min(self._chunk, self.size), dtype=torch.int64, device=device)
        for _, magnitudes in self.chunks():
            counts.index_add_(0, bits_of(magnitudes) >> _DROPPED, ones[: len(magnitudes)])
        num_zeros = 0
        if counts[0]:
            num_zeros = self.size - sum(int(part.count_nonzero()) for part in self._flat.split(self._chunk))
        if self.largest is not None:
            counts[counts.nonzero()[-1]] -= 1
        counts[0] -= num_zeros
        filled = counts.nonzero().squeeze(1)
        first, counts = filled << _DROPPED, counts[filled]
        last = first + (1 << _DROPPED) - 1
        if num_zeros:  # they have a bin of their own, since masked weights often are the most of a layer
            zero = first.new_zeros(1)
            first, last = torch.cat([zero, first.clamp_min(1)]), torch.cat([zero, last])
            counts = torch.cat([zero + num_zeros, counts])
        return Bins(first, counts, self.of(_floats(first)), self.of(_floats(last)))


def bits_of(magnitudes: Tensor) -> Tensor:
    """Bits of non-negative float32 numbers as int32, which rise with the numbers."""
    return magnitudes.view(torch.int32)


def _floats(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)

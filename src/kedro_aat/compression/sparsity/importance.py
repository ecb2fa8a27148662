"""Importance scores of one layer's weights, a chunk at a time, and how many weights have about which score."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kedro_aat.compression.settings import Importance
from kedro_aat.ranks import group
from kedro_aat.ranks.shards import is_sharded, local

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

    Within a layer the score never falls as the magnitude rises, so bins of magnitudes are bins of scores. Of a weight
    that is divided among ranks, each scores its own rows, by sums over all of them; all ranks must make one.

    Args:
        weight: The layer's weight, of any shape and precision; complex weights count by their magnitude.
        kind: `abs` is the magnitude, `squared_abs` its square, and `normed_abs` the magnitude over the layer's L2
            norm. `lamp` is the squared weight over the sum of squares of all weights of the layer that are at least
            as large (the LAMP score of Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR
            2021), which keeps at least one weight in every layer at any rate.

    Attributes:
        size: Number of weights that this rank holds.
        device: Their device.
        largest: Position of the weight that has a score of its own, and is in no bin: of LAMP the largest one, or the
            first of several. None with other importances, if all weights are zero, or if another rank holds it.
    """

    def __init__(self, weight: Tensor, kind: Importance) -> None:
        self._flat = local(weight.detach()).reshape(-1)
        self._is_sharded = is_sharded(weight)
        self._kind = kind
        self.size = self._flat.numel()
        self.device = self._flat.device
        self._chunk = _CHUNK_ON_CPU if self.device.type == "cpu" else _CHUNK
        self.largest: int | None = None
        self._has_largest = False
        if kind == "normed_abs":
            self._norm = self._norm_of_all()
        if kind == "lamp":
            self._sum_squares()

    @property
    def score_of_largest(self) -> float | None:
        """Score of the weight that has one of its own, whichever rank holds it; None if none has."""
        return 1.0 if self._has_largest else None

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Yields the position of each chunk's first weight, and the magnitudes (weights,) as float32."""
        for start in range(0, self.size, self._chunk):
            yield start, self._flat[start : start + self._chunk].abs().float()

    def all(self) -> Tensor:
        """Returns the scores of all weights, (size,)."""
        return self._scored(0, self._flat.abs().float())

    def scored_chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Yields the position of each chunk's first weight, and the scores (weights,)."""
        for start, magnitudes in self.chunks():
            yield start, self._scored(start, magnitudes)

    def _scored(self, start: int, magnitudes: Tensor) -> Tensor:
        scores, score = self.of(magnitudes), self.score_of_largest
        if score is not None and self.largest is not None and start <= self.largest < start + len(scores):
            scores[self.largest - start] = score
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
        is_small = self.size <= self._chunk and not self._is_sharded  # ranks add up the same rows
        if is_small:  # not many more bins than weights
            rows = bits_of(self._flat.abs().float()) >> _DROPPED_IN_SUMS
            self._first_row = int(torch.where(self._flat != 0, rows, self._num_rows - 1).min())
            self._num_rows = max(int(rows.max()) - self._first_row, 0) + 1
        squares = torch.zeros(self._num_rows, dtype=torch.float64, device=self.device)
        highest = 0.0
        for start, magnitudes in self.chunks():
            squares.index_add_(0, self._row_of(magnitudes), magnitudes.double().square_())
            if (highest_of_chunk := float(magnitudes.max())) > highest:
                highest, self.largest = highest_of_chunk, start + int(magnitudes.argmax())
        self._has_largest = self.largest is not None
        if self._is_sharded:
            self._agree_on_largest(highest)
        if not is_small:
            squares = self._sums_of_all(squares)
        self._at_least_as_large = squares.flip(0).cumsum(0).flip(0).clamp_min_(_TINY)

    def _sums_of_all(self, squares: Tensor) -> Tensor:
        """The sums of all ranks, from the first row with a weight to the last one."""
        filled = squares.nonzero().squeeze(1)
        ends = torch.tensor([0, -self._num_rows], device=self.device)  # beyond the last row, and minus the first one
        if len(filled):
            ends = torch.stack([filled[-1] + 1, -filled[0]])
        if self._is_sharded:
            group.reduced(ends, "max")
        end, first = int(ends[0]), -int(ends[1])
        if first < end:
            squares = squares[first:end].contiguous()
            self._first_row, self._num_rows = first, len(squares)
        return group.summed(squares) if self._is_sharded else squares

    def _agree_on_largest(self, highest: float) -> None:
        """Lets only the first rank that holds one of the largest weights know its position."""
        highest_of_all = float(group.reduced(torch.tensor(highest, device=self.device), "max"))
        has_it = self.largest is not None and highest == highest_of_all
        first = torch.tensor(group.rank() if has_it else group.world_size(), device=self.device)
        owner = int(group.reduced(first, "min"))
        self._has_largest = owner < group.world_size()
        if owner != group.rank():
            self.largest = None

    def _norm_of_all(self) -> Tensor:
        # In double precision, so that it is the same whatever the chunks and however many ranks hold the weight.
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for _, magnitudes in self.chunks():
            squares += magnitudes.double().square_().sum()
        if self._is_sharded:
            group.summed(squares)
        return squares.sqrt().float().clamp_min_(_TINY_NORM)

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

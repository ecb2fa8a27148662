"""N:M patterns: of every M consecutive weights along a layer's input dimension at most N are not zero.

GPUs since NVIDIA's Ampere multiply by 2:4 weights at up to twice the speed (Mishra et al. 2021, "Accelerating Sparse
Deep Neural Networks", arXiv:2104.08378), if the runtime asks them to. A layer has the pattern or it has not, so a rate
is reached layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvTransposeNd

from kedro_aat.compression.layer_choice import least_damaged, relative_energy
from kedro_aat.compression.scopes import PrunableWeight
from kedro_aat.compression.settings import numbers_of_pattern


@dataclass(frozen=True)
class Pattern:
    """At most `kept` of every `of` consecutive weights are not zero.

    Attributes:
        kept: N, from 1 to `of` - 1.
        of: M.
    """

    kept: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads "N:M"; raises ValueError for anything else."""
        return cls(*numbers_of_pattern(text))

    @property
    def rate(self) -> float:
        """Share of zeros in a layer that has the pattern, in (0, 1)."""
        return 1 - self.kept / self.of

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"

    def fits(self, weight: PrunableWeight) -> bool:
        """Whether the layer's input dimension, of one of its convolution groups, is divisible by M."""
        size = weight.parameter.shape[_input_dimension(weight)]
        if isinstance(weight.module, _ConvTransposeNd):  # the inputs of all its groups lie in one dimension
            size //= weight.module.groups
        return size % self.of == 0

    def keep(self, weight: PrunableWeight, values: Tensor) -> Tensor:
        """The weights that stay: the N largest magnitudes of every M; of equal ones the first.

        Args:
            weight: That fits.
            values: The weights as they were before they were masked.

        Returns:
            bool, of the shape of `values`.
        """
        dim = _input_dimension(weight)
        groups = values.abs().movedim(dim, -1).unflatten(-1, (-1, self.of))  # (..., inputs / M, M)
        order = groups.argsort(dim=-1, descending=True, stable=True)
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., : self.kept], True)
        return kept.flatten(-2).movedim(-1, dim)


def keep_in_pattern(
    pattern: Pattern, weights: Sequence[PrunableWeight], values: Sequence[Tensor], num_zeros: float
) -> list[Tensor]:
    """Gives the pattern to as many layers as bring the number of zeros nearest to the one asked for.

    The least damaged come first. The damage is the share of its energy (the sum of its squared weights) that a
    layer loses. Layers that the pattern does not fit are kept whole.

    Args:
        pattern: One for all.
        weights: The layers.
        values: Their weights as they were before they were masked.
        num_zeros: In all; at least 0.

    Returns:
        One mask a layer, true where the weight is kept.
    """
    keep = [torch.ones_like(value, dtype=torch.bool) for value in values]
    fitting = [number for number, weight in enumerate(weights) if pattern.fits(weight)]
    sparse = {number: pattern.keep(weights[number], values[number]) for number in fitting}
    damages = [relative_energy(values[number][~sparse[number]], values[number]) for number in fitting]
    sizes = [int((~sparse[number]).sum()) for number in fitting]
    for index in least_damaged(damages, sizes, num_zeros):
        keep[fitting[index]] = sparse[fitting[index]]
    return keep


def _input_dimension(weight: PrunableWeight) -> int:
    return 0 if isinstance(weight.module, _ConvTransposeNd) else 1

"""N:M patterns: at most N of every M consecutive weights along a layer's input dimension are not zero.

NVIDIA GPUs since Ampere multiply by 2:4 weights at up to twice the speed (Mishra et al. 2021, "Accelerating Sparse
Deep Neural Networks", arXiv:2104.08378), if the runtime uses these instructions. A layer either has the pattern or does
not, so the rate changes layer by layer.
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
    """At most `num_kept` of every `size` consecutive weights are not zero.

    Attributes:
        num_kept: N, from 1 to `size` - 1.
        size: M.
    """

    num_kept: int
    size: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads "N:M", or raises ValueError."""
        return cls(*numbers_of_pattern(text))

    @property
    def rate(self) -> float:
        """Share of zeros in a layer that has the pattern, in (0, 1)."""
        return 1 - self.num_kept / self.size

    def __str__(self) -> str:
        return f"{self.num_kept}:{self.size}"

    def fits(self, weight: PrunableWeight) -> bool:
        """Whether the layer's number of inputs, per convolution group, is divisible by M."""
        num_inputs = weight.parameter.shape[_input_dimension(weight)]
        if isinstance(weight.module, _ConvTransposeNd):  # its input dimension holds the inputs of all groups
            num_inputs //= weight.module.groups
        return num_inputs % self.size == 0

    def keep(self, weight: PrunableWeight, values: Tensor) -> Tensor:
        """Selects the N largest magnitudes of every M weights; among equal ones, the first.

        Args:
            weight: A layer's weight that the pattern fits.
            values: The weight as it was before it was masked.

        Returns:
            A boolean tensor with the shape of `values`, true where a weight is kept.
        """
        dim = _input_dimension(weight)
        groups = values.abs().movedim(dim, -1).unflatten(-1, (-1, self.size))  # (..., inputs / M, M)
        order = groups.argsort(dim=-1, descending=True, stable=True)
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., : self.num_kept], True)
        return kept.flatten(-2).movedim(-1, dim)


def keep_in_pattern(
    pattern: Pattern, weights: Sequence[PrunableWeight], values: Sequence[Tensor], num_zeros: float
) -> list[Tensor]:
    """Gives the pattern to the least damaged layers, so many that the number of zeros is nearest to `num_zeros`.

    A layer's damage is the share of its energy (the sum of its squared weights) that it loses. Layers that the pattern
    does not fit stay dense.

    Args:
        pattern: The pattern of all layers.
        weights: The layers' weights.
        values: The weights as they were before they were masked, in the same order.
        num_zeros: Requested number of zeros in total, at least 0.

    Returns:
        One boolean mask per layer, true where a weight is kept.
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

"""Importance of whole units of channels, and the order in which they are removed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kedro_aat.compression.filters.cutting import axes
from kedro_aat.compression.filters.groups import ChannelGroup, Member
from kedro_aat.compression.settings import FilterImportance, FilterPruning

# (layer, name of a parameter) -> its values, masked ones as they were before they were masked.
Lookup = Callable[[str, str], Tensor]


def unit_scores(
    model: nn.Module, group: ChannelGroup, kind: FilterImportance, weight: Lookup, taylor: Lookup
) -> Tensor:
    """Scores of the units of a group; a higher score is kept longer.

    A unit may have filters in several layers (those that meet in a sum, for one); they are taken together.

    Args:
        model: Whose layers the group names.
        group: Of n units.
        kind: `l1` and `l2`: norm of the unit's filters (Li et al. 2017, "Pruning Filters for Efficient ConvNets",
            arXiv:1608.08710, section 3.1, with the sum of magnitudes). `geometric_median`: sum of the distances of
            the unit's filters to those of all others, so that what others can stand in for goes first (He et al.
            2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
            arXiv:1811.00250). `batch_norm_scale`: mean magnitude of the scales in the normalisation behind (Liu et
            al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", arXiv:1708.06519,
            section 3); groups without one are ranked by `l2`. `taylor`: the squared sum of gradient times weight
            over a filter (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning",
            arXiv:1906.10771, its first-order estimate for a group of weights), averaged over recent steps (of an
            epoch the first and every fourth after it, but never the last, so that epochs of one step give none)
            and summed over the unit's filters; a group that has seen no gradient yet is ranked by `l2`.
        weight: Gives the weights.
        taylor: Gives what `taylor` has gathered for each filter of a layer.

    Returns:
        float32, (n,), at least 0.
    """
    if kind == "batch_norm_scale":
        norms = [member for member in group.members if _is_scaled(model.get_submodule(member.layer))]
        if norms:
            scales = [_of_units(weight(member.layer, "weight").float().abs(), member) for member in norms]
            return torch.cat(scales, dim=1).mean(1)
    if kind == "taylor":
        gathered = [_of_units(taylor(member.layer, _weight_of(model, member)[0]), member) for member in group.makers]
        scores = torch.cat(gathered, dim=1).sum(1)
        if bool(scores.any()):
            return scores
    parts = []
    for member in group.makers:
        name, dim = _weight_of(model, member)
        parts.append(_of_units(weight(member.layer, name).float().movedim(dim, 0).flatten(1), member))
    if kind == "l1":
        return torch.stack([part.abs().sum(1) for part in parts]).sum(0)
    if kind == "geometric_median":
        # By a product of matrices: 7 times as fast as by differences. In double precision, since it cancels.
        filters = torch.cat(parts, dim=1).double()
        return torch.cdist(filters, filters, compute_mode="use_mm_for_euclid_dist").sum(1).float()
    return torch.stack([part.square().sum(1) for part in parts]).sum(0).sqrt()


def filter_sums(weight: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """Sum of weight times gradient over all but one dimension, (weight.shape[dim],)."""
    return (weight * gradient).movedim(dim, 0).flatten(1).sum(1)


def _is_scaled(module: nn.Module) -> bool:
    return isinstance(module, _NormBase | nn.GroupNorm) and module.weight is not None


def _weight_of(model: nn.Module, member: Member) -> tuple[str, int]:
    """Name and dimension of the weight that makes the channels of a member."""
    return axes(model.get_submodule(member.layer))[member.kind][0]


def _of_units(rows: Tensor, member: Member) -> Tensor:
    """(channels, ...) -> (units, numbers of each unit)."""
    indices = torch.from_numpy(member.indices).to(rows.device)
    return rows[indices].flatten(1)


def removal_order(
    scores: Sequence[NDArray[np.float32]], channels_per_unit: Sequence[int], settings: FilterPruning
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """In which order units go as the rate rises.

    With the ranking `local` every group loses the same share at any time; with `global` the unit of least score
    goes first, in proportion to the mean score of its group.

    Args:
        scores: For each group (units,).
        channels_per_unit: For each group.
        settings: `ranking`, `round_to` and `minimal_channels` count.

    Returns:
        For each move the group and the number of units that it loses. Within a group they go by rising score.
    """
    keys, groups, numbers = [], [], []
    for index, (score, width) in enumerate(zip(scores, channels_per_unit, strict=True)):
        left = kept_counts(len(score), width, settings)
        ascending = np.sort(score)
        mean = float(score.mean()) or 1.0
        gone = len(score) - np.array(left, dtype=np.int64)
        for before, after in itertools.pairwise(gone):
            share = (before + after) / 2 / len(score)
            keys.append(share if settings.ranking == "local" else float(ascending[before:after].mean()) / mean)
            groups.append(index)
            numbers.append(after - before)
    order = np.argsort(np.array(keys), kind="stable")
    return np.array(groups, dtype=np.int64)[order], np.array(numbers, dtype=np.int64)[order]


def kept_counts(num_units: int, channels_per_unit: int, settings: FilterPruning) -> list[int]:
    """The numbers of units that a group may have, falling from all of them."""
    step = settings.round_to // math.gcd(settings.round_to, channels_per_unit)
    fewest = max(1, -(-settings.minimal_channels // channels_per_unit))
    fewest = -(-fewest // step) * step
    return [num_units, *range((num_units - 1) // step * step, fewest - 1, -step)]

"""Importance of units of channels, and the order in which they are removed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kedro_aat.compression.filters.axes import own_tensor
from kedro_aat.compression.filters.cutting import Axis, Kind, axes
from kedro_aat.compression.filters.groups import ChannelGroup, Member
from kedro_aat.compression.settings import FilterImportance, FilterPruning
from kedro_aat.search.tactics import Ranking

TAYLOR = "_taylor"  # suffix of a weight's name for the buffer with the Taylor score of each filter

# Layer and name of one of its parameters -> a tensor for this parameter.
Lookup = Callable[[str, str], Tensor]


def unit_scores(
    model: nn.Module, group: ChannelGroup, kind: FilterImportance, weight: Lookup, taylor: Lookup
) -> Tensor:
    """Scores the units of a group; units with higher scores are kept longer.

    A unit may have filters in several layers, for example in layers whose outputs are added. They are scored together.

    Args:
        model: The model that contains the group's layers.
        group: A group of n units.
        kind: `l1` and `l2`: norm of the unit's filters (Li et al. 2017, "Pruning Filters for Efficient ConvNets",
            arXiv:1608.08710, section 3.1, with the sum of magnitudes). `geometric_median`: sum of the distances of
            the unit's filters to those of all other units, so that filters that others can replace are removed first
            (He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
            Acceleration", arXiv:1811.00250). `batch_norm_scale`: mean magnitude of the scales in the normalization
            that follows (Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming",
            arXiv:1708.06519, section 3); groups without one are scored by `l2`. `taylor`: squared sum of gradient
            times weight over a filter (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning",
            arXiv:1906.10771, first-order estimate for a group of weights), averaged over recent steps and summed
            over the unit's filters. The steps are the first of an epoch and every fourth after it, but never the
            last, so epochs of one step contribute none. A group without any gradient so far is scored by `l2`.
        weight: Returns a weight; masked weights as they were before they were masked.
        taylor: Returns the average that `taylor` has for each filter of a weight.

    Returns:
        (n,) float32, at least 0.
    """
    if kind == "batch_norm_scale":
        norms = [member for member in group.members if _is_scaled(model.get_submodule(member.layer))]
        if norms:
            scales = [_of_units(weight(member.layer, "weight").float().abs(), member) for member in norms]
            return torch.cat(scales, dim=1).mean(1)
    producing = [
        (member, axis)
        for member in group.producers
        for axis in filter_axes(model.get_submodule(member.layer), member.kind)
    ]
    if kind == "taylor":
        averages = [
            _of_units(_of_channels(taylor(member.layer, axis.name), axis._replace(dim=0)), member)
            for member, axis in producing
        ]
        scores = torch.cat(averages, dim=1).sum(1)
        if bool(scores.any()):
            return scores
    parts = [
        _of_units(_of_channels(_real(weight(member.layer, axis.name)), axis), member) for member, axis in producing
    ]
    if kind == "l1":
        return torch.stack([part.abs().sum(1) for part in parts]).sum(0)
    if kind == "geometric_median":
        # A matrix product is 7 times as fast as differences, but needs double precision because of cancellation.
        filters = torch.cat(parts, dim=1).double()
        return torch.cdist(filters, filters, compute_mode="use_mm_for_euclid_dist").sum(1).float()
    return torch.stack([part.square().sum(1) for part in parts]).sum(0).sqrt()


def nncf_scores(
    model: nn.Module, group: ChannelGroup, settings: FilterPruning, weight: Lookup, taylor: Lookup
) -> Tensor:
    """Scores the units of a group as NNCF 2.x does: the sum of their scores in each layer alone.

    With the ranking `global`, each layer's scores are relative to the norm of its weight.

    Args:
        model: The model that contains the group's layers.
        group: A group of n units.
        settings: Only `importance` and `ranking` matter.
        weight: As for `unit_scores`.
        taylor: As for `unit_scores`.

    Returns:
        (n,) float32, at least 0.
    """
    kind, scores = settings.importance, []
    if kind not in ("l1", "l2", "geometric_median"):
        return unit_scores(model, group, kind, weight, taylor)
    for member in group.producers:
        alone = replace(group, members=(member,))
        score = unit_scores(model, alone, kind, weight, taylor)
        if settings.ranking == "global":
            axes_of = filter_axes(model.get_submodule(member.layer), member.kind)
            weights = torch.cat([weight(member.layer, axis.name).float().flatten() for axis in axes_of])
            score = score / weights.norm().clamp_min(1e-30)
        scores.append(score)
    return torch.stack(scores).sum(0)


def offered_rankings(model: nn.Module, groups: Sequence[ChannelGroup], settings: FilterPruning) -> tuple[Ranking, ...]:
    """Returns the rankings that a search may try, the configured one first.

    Args:
        model: The model that contains the groups' layers.
        groups: All groups of units.
        settings: The configured importance and ranking.
    """
    layers = {member.layer for group in groups for member in group.members}
    names = [
        ("l2", "local"),
        ("batch_norm_scale", "global"),
        ("taylor", "local"),
        ("l2", "global"),
        ("taylor", "global"),
    ]
    if not any(_is_scaled(model.get_submodule(layer)) for layer in layers):
        names.remove(("batch_norm_scale", "global"))
    configured = Ranking(importance=settings.importance, ranking=settings.ranking)
    others = [Ranking(importance=importance, ranking=ranking) for importance, ranking in names]
    return tuple(dict.fromkeys([configured, *others]))


def filter_sums(weight: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """Sums weight times gradient over each filter.

    Args:
        weight: Any shape.
        gradient: Gradient of the weight.
        dim: Dimension along which the filters lie.

    Returns:
        (weight.shape[dim],)
    """
    return (weight * gradient).movedim(dim, 0).flatten(1).sum(1)


def _is_scaled(module: nn.Module) -> bool:
    return isinstance(module, _NormBase | nn.GroupNorm) and module.weight is not None


def filter_axes(module: nn.Module, kind: Kind) -> list[Axis]:
    """The axes of the weights that produce channels of a kind, along which their filters lie.

    Biases count only where there is no other tensor. The hidden units of a recurrent layer have a filter in each gate.
    """
    found = axes(module)[kind]
    first = {axis.name: axis for axis in reversed(found)}  # columns of recurrent weights come after their rows
    matrices = [axis for axis in first.values() if own_tensor(module, axis.name).dim() > 1]
    return matrices[::-1] or found


def _real(tensor: Tensor) -> Tensor:
    """In single precision; of complex numbers the magnitudes."""
    return tensor.abs().float() if tensor.is_complex() else tensor.float()


def _of_channels(tensor: Tensor, axis: Axis) -> Tensor:
    """(channels, numbers per channel) of a tensor, for the channels along an axis."""
    rows: Tensor = tensor.movedim(axis.dim, 0).unflatten(0, (axis.repeats, -1)).transpose(0, 1).flatten(1)
    return rows


def _of_units(rows: Tensor, member: Member) -> Tensor:
    """(channels, ...) -> (units, numbers per unit)."""
    indices = torch.from_numpy(member.indices).to(rows.device)
    return rows[indices].flatten(1)


def removal_order(
    scores: Sequence[NDArray[np.float32]], channels_per_unit: Sequence[int], settings: FilterPruning
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Orders the removal of units as the rate rises.

    With the ranking `local` all groups lose the same share at any time. With `global` the units with the lowest score,
    relative to the mean score of their group, are removed first.

    Args:
        scores: (units,) for each group.
        channels_per_unit: One number per group.
        settings: Only `ranking`, `round_to` and `minimal_channels` matter.

    Returns:
        (removals,) index of a group, and (removals,) number of units that it loses. Within a group, units are removed
        by rising score.
    """
    keys, groups, numbers = [], [], []
    for index, (score, width) in enumerate(zip(scores, channels_per_unit, strict=True)):
        ascending = np.sort(score)
        mean = float(score.mean()) or 1.0
        removed_counts = len(score) - np.array(kept_counts(len(score), width, settings), dtype=np.int64)
        for before, after in itertools.pairwise(removed_counts):
            share = (before + after) / 2 / len(score)
            keys.append(share if settings.ranking == "local" else float(ascending[before:after].mean()) / mean)
            groups.append(index)
            numbers.append(after - before)
    order = np.argsort(np.array(keys), kind="stable")
    return np.array(groups, dtype=np.int64)[order], np.array(numbers, dtype=np.int64)[order]


def nearest_removal(
    scores: Sequence[NDArray[np.float32]],
    channels_per_unit: Sequence[int],
    settings: FilterPruning,
    rate: float,
    rate_without: Callable[[NDArray[np.int64]], float],
) -> NDArray[np.int64]:
    """(groups,) units to remove from each group, so that the rate is nearest to the one asked for.

    Args:
        scores: As for `removal_order`.
        channels_per_unit: As for `removal_order`.
        settings: As for `removal_order`.
        rate: The rate, in [0, 1).
        rate_without: Rate if so many units are removed from each group; it rises with them.
    """
    groups, numbers = removal_order(scores, channels_per_unit, settings)

    def removed_by(count: int) -> NDArray[np.int64]:
        """Units removed from each group by the first `count` removals."""
        return np.bincount(groups[:count], numbers[:count], minlength=len(scores)).astype(np.int64)

    low, high = 0, len(groups)  # bisection for the smallest number of removals that reaches the rate
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if rate_without(removed_by(middle)) >= rate else (middle + 1, high)
    if low and rate - rate_without(removed_by(low - 1)) <= rate_without(removed_by(low)) - rate:
        low -= 1  # one removal less is at least as near to the rate
    return removed_by(low)


def kept_counts(num_units: int, channels_per_unit: int, settings: FilterPruning) -> list[int]:
    """Numbers of units that a group may keep, falling from all of them.

    Args:
        num_units: Units in the group.
        channels_per_unit: Largest number of channels that a layer loses with one unit.
        settings: Only `round_to` and `minimal_channels` matter.
    """
    step = settings.round_to // math.gcd(settings.round_to, channels_per_unit)
    fewest = max(1, -(-settings.minimal_channels // channels_per_unit))
    fewest = -(-fewest // step) * step
    return [num_units, *range((num_units - 1) // step * step, fewest - 1, -step)]

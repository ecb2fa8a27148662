"""Masks of channels on the parameters of a model: which dimensions they have, and what they say of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kedro_aat.compression.filters.cutting import Axis, Kind, axes
from kedro_aat.compression.filters.groups import ChannelGroup, Member, Place, is_read
from kedro_aat.compression.masks import WeightMasks
from kedro_aat.compression.scopes import PrunableWeight

# Layer and name of a parameter -> kind of channels and axis of each dimension along which it is masked.
MaskedAxes = dict[tuple[str, str], list[tuple[Kind, Axis]]]


def masked_axes(model: nn.Module, groups: Sequence[ChannelGroup]) -> MaskedAxes:
    """Finds the parameters that are masked for some groups."""
    found: MaskedAxes = {}
    for group in groups:
        for member in group.members:
            for axis in masked_axes_of(model.get_submodule(member.layer), member):
                known = found.setdefault((member.layer, axis.name), [])
                if (member.kind, axis) not in known:
                    known.append((member.kind, axis))
    return found


def masked_axes_of(module: nn.Module, member: Member) -> list[Axis]:
    """The axes of a layer's parameters that are zero for masked channels; buffers never are."""
    if not member.is_masked or isinstance(module, nn.PReLU):  # it returns zero for zero
        return []
    return [axis for axis in axes(module).get(member.kind, []) if axis.name in module._parameters]


def make_masks(model: nn.Module, along: MaskedAxes, *, shadow_on_host: bool) -> WeightMasks:
    """Makes masks for some parameters, in the order in which they are given.

    Args:
        model: The model.
        along: The parameters.
        shadow_on_host: As for `WeightMasks`.
    """
    weights, statistics = [], []
    for layer, name in along:
        weights.append(weight := _weight(model, layer, name))
        if isinstance(weight.module, _NormBase) and name == "weight":
            own = weight.module._buffers
            statistics += [
                (weight, buffer) for buffer in ("running_mean", "running_var") if own.get(buffer) is not None
            ]
    return WeightMasks(weights, statistics, shadow_on_host=shadow_on_host)


def filters_in(model: nn.Module, along: MaskedAxes) -> list[tuple[PrunableWeight, int]]:
    """Those of some parameters that consist of filters, and the dimension along which the filters lie."""
    found = []
    for (layer, name), axes_and_kinds in along.items():
        weight = _weight(model, layer, name)
        dims = [axis.dim for kind, axis in axes_and_kinds if not is_read(kind)]
        if weight.parameter.dim() > 1 and dims:
            found.append((weight, dims[0]))
    return found


def _weight(model: nn.Module, layer: str, name: str) -> PrunableWeight:
    return PrunableWeight(layer, layer, model.get_submodule(layer), name)


def kept_channels(
    sizes: Mapping[Place, int], groups: Sequence[ChannelGroup], kept: Sequence[NDArray[np.bool_]]
) -> dict[Place, NDArray[np.float32]]:
    """1 for each channel that stays and 0 for the others, (channels,) for each place that loses any.

    Args:
        sizes: The model's `count_channels`.
        groups: Some groups of the model.
        kept: For each group (units,), True for a unit that stays.
    """
    channels: dict[Place, NDArray[np.float32]] = {}
    for group, keep in zip(groups, kept, strict=True):
        for member in group.members if not keep.all() else ():
            place = member.layer, member.kind
            found = channels.setdefault(place, np.ones(sizes[place], dtype=np.float32))
            found[member.indices[~keep].ravel()] = 0
    return channels


def mask_of(ndim: int, along: Sequence[tuple[Axis, NDArray[np.float32]]]) -> Tensor:
    """The mask of a parameter: the product of those along its axes, of size 1 along all other dimensions.

    Args:
        ndim: Number of dimensions of the parameter.
        along: Axes, and 1 or 0 for each of their channels.
    """
    mask = torch.ones([1] * ndim)
    for axis, channels in along:
        view = [-1 if dim == axis.dim else 1 for dim in range(ndim)]
        mask = mask * torch.from_numpy(np.tile(channels, axis.repeats)).view(view)
    return mask


def channels_in(mask: Tensor, axis: Axis) -> Tensor:
    """(channels,) whether a mask keeps any entry of each channel of an axis."""
    found = mask.movedim(axis.dim, 0).flatten(1).any(1) if mask.dim() > 1 else mask.bool()
    return found[: len(found) // axis.repeats]


def is_normalized(module: nn.Module, kind: Kind) -> bool:
    """Whether a kind of a layer that takes statistics over channels is that of these channels."""
    return kind in ("channels", "weight:0") or (not module._parameters and not is_read(kind))

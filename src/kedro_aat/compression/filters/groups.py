"""Which channels of a model can only be cut together, which cannot be cut, and why.

`trace` finds the channels of different layers that depend on each other. This module combines them: channels of a
grouped convolution or normalization by whole groups, channels of attention by whole heads. All channels that depend on
each other form a *unit*, which is cut as a whole. Units of the same layers and sizes form a *group*, in which they
compete.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn
from torch.nn.modules.conv import _ConvNd

from kedro_aat.compression.filters.attention import heads_of
from kedro_aat.compression.filters.cutting import Cut, Kind, axes, num_channels

Place = tuple[str, Kind]  # name of a layer, and kind of its channels

PRODUCED: tuple[Kind, ...] = ("outputs", "projections")  # kinds of channels that a weight of the layer produces


@dataclass(frozen=True)
class Member:
    """The channels of one layer that belong to a group.

    Attributes:
        layer: Name of the layer.
        kind: Kind of its channels.
        indices: (units, channels per unit) - channels of each unit.
    """

    layer: str
    kind: Kind
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class ChannelGroup:
    """Interchangeable units, any of which can be cut.

    Attributes:
        members: One per layer and kind of channels.
    """

    members: tuple[Member, ...]

    @property
    def num_units(self) -> int:
        """Number of units."""
        return int(self.members[0].indices.shape[0])

    @property
    def channels_per_unit(self) -> int:
        """Largest number of channels that a layer loses with one unit."""
        return max(int(member.indices.shape[1]) for member in self.members if member.kind != "heads")

    @property
    def producers(self) -> list[Member]:
        """Members whose layers produce the channels."""
        return [member for member in self.members if member.kind in PRODUCED]


@dataclass
class Couplings:
    """Dependencies between the channels of a model.

    Attributes:
        sizes: Layer and kind -> number of channels.
        pairs: Two places with as many indices each: channels that can only be cut together.
        blocked: Place, indices, and why these channels cannot be cut.
    """

    sizes: dict[Place, int]
    pairs: list[tuple[Place, Sequence[int], Place, Sequence[int]]] = field(default_factory=list)
    blocked: list[tuple[Place, Sequence[int], str]] = field(default_factory=list)

    def block(self, place: Place, reason: str) -> None:
        """Notes that no channel of a place can be cut."""
        if place in self.sizes:
            self.blocked.append((place, range(self.sizes[place]), reason))


def count_channels(model: nn.Module) -> dict[Place, int]:
    """Layer and kind -> number of channels, for all channels that can be cut."""
    return {(name, kind): num_channels(module, kind) for name, module in model.named_modules() for kind in axes(module)}


def couple_within_layers(model: nn.Module, couplings: Couplings) -> None:
    """Adds dependencies within a layer: grouped convolutions and normalizations, attention heads."""
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd) and module.groups > 1 and axes(module):
            outputs, inputs = module.out_channels // module.groups, module.in_channels // module.groups
            _couple_blocks(couplings, ((name, "outputs"), outputs), ((name, "outputs"), outputs))
            _couple_blocks(couplings, ((name, "outputs"), outputs), ((name, "inputs"), inputs))
        elif isinstance(module, nn.GroupNorm):
            width = module.num_channels // module.num_groups
            _couple_blocks(couplings, ((name, "channels"), width), ((name, "channels"), width))
        elif (heads := heads_of(module)) is not None:
            anchor: Place = (name, "heads")
            for child, times in heads.producers.items():
                producer: Place = (join_names(name, child), "outputs") if child else (name, "projections")
                rows = np.arange(times * heads.number * heads.dim)
                head_of_row = rows // heads.dim % heads.number
                couplings.pairs.append((anchor, head_of_row.tolist(), producer, rows.tolist()))
            columns = np.arange(heads.number * heads.dim)
            consumer: Place = (join_names(name, heads.consumer), "inputs")
            couplings.pairs.append((anchor, (columns // heads.dim).tolist(), consumer, columns.tolist()))


def _couple_blocks(couplings: Couplings, left: tuple[Place, int], right: tuple[Place, int]) -> None:
    """Couples the first channel of each block of `left` with all channels of the same block of `right`.

    Args:
        couplings: Gains the pairs.
        left: A place and the width of its blocks.
        right: A place and the width of its blocks.
    """
    (place, width), (other_place, other_width) = left, right
    channels = np.arange(couplings.sizes[other_place])
    couplings.pairs.append((place, (channels // other_width * width).tolist(), other_place, channels.tolist()))


def join_names(parent: str, child: str) -> str:
    """Name of a child in the model; the model itself has an empty name."""
    return f"{parent}.{child}" if parent else child


def build_groups(couplings: Couplings) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Combines coupled channels to units, and units to groups.

    Returns:
        The groups that can be cut as far as the couplings show, and layer -> why not all of its outputs can be cut.
    """
    # A node is one channel of one place; the nodes of a place are numbered from `starts[place]` on.
    starts, num_nodes = {}, 0
    for place, size in couplings.sizes.items():
        starts[place], num_nodes = num_nodes, num_nodes + size
    place_of_node = np.repeat(np.arange(len(starts)), list(couplings.sizes.values()))
    unit_of_node = _find_units(couplings, starts, num_nodes)

    reasons: dict[int, str] = {}  # unit -> why it cannot be cut
    for place, indices, reason in couplings.blocked:
        for unit in unit_of_node[starts[place] + np.asarray(indices, dtype=np.int64)].tolist():
            reasons.setdefault(unit, reason)

    places = list(starts)
    order = np.argsort(unit_of_node, kind="stable")  # the nodes of a unit side by side, by place and index
    ends = np.flatnonzero(np.diff(unit_of_node[order], append=-1)) + 1
    units_by_signature: dict[tuple[tuple[int, int], ...], list[NDArray[np.int64]]] = {}
    not_cut: dict[str, str] = {}
    for nodes in np.split(order, ends[:-1]):
        owners, counts = np.unique(place_of_node[nodes], return_counts=True)
        producers = [places[owner][0] for owner in owners if places[owner][1] in PRODUCED]
        if reason := reasons.get(int(unit_of_node[nodes[0]]), ""):
            for layer in producers:
                not_cut.setdefault(layer, reason)
        elif producers:  # otherwise the channels are inputs of the model
            signature = tuple(zip(owners.tolist(), counts.tolist(), strict=True))
            units_by_signature.setdefault(signature, []).append(nodes)
    groups = []
    for signature, units in units_by_signature.items():
        table, column, members = np.stack(units), 0, []
        for owner, count in signature:
            layer, kind = places[owner]
            members.append(Member(layer, kind, table[:, column : column + count] - starts[layer, kind]))
            column += count
        groups.append(ChannelGroup(tuple(members)))
    return groups, not_cut


def _find_units(couplings: Couplings, starts: dict[Place, int], num_nodes: int) -> NDArray[np.int64]:
    """(nodes,) - number of the unit to which each node belongs."""
    left = [starts[place] + index for place, indices, *_ in couplings.pairs for index in indices]
    right = [starts[place] + index for *_, place, indices in couplings.pairs for index in indices]
    edges = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(num_nodes, num_nodes))
    labels: NDArray[np.int64] = connected_components(edges, directed=False)[1].astype(np.int64)
    return labels


def plan_cuts(groups: Sequence[ChannelGroup], kept: Sequence[NDArray[np.bool_]], sizes: dict[Place, int]) -> list[Cut]:
    """Makes the cut plan that removes all units except those that are kept.

    Args:
        groups: Some groups of a model.
        kept: For each group (units,), True for a unit that stays.
        sizes: The model's `count_channels`.
    """
    removed: dict[Place, NDArray[np.bool_]] = {}
    for group, keep in zip(groups, kept, strict=True):
        for member in group.members if not keep.all() else ():
            place = member.layer, member.kind
            is_removed = removed.setdefault(place, np.zeros(sizes[place], dtype=bool))
            is_removed[member.indices[~keep].ravel()] = True
    # Heads come first, because an attention module is recognized by layers that fit its number of heads. Inputs come
    # before outputs, because a convolution that has one group left is no longer cut by groups.
    priority = {"heads": 0, "inputs": 1}
    return [
        Cut(layer=layer, kind=kind, size=len(is_removed), kept=tuple(np.flatnonzero(~is_removed).tolist()))
        for (layer, kind), is_removed in sorted(removed.items(), key=lambda item: priority.get(item[0][1], 2))
    ]


def producing_layers(groups: Collection[ChannelGroup]) -> set[str]:
    """Names of all layers that produce channels of these groups."""
    return {member.layer for group in groups for member in group.producers}

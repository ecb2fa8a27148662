"""Which channels of a model can only be cut together, which cannot be cut, and why.

`trace` finds the channels of different layers that depend on each other. This module combines them: all channels that
depend on each other form a *unit*, which is cut as a whole. Units of the same layers and sizes form a *group*, in which
they compete.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from kedro_aat.compression.filters.axes import Kind, axes, channels_of, num_channels
from kedro_aat.compression.filters.cutting import AttributeChange, Cut
from kedro_aat.compression.filters.tracing.labels import Dependencies, Length, Nodes, find_units

if TYPE_CHECKING:
    from kedro_aat.compression.filters.normalization import Normalization

Place = tuple[str, Kind]  # name of a layer, and kind of its channels


def is_produced(kind: Kind) -> bool:
    """Whether a weight of the layer produces channels of this kind."""
    return kind in ("outputs", "projections", "q", "k", "v") or kind.startswith("hidden")


def is_read(kind: Kind) -> bool:
    """Whether a weight of the layer reads channels of this kind."""
    return kind.startswith("inputs") or kind.endswith("inputs") or kind == "columns"


@dataclass(frozen=True, eq=False)
class Member:
    """The channels of one layer that belong to a group.

    Attributes:
        layer: Name of the layer.
        kind: Kind of its channels.
        indices: (units, channels per unit) - channels of each unit.
        is_masked: Whether its weight is masked for masked channels; if not, zeros reach it.
        is_made: Whether a weight of the layer produces these channels.
    """

    layer: str
    kind: Kind
    indices: NDArray[np.int64]
    is_masked: bool = True
    is_made: bool = False


@dataclass(frozen=True)
class ScaledAttribute:
    """A number of a module on which its forward pass relies, such as the number of its heads.

    Attributes:
        layer: Name of the module.
        name: Name of the attribute.
        before: Its value before the cut.
        per_unit: By how much one unit less lowers it.
        position: Which number it is if the attribute has several; None if it is a number.
    """

    layer: str
    name: str
    before: int | tuple[int, ...]
    per_unit: int
    position: int | None = None


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Interchangeable units, any of which can be cut.

    Attributes:
        members: One per layer and kind of channels.
        nodes: Nodes of each unit, (units, nodes per unit).
        attributes: Numbers of modules that follow the number of units.
    """

    members: tuple[Member, ...]
    nodes: Nodes
    attributes: tuple[ScaledAttribute, ...] = ()

    def joined(self, other: ChannelGroup) -> ChannelGroup:
        """This group and another of as many units, which are cut together."""
        return ChannelGroup((*self.members, *other.members), np.hstack([self.nodes, other.nodes]))

    def coarser(self, num_units: int) -> ChannelGroup:
        """The group with fewer and larger units: each has the channels of several that lie side by side.

        Args:
            num_units: A divisor of the number of units.
        """
        members = tuple(replace(each, indices=each.indices.reshape(num_units, -1)) for each in self.members)
        return replace(self, members=members, nodes=self.nodes.reshape(num_units, -1))

    def encloses(self, other: ChannelGroup) -> bool:
        """Whether a layer reads these channels to make the other's, and one reads the other's to make these.

        So it is for a residual stream and the heads of an attention on it.
        """
        read, others = _reading_layers(self), _reading_layers(other)
        return bool(read & producing_layers([other])) and bool(others & producing_layers([self]))

    @property
    def num_units(self) -> int:
        """Number of units."""
        return int(self.nodes.shape[0])

    @property
    def channels_per_unit(self) -> int:
        """Largest number of channels that a layer loses with one unit."""
        return max(int(member.indices.shape[1]) for member in self.members)

    @property
    def filters_per_unit(self) -> int:
        """Largest number of filters that a layer loses with one unit."""
        return max(int(member.indices.shape[1]) for member in self.producers)

    @property
    def producers(self) -> list[Member]:
        """Members whose layers produce the channels."""
        return [member for member in self.members if member.is_made or is_produced(member.kind)]

    def only(self, units: NDArray[np.bool_]) -> ChannelGroup:
        """The group with some of its units, (units,)."""
        members = tuple(replace(member, indices=member.indices[units]) for member in self.members)
        return replace(self, members=members, nodes=self.nodes[units])


@dataclass
class Couplings:
    """Dependencies between the channels of a model.

    Attributes:
        sizes: Layer and kind -> number of channels.
        starts: Layer and kind -> node of the first channel.
        dependencies: What is known of the nodes.
        normalizations: Layers that take statistics over channels -> how.
        notes: What could not be traced.
    """

    sizes: dict[Place, int]
    dependencies: Dependencies = field(default_factory=Dependencies)
    normalizations: dict[str, Normalization] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    starts: dict[Place, int] = field(init=False)

    def __post_init__(self) -> None:
        ends = np.cumsum([0, *self.sizes.values()]).tolist()
        self.starts = dict(zip(self.sizes, ends, strict=False))

    @property
    def num_nodes(self) -> int:
        """Number of channels of all places."""
        return sum(self.sizes.values())

    def block(self, place: Place, reason: str) -> None:
        """Notes that no channel of a place can be cut."""
        if place in self.sizes:
            start = self.starts[place]
            self.dependencies.blocked.append((np.arange(start, start + self.sizes[place]), reason))


def count_channels(model: nn.Module) -> dict[Place, int]:
    """Layer and kind -> number of channels, for all channels that can be cut."""
    return {(name, kind): num_channels(module, kind) for name, module in model.named_modules() for kind in axes(module)}


def build_groups(couplings: Couplings) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Combines coupled channels to units, and units to groups.

    Returns:
        The groups that can be cut as far as the couplings show, and layer -> why not all of its outputs can be cut.
    """
    found = couplings.dependencies
    starts, places = couplings.starts, list(couplings.sizes)
    place_of_node = np.repeat(np.arange(len(places)), list(couplings.sizes.values()))
    unit_of_node = find_units(found, couplings.num_nodes)
    is_masked = np.array([not is_read(kind) for _, kind in places])[place_of_node]
    is_made = np.array([is_produced(kind) for _, kind in places])[place_of_node]
    for nodes in found.made:
        is_made[nodes] = True
    for nodes in found.masked:
        is_masked[nodes] = True
    for nodes in found.unmasked:
        is_masked[nodes] = False

    reasons: dict[int, str] = {}  # unit -> why it cannot be cut
    for nodes, reason in found.blocked:
        for unit in np.unique(unit_of_node[nodes]).tolist():
            reasons.setdefault(unit, reason)

    order = np.argsort(unit_of_node, kind="stable")  # the nodes of a unit side by side, by place and index
    ends = np.flatnonzero(np.diff(unit_of_node[order], append=-1)) + 1
    units_by_signature: dict[tuple[tuple[int, int, bool, bool], ...], list[Nodes]] = {}
    not_cut: dict[str, str] = {}
    for nodes in np.split(order, ends[:-1]):
        owners, first, counts = np.unique(place_of_node[nodes], return_index=True, return_counts=True)
        producers = [places[owner][0] for owner, node in zip(owners, nodes[first], strict=True) if is_made[node]]
        if reason := reasons.get(int(unit_of_node[nodes[0]]), ""):
            for layer in producers:
                not_cut.setdefault(layer, reason)
        elif producers:  # otherwise the channels are inputs of the model, or parameters alone
            flags = is_masked[nodes[first]].tolist(), is_made[nodes[first]].tolist()
            signature = tuple(zip(owners.tolist(), counts.tolist(), *flags, strict=True))
            units_by_signature.setdefault(signature, []).append(nodes)
    groups = []
    for signature, units in units_by_signature.items():
        table, column, members = np.stack(units), 0, []
        for owner, count, masks, makes in signature:
            place = places[owner]
            members.append(Member(*place, table[:, column : column + count] - starts[place], masks, makes))
            column += count
        groups.append(ChannelGroup(tuple(members), table))
    return groups, not_cut


def attributes_by_length(model: nn.Module, group: ChannelGroup, lengths: Iterable[Length]) -> list[ScaledAttribute]:
    """Finds attributes that may hold a number of channels of a group.

    Args:
        model: The model before the cut.
        group: The group.
        lengths: Channels along a dimension to which a forward pass gives a shape.

    Returns:
        Attributes of the modules whose forward pass was running that equal the number of these channels.
    """
    found: dict[tuple[str, str, int | None], ScaledAttribute] = {}
    for length in lengths:
        per_unit = np.isin(group.nodes, length.nodes).sum(1)
        counts = np.array([np.isin(length.nodes, unit).sum() for unit in group.nodes]) if per_unit.any() else per_unit
        if not counts.any() or (counts != counts[0]).any():
            continue
        for name in length.modules:
            for attribute, position, value in _numbers(model.get_submodule(name)):
                if value == len(length.nodes):
                    before = value if position is None else tuple(getattr(model.get_submodule(name), attribute))
                    scaled = ScaledAttribute(name, attribute, before, int(counts[0]), position)
                    found.setdefault((name, attribute, position), scaled)
    return list(found.values())


def _numbers(module: nn.Module) -> Iterable[tuple[str, int | None, int]]:
    """Name, position and value of each whole number that a module holds itself, except sizes that a cut changes."""
    if type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.MultiheadAttention):
        return
    sizes = {name for channels in channels_of(module).values() for name in channels.sizes}
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, bool) or name in sizes:
            continue
        if isinstance(value, int):
            yield name, None, value
        elif isinstance(value, list | tuple):
            is_all_whole = all(type(part) is int for part in value)
            yield from ((name, place, part) for place, part in enumerate(value) if is_all_whole)


def plan_cuts(
    groups: Sequence[ChannelGroup], kept: Sequence[NDArray[np.bool_]], sizes: dict[Place, int]
) -> list[Cut | AttributeChange]:
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
    # Inputs come before outputs, because a convolution that has one group left is no longer cut by groups.
    cuts = [
        Cut(layer=layer, kind=kind, size=len(is_removed), kept=tuple(np.flatnonzero(~is_removed).tolist()))
        for (layer, kind), is_removed in sorted(removed.items(), key=lambda item: item[0][1] != "inputs")
    ]
    return [*cuts, *_plan_changes(groups, kept)]


def _plan_changes(groups: Sequence[ChannelGroup], kept: Sequence[NDArray[np.bool_]]) -> list[AttributeChange]:
    """Changes of attributes that follow the number of units; several groups may change the same."""
    values: dict[tuple[str, str], tuple[int | tuple[int, ...], list[int]]] = {}
    for group, keep in zip(groups, kept, strict=True):
        for each in group.attributes if not keep.all() else ():
            numbers = [each.before] if isinstance(each.before, int) else list(each.before)
            _, after = values.setdefault((each.layer, each.name), (each.before, numbers))
            after[each.position or 0] -= each.per_unit * int(np.count_nonzero(~keep))
    return [
        AttributeChange(
            layer=layer, attribute=name, before=before, after=after[0] if isinstance(before, int) else tuple(after)
        )
        for (layer, name), (before, after) in values.items()
    ]


def _reading_layers(group: ChannelGroup) -> set[str]:
    return {member.layer for member in group.members if is_read(member.kind)}


def producing_layers(groups: Collection[ChannelGroup]) -> set[str]:
    """Names of all layers that produce channels of these groups."""
    return {member.layer for group in groups for member in group.producers}


def layers_with_one_filter(groups: Sequence[ChannelGroup], removed: NDArray[np.int64]) -> set[str]:
    """Names of the layers of which a cut leaves a single filter.

    Args:
        groups: All groups of a model.
        removed: (groups,) units that each group loses.
    """
    found = (
        group
        for group, number in zip(groups, removed, strict=True)
        if number and group.num_units - number == 1 == group.filters_per_unit
    )
    return producing_layers(list(found))

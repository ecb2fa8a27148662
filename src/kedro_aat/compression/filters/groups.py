"""Which channels of a model can only be cut together, and which cannot be cut, and why.

The tracing tells which channels of which layers depend on each other. Here these are put together: channels of
a grouped convolution or normalisation by whole groups, those of attention by whole heads. What hangs together
is a *unit*, which is cut whole; units of the same layers and sizes make a *group*, in which they compete.
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
from kedro_aat.compression.filters.cutting import Cut, Kind, axes, size

Place = tuple[str, Kind]  # a layer's name, and the kind of its channels

MAKERS: tuple[Kind, ...] = ("outputs", "projections")  # kinds of channels that a weight of their own makes


@dataclass(frozen=True)
class Member:
    """The part that one layer has in a group.

    Attributes:
        layer: Its name.
        kind: Of its channels.
        indices: (units, channels of each unit).
    """

    layer: str
    kind: Kind
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class ChannelGroup:
    """Units that are alike, and of which any can be cut."""

    members: tuple[Member, ...]

    @property
    def num_units(self) -> int:
        """How many units there are."""
        return int(self.members[0].indices.shape[0])

    @property
    def channels_per_unit(self) -> int:
        """The most channels that a layer loses with a unit."""
        return max(int(member.indices.shape[1]) for member in self.members if member.kind != "heads")

    @property
    def makers(self) -> list[Member]:
        """The layers that produce the channels."""
        return [member for member in self.members if member.kind in MAKERS]


@dataclass
class Couplings:
    """What is known of the channels of a model.

    Attributes:
        sizes: Layer and kind -> number of channels.
        pairs: Two places, and as many indices of each: channels that are cut together.
        blocked: Place, indices, and why these cannot be cut.
    """

    sizes: dict[Place, int]
    pairs: list[tuple[Place, Sequence[int], Place, Sequence[int]]] = field(default_factory=list)
    blocked: list[tuple[Place, Sequence[int], str]] = field(default_factory=list)

    def block(self, place: Place, reason: str) -> None:
        """Notes that no channel of a place can be cut."""
        if place in self.sizes:
            self.blocked.append((place, range(self.sizes[place]), reason))


def all_places(model: nn.Module) -> dict[Place, int]:
    """Every kind of channels of every layer -> how many there are."""
    return {(name, kind): size(module, kind) for name, module in model.named_modules() for kind in axes(module)}


def couple_within_layers(model: nn.Module, couplings: Couplings) -> None:
    """Adds what a layer's own form ties together: grouped convolutions and normalisations, attention heads."""
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd) and module.groups > 1 and axes(module):
            outputs, inputs = module.out_channels // module.groups, module.in_channels // module.groups
            _tie(couplings, ((name, "outputs"), outputs), ((name, "outputs"), outputs))
            _tie(couplings, ((name, "outputs"), outputs), ((name, "inputs"), inputs))
        elif isinstance(module, nn.GroupNorm):
            width = module.num_channels // module.num_groups
            _tie(couplings, ((name, "channels"), width), ((name, "channels"), width))
        elif (heads := heads_of(module)) is not None:
            anchor: Place = (name, "heads")
            for child, times in heads.producers.items():
                producer: Place = (_join(name, child), "outputs") if child else (name, "projections")
                rows = np.arange(times * heads.number * heads.dim)
                head_of_row = rows // heads.dim % heads.number
                couplings.pairs.append((anchor, head_of_row.tolist(), producer, rows.tolist()))
            columns = np.arange(heads.number * heads.dim)
            consumer: Place = (_join(name, heads.consumer), "inputs")
            couplings.pairs.append((anchor, (columns // heads.dim).tolist(), consumer, columns.tolist()))


def _tie(couplings: Couplings, left: tuple[Place, int], right: tuple[Place, int]) -> None:
    """Ties the first channel of every block of `left` to all channels of the same block of `right`."""
    (place, width), (other, other_width) = left, right
    channels = np.arange(couplings.sizes[other])
    couplings.pairs.append((place, (channels // other_width * width).tolist(), other, channels.tolist()))


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child


def put_together(couplings: Couplings) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups that can be cut as far as is known, and layer -> why its outputs (not all of them) cannot."""
    starts, total = {}, 0
    for place, number in couplings.sizes.items():
        starts[place], total = total, total + number
    place_of_node = np.repeat(np.arange(len(starts)), list(couplings.sizes.values()))
    unit_of_node = _components(couplings, starts, total)

    why: dict[int, str] = {}
    for place, indices, reason in couplings.blocked:
        for unit in unit_of_node[starts[place] + np.asarray(indices, dtype=np.int64)].tolist():
            why.setdefault(unit, reason)

    places = list(starts)
    order = np.argsort(unit_of_node, kind="stable")  # the nodes of a unit side by side, by place and index
    ends = np.flatnonzero(np.diff(unit_of_node[order], append=-1)) + 1
    alike: dict[tuple[tuple[int, int], ...], list[NDArray[np.int64]]] = {}
    not_cut: dict[str, str] = {}
    for members in np.split(order, ends[:-1]):
        owners, counts = np.unique(place_of_node[members], return_counts=True)
        kinds = [places[owner][1] for owner in owners]
        if reason := why.get(int(unit_of_node[members[0]]), ""):
            for owner in owners:
                if places[owner][1] in MAKERS:
                    not_cut.setdefault(places[owner][0], reason)
        elif any(kind in MAKERS for kind in kinds):  # otherwise they are the inputs of the model
            alike.setdefault(tuple(zip(owners.tolist(), counts.tolist(), strict=True)), []).append(members)
    groups = []
    for signature, units in alike.items():
        table, column, group = np.stack(units), 0, []
        for owner, count in signature:
            layer, kind = places[owner]
            group.append(Member(layer, kind, table[:, column : column + count] - starts[layer, kind]))
            column += count
        groups.append(ChannelGroup(tuple(group)))
    return groups, not_cut


def _components(couplings: Couplings, starts: dict[Place, int], total: int) -> NDArray[np.int64]:
    """For each channel the number of the unit that it belongs to."""
    left = [starts[place] + index for place, indices, *_ in couplings.pairs for index in indices]
    right = [starts[place] + index for *_, place, indices in couplings.pairs for index in indices]
    edges = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(total, total))
    labels: NDArray[np.int64] = connected_components(edges, directed=False)[1].astype(np.int64)
    return labels


def plan_of(groups: Sequence[ChannelGroup], kept: Sequence[NDArray[np.bool_]], sizes: dict[Place, int]) -> list[Cut]:
    """The steps that cut all units but those kept.

    Args:
        groups: Some groups of a model.
        kept: For each of them (units,), True where a unit stays.
        sizes: As `all_places` gives them.
    """
    removed: dict[Place, NDArray[np.bool_]] = {}
    for group, keep in zip(groups, kept, strict=True):
        for member in group.members if not keep.all() else ():
            place = member.layer, member.kind
            gone = removed.setdefault(place, np.zeros(sizes[place], dtype=bool))
            gone[member.indices[~keep].ravel()] = True
    # Heads first: an attention module is known as one by layers that fit its number of heads. Inputs before
    # outputs: a convolution that has one group left is no longer cut by groups.
    turn = {"heads": 0, "inputs": 1}
    return [
        Cut(layer=layer, kind=kind, size=len(gone), kept=tuple(np.flatnonzero(~gone).tolist()))
        for (layer, kind), gone in sorted(removed.items(), key=lambda item: turn.get(item[0][1], 2))
    ]


def layers_with(groups: Collection[ChannelGroup]) -> set[str]:
    """Names of all layers that produce channels of these groups."""
    return {member.layer for group in groups for member in group.makers}

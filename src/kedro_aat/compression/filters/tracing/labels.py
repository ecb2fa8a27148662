"""Labels of channels: which channel of which layer each entry of a tensor belongs to.

A *node* is one channel of one place, such as output 3 of a convolution. The tensors of a forward pass carry
*colorings*: integer tensors that name the node of each entry. Operations move colorings along, and unite the nodes
that meet in one entry, since these can only be cut together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

Nodes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Coloring:
    """The nodes of a tensor's entries.

    Attributes:
        nodes: int64, with as many dimensions as the tensor. Its size is 1 along dimensions where all entries belong to
            the same node; -1 for an entry that belongs to none. A tensor may have several colorings, which vary along
            different dimensions.
        is_zero: Whether the entries of masked nodes are zero.
        is_parameter: Whether the tensor is a parameter, or one that is rearranged, so that its entries can be masked.
        is_buffer: Whether all of it comes from buffers, which no training changes.
    """

    nodes: Tensor
    is_zero: bool
    is_parameter: bool = False
    is_buffer: bool = False

    @property
    def dims(self) -> list[int]:
        """Dimensions along which the nodes vary."""
        return [dim for dim, size in enumerate(self.nodes.shape) if size > 1]

    def padded(self, ndim: int) -> Coloring:
        """The same for a tensor that broadcasting gives more dimensions."""
        return replace(self, nodes=self.nodes.reshape([1] * (ndim - self.nodes.dim()) + list(self.nodes.shape)))


@dataclass(frozen=True, eq=False)
class Split:
    """Channels that an operation divides into pieces, so that what is left must be divisible in the same way.

    Attributes:
        nodes: Their nodes, with one axis per factor: (heads, channels of a head), (pieces, channels of a piece) ...
        fixed_axes: Axes whose length the operation fixes, such as the number of pieces.
        modules: Names of the modules whose forward pass was running, the innermost first.
        but_the_last: Nodes of all pieces but the last; None if the channels are not divided into pieces.
    """

    nodes: Nodes
    fixed_axes: tuple[int, ...]
    modules: tuple[str, ...]
    but_the_last: Nodes | None = None


@dataclass(frozen=True, eq=False)
class UnevenSplit:
    """Channels that an operation divides into pieces of different sizes.

    Attributes:
        nodes: Their nodes, along the last axis.
        edges: Where the pieces begin and end.
        modules: Names of the modules whose forward pass was running, the innermost first.
    """

    nodes: Nodes
    edges: tuple[int, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Length:
    """Channels along a dimension to which an operation gives a shape; a number in a module may be their number.

    Attributes:
        nodes: (channels,).
        modules: Names of the modules whose forward pass was running, the innermost first.
    """

    nodes: Nodes
    modules: tuple[str, ...]


@dataclass
class Dependencies:
    """What a forward pass says about nodes.

    Attributes:
        pairs: Two arrays of nodes of equal length: nodes that can only be cut together.
        blocked: Nodes that cannot be cut, and why.
        splits: Nodes that must stay divisible.
        uneven: Nodes that an operation divides unevenly.
        lengths: Channels to whose number an operation gives a shape.
        masked: Nodes of parameters that read what is not zero where it is masked, and so are masked themselves.
        unmasked: Nodes of parameters that are not masked, since zeros in them are no zeros in the weight.
        made: Nodes of parameters that products make channels of.
    """

    pairs: list[tuple[Nodes, Nodes]] = field(default_factory=list)
    blocked: list[tuple[Nodes, str]] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    uneven: list[UnevenSplit] = field(default_factory=list)
    lengths: list[Length] = field(default_factory=list)
    masked: list[Nodes] = field(default_factory=list)
    unmasked: list[Nodes] = field(default_factory=list)
    made: list[Nodes] = field(default_factory=list)

    def unite(self, left: Tensor, right: Tensor, reason: str) -> None:
        """Unites the nodes of two tensors of broadcastable shapes; a node that meets none cannot be cut.

        Args:
            left: Nodes, -1 where there is none.
            right: Nodes that they meet, one for one.
            reason: Why a node that meets none cannot be cut.
        """
        left, right = torch.broadcast_tensors(left, right)
        both = (left >= 0) & (right >= 0)
        self.pairs.append((left[both].numpy(), right[both].numpy()))
        self.block(torch.where(both, -1, torch.maximum(left, right)), reason)

    def unite_along(self, nodes: Tensor, dims: Iterable[int]) -> Tensor:
        """Unites the nodes along some dimensions.

        Returns:
            The first nodes along these dimensions, which keep size 1.
        """
        first = nodes
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        self.unite(nodes, first, "a part of the channels with which it is summed cannot be cut")
        return first

    def block(self, nodes: Tensor, reason: str) -> None:
        """Notes that nodes cannot be cut."""
        found = nodes[nodes >= 0]
        if found.numel():
            self.blocked.append((found.unique().numpy(), reason))

    def is_blocked(self, nodes: Tensor) -> bool:
        """Whether any of some nodes is known to be blocked itself."""
        wanted = nodes.flatten().numpy()
        return any(bool(np.isin(wanted, blocked).any()) for blocked, _ in self.blocked)

    def mask(self, nodes: Tensor) -> None:
        """Notes that nodes of a parameter must be masked."""
        self.masked.append(nodes[nodes >= 0].unique().numpy())


def compressed(nodes: Tensor) -> Tensor:
    """Nodes with size 1 along each dimension in which they do not vary."""
    for dim, size in enumerate(nodes.shape):
        if size > 1:
            first = nodes.narrow(dim, 0, 1)
            if nodes.stride(dim) == 0 or bool((nodes == first).all()):
                nodes = first
    return nodes


def merged(colorings: Sequence[Coloring], dependencies: Dependencies, reason: str) -> list[Coloring]:
    """Unites colorings of one tensor that vary along a common dimension, so that each dimension has at most one.

    Args:
        colorings: With equal numbers of dimensions.
        dependencies: Gains the pairs.
        reason: Why a node cannot be cut that meets none.

    Returns:
        Colorings that are zero where any of those united is, and whose nodes are those of the first.
    """
    result: list[Coloring] = []
    for coloring in colorings:
        current = coloring
        for other in [other for other in result if set(other.dims) & set(current.dims)]:
            result.remove(other)
            dependencies.unite(other.nodes, current.nodes, reason)
            left, right = torch.broadcast_tensors(other.nodes, current.nodes)
            nodes = torch.where(left >= 0, left, right)
            is_buffer = other.is_buffer and current.is_buffer
            current = Coloring(nodes, other.is_zero or current.is_zero, is_buffer=is_buffer)
        if current.dims:
            result.append(current)
    return result


def find_units(dependencies: Dependencies, num_nodes: int) -> Nodes:
    """Combines united nodes to units, such that each split stays divisible.

    Args:
        dependencies: Gains the pairs that the splits need.
        num_nodes: Number of all nodes.

    Returns:
        (nodes,) number of the unit to which each node belongs.
    """
    units = _components(dependencies.pairs, num_nodes)
    waiting = list(dependencies.splits)
    while waiting:
        unfit = [split for split in waiting if _axis_to_unite(split, units) is not None]
        if not unfit:
            break
        for split in unfit:
            axis = _axis_to_unite(split, units) or 0
            nodes = torch.from_numpy(np.moveaxis(split.nodes, axis, 0)).flatten(1)
            dependencies.unite(nodes, nodes[:, :1], "another part of what is split with it cannot be cut")
        units = _components(dependencies.pairs, num_nodes)
        waiting = [split for split in waiting if split not in unfit]  # a split is united once, so this ends
    return units


def _axis_to_unite(split: Split, units: Nodes) -> int | None:
    """The axis along which whole slices of a split shall be cut; None if units are such slices already."""
    numbers = np.where(split.nodes >= 0, units[split.nodes], -1)  # what belongs to no node stays
    axes = [axis for axis in range(numbers.ndim) if axis not in split.fixed_axes]
    for axis in axes:
        slices = np.moveaxis(numbers, axis, 0).reshape(numbers.shape[axis], -1)
        if (slices == slices[:, :1]).all():
            return None
    # Longer axes give more and smaller units.
    return max(axes, key=lambda axis: numbers.shape[axis])


def _components(pairs: Sequence[tuple[Nodes, Nodes]], num_nodes: int) -> Nodes:
    left = np.concatenate([np.empty(0, np.int64), *(one for one, _ in pairs)])
    right = np.concatenate([np.empty(0, np.int64), *(other for _, other in pairs)])
    edges = coo_array((np.ones(len(left), dtype=np.int64), (left, right)), shape=(num_nodes, num_nodes))
    labels: Nodes = connected_components(edges, directed=False)[1].astype(np.int64)
    return labels

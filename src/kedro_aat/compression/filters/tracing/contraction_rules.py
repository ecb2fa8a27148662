"""How products carry labels of channels along: what is summed over is united, and what is made keeps its labels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kedro_aat.compression.filters.tracing.labels import Coloring

if TYPE_CHECKING:
    from kedro_aat.compression.filters.tracing.trace import Tracer

_UNCUT = "'{}' multiplies it with a tensor of fixed size"
_NOT_ZERO = "'{}' multiplies it with another tensor, and neither is zero where it is masked"


def multiply(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Matrix products, (..., T, K) by (..., K, S)."""
    result = func(*args, **kwargs)
    tracer.put(result, _product(tracer, args[0], args[1]))
    return result


def add_multiplied(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A product to which a bias is added, as in linear layers."""
    bias, left, right = args[:3]
    result = func(*args, **kwargs)
    labeled = _product(tracer, left, right)
    added = [each.padded(result.dim()) for each in tracer.labels(bias)]
    biased = {dim for each in added for dim in each.dims}
    # A column stays zero only if what is added is zero, too.
    labeled = [
        replace(each, is_zero=each.is_zero and (bool(biased & set(each.dims)) or not bool(bias.ne(0).any())))
        for each in labeled
    ]
    tracer.put(result, [*labeled, *added])
    return result


def _product(tracer: Tracer, left: Tensor, right: Tensor) -> list[Coloring]:
    """Labels of a product of two matrices, or of two batches of matrices."""
    is_vector = right.dim() == 1
    labels = [[each.nodes.unsqueeze(-1) if is_vector else each.nodes for each in tracer.labels(right)]]
    rights = [replace(each, nodes=nodes) for each, nodes in zip(tracer.labels(right), labels[0], strict=True)]
    lefts = [replace(each, nodes=each.nodes[None] if left.dim() == 1 else each.nodes) for each in tracer.labels(left)]
    ndim = max(left.dim() + (left.dim() == 1), 2)
    row, column = ndim - 2, ndim - 1
    # Both with the summed dimension last: (..., T, 1, K) and (..., 1, S, K).
    summed_left = [each for each in lefts if column in each.dims]
    summed_right = [each for each in rights if row in each.dims]
    kept: list[Coloring] = [each for each in lefts if column not in each.dims]
    kept += [each for each in rights if row not in each.dims]
    for one, other in zip(summed_left, summed_right, strict=False):
        kept += _sum_over(tracer, one, other, row, column)
    for alone, dim in ((summed_left[len(summed_right) :], column), (summed_right[len(summed_left) :], row)):
        for each in alone:
            left_over = tracer.without(each, [dim], _UNCUT.format(tracer.layer))
            kept += [left_over] if left_over else []
    if is_vector:
        kept = [replace(each, nodes=each.nodes.squeeze(-1)) for each in kept]
    if left.dim() == 1:
        kept = [replace(each, nodes=each.nodes.squeeze(0)) for each in kept]
    tracer.found.made += [each.nodes[each.nodes >= 0].unique().numpy() for each in kept if each.is_parameter]
    return [replace(each, is_parameter=False) for each in kept]


def _sum_over(tracer: Tracer, one: Coloring, other: Coloring, row: int, column: int) -> list[Coloring]:
    """Unites what is summed over; returns the labels of what is left, such as those of heads."""
    is_shared = len(one.dims) == 1, len(other.dims) == 1
    if is_shared in ((True, False), (False, True)):  # as keys that all heads share, which stay whole
        shared, own, dim = (one, other, row) if is_shared[0] else (other, one, column)
        tracer.found.block(shared.nodes, f"{tracer.where} multiplies it with all heads")
        return [replace(own, nodes=tracer.found.unite_along(own.nodes, [dim]))]
    left, right = one.nodes.unsqueeze(row + 1), other.nodes.transpose(row, column).unsqueeze(row)
    tracer.found.unite(left, right, _UNCUT.format(tracer.layer))
    if not (one.is_zero or other.is_zero):
        readers = [each for each in (one, other) if each.is_parameter]
        if readers:
            tracer.found.mask(readers[0].nodes)
        else:
            tracer.found.block(one.nodes, _NOT_ZERO.format(tracer.layer))
    result = []
    for coloring, dim in ((one, column), (other, row)):
        if set(coloring.dims) - {dim}:  # a head: its channels are cut together
            result.append(Coloring(tracer.found.unite_along(coloring.nodes, [dim]), is_zero=True))
    return result


def convolve(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Convolutions, transposed and grouped ones included."""
    source, weight, bias = args[:3]
    is_transposed, groups = args[6], args[8]
    result = func(*args, **kwargs)
    shape = [1, -1] + [1] * (result.dim() - 2)
    out_dim, in_dim = (1, 0) if is_transposed and groups == 1 else (0, 1)
    made = [each for each in tracer.labels(weight) if each.dims == [out_dim]]
    read = [each for each in tracer.labels(weight) if each.dims == [in_dim]]
    for coloring in tracer.labels(weight):
        if coloring.dims not in ([out_dim], [in_dim]):
            tracer.found.block(coloring.nodes, f"{tracer.where} convolves with it in an unusual way")
    tracer.found.made += [each.nodes.flatten().numpy() for each in made if each.is_parameter]
    labeled = [Coloring(each.nodes.transpose(out_dim, 1).reshape(shape), each.is_zero) for each in made]
    added = [] if bias is None else [Coloring(each.nodes.view(shape), each.is_zero) for each in tracer.labels(bias)]
    if bias is not None and not added:
        labeled = [replace(each, is_zero=False) for each in labeled]
    is_pointwise = all(size == 1 for size in [*weight.shape[2:], *args[3]]) and not any(args[4])
    inputs = []
    for coloring in tracer.labels(source):
        if 1 not in coloring.dims and is_pointwise:  # another kind of channels, which lie where images have pixels
            labeled.append(replace(coloring, is_zero=coloring.is_zero and (bias is None or not bool(bias.any()))))
            continue
        others = [dim for dim in coloring.dims if dim != 1]
        left = tracer.without(coloring, others, f"{tracer.where} convolves over it and other channels")
        inputs += [left] if left else []
    outputs = [each for each in (*labeled, *added) if 1 in each.dims]
    if groups == 1:
        _read(tracer, inputs, read)
    else:
        _couple_groups(tracer, [*inputs, *tracer.inputs_of_layer(shape)], outputs, groups, read)
        if not inputs:  # each output of a depthwise convolution belongs to an input
            for each in (*outputs, *read) if groups == source.shape[1] else read:
                tracer.found.block(each.nodes, _UNCUT.format(tracer.layer))
    tracer.put(result, [*labeled, *added])
    return result


def _read(tracer: Tracer, inputs: list[Coloring], read: list[Coloring]) -> None:
    """Unites the channels that a convolution without groups reads with the columns of its weight."""
    if not (inputs and read):
        for each in (*inputs, *read):
            tracer.found.block(each.nodes, _UNCUT.format(tracer.layer))
        return
    for one in inputs:
        tracer.found.unite(one.nodes.flatten(), read[0].nodes.flatten(), _UNCUT.format(tracer.layer))
        if not one.is_zero and read[0].is_parameter:
            tracer.found.mask(read[0].nodes)
        elif not one.is_zero and not read[0].is_zero:
            tracer.found.block(one.nodes, _NOT_ZERO.format(tracer.layer))


def _couple_groups(
    tracer: Tracer, inputs: list[Coloring], outputs: list[Coloring], groups: int, read: list[Coloring]
) -> None:
    """Unites the channels of a grouped convolution: whole groups, or the same channel of each group if these are few.

    Args:
        tracer: Gains the pairs.
        inputs: Labels of what it reads; those of its own place are among them.
        outputs: Labels of what it makes.
        groups: Number of groups.
        read: Labels of the weight's second dimension, which all groups share.
    """
    rows = [[each.nodes.flatten().view(groups, -1) for each in colorings] for colorings in (inputs, outputs)]
    is_narrow = min((nodes.shape[1] for both in rows for nodes in both), default=1) < groups
    reason = _UNCUT.format(tracer.layer)
    if is_narrow or not read:
        heads = [tracer.found.unite_along(nodes, [1]) for both in rows for nodes in both]
        for one, other in itertools.pairwise(heads):
            tracer.found.unite(one, other, reason)
        for each in read:
            tracer.found.block(each.nodes, "its groups are cut as a whole")
        return
    for both in rows:
        columns = [tracer.found.unite_along(nodes, [0]) for nodes in both]
        for one, other in itertools.pairwise(columns):
            tracer.found.unite(one, other, reason)
    for each, nodes in itertools.product(inputs, rows[0][:1]):
        tracer.found.unite(nodes[:1].flatten(), read[0].nodes.flatten(), reason)
        if not each.is_zero:
            tracer.found.mask(read[0].nodes)


def embed(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows of a table, or sums of rows."""
    result = func(*args, **kwargs)
    out = result[0] if isinstance(result, tuple) else result
    labeled = []
    for coloring in tracer.labels(args[0]):
        if coloring.dims == [1]:
            labeled.append(Coloring(coloring.nodes.view([1] * (out.dim() - 1) + [-1]), coloring.is_zero))
        else:
            tracer.found.block(coloring.nodes, f"{tracer.where} looks up rows of it")
    tracer.put(out, labeled)
    return result


def normalize_weight(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Weight normalization: the direction's rows go with their lengths; what it reads is masked, too."""
    direction, length = args[:2]
    result = func(*args, **kwargs)
    labeled = [replace(each, is_parameter=False) for each in tracer.labels(length)]
    for coloring in tracer.labels(direction):
        is_row = any(set(coloring.dims) & set(each.dims) for each in labeled)
        if is_row:  # the norm of a row of zeros would divide zero by zero
            tracer.found.unmasked.append(coloring.nodes.flatten().numpy())
        else:
            tracer.found.mask(coloring.nodes)
        labeled.append(replace(coloring, is_zero=True, is_parameter=False))
    tracer.put(result[0], labeled)
    return result

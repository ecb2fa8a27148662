"""How products carry labels of channels along: what is summed over is united, and what is made keeps its labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kedro_aat.compression.filters.labels import Coloring

if TYPE_CHECKING:
    from kedro_aat.compression.filters.trace import Tracer

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
    for each in summed_left if not summed_right else summed_right if not summed_left else []:
        tracer.found.block(each.nodes, _UNCUT.format(tracer.layer))
    if is_vector:
        kept = [replace(each, nodes=each.nodes.squeeze(-1)) for each in kept]
    if left.dim() == 1:
        kept = [replace(each, nodes=each.nodes.squeeze(0)) for each in kept]
    return [replace(each, is_parameter=False) for each in kept]


def _sum_over(tracer: Tracer, one: Coloring, other: Coloring, row: int, column: int) -> list[Coloring]:
    """Unites what is summed over; returns the labels of what is left, such as those of heads."""
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
    """Convolutions, transposed ones included; grouped ones are cut by whole groups."""
    source, weight, bias = args[:3]
    is_transposed, groups = args[6], args[8]
    result = func(*args, **kwargs)
    shape = [1, -1] + [1] * (result.dim() - 2)
    out_dim, in_dim = (1, 0) if is_transposed else (0, 1)
    made = [each for each in tracer.labels(weight) if each.dims == [out_dim]]
    read = [each for each in tracer.labels(weight) if each.dims == [in_dim]]
    labeled = [Coloring(each.nodes.transpose(out_dim, 1).reshape(shape), each.is_zero) for each in made]
    if isinstance(bias, Tensor):
        labeled += [Coloring(each.nodes.view(shape), each.is_zero) for each in tracer.labels(bias)]
        if not tracer.labels(bias):
            labeled = [replace(each, is_zero=False) for each in labeled]
    for coloring in tracer.labels(weight):
        if coloring not in made and coloring not in read:
            tracer.found.block(coloring.nodes, f"'{tracer.layer}' convolves with it in an unusual way")
    for coloring in tracer.labels(source):
        if coloring.dims != [1]:
            tracer.found.block(coloring.nodes, f"'{tracer.layer}' convolves over it and other channels")
    inputs = [each for each in tracer.labels(source) if each.dims == [1]]
    if groups == 1:
        flat = [replace(each, nodes=each.nodes.flatten()) for each in inputs]
        readers = [replace(each, nodes=each.nodes.flatten()) for each in read]
        for one, other in zip(flat, readers, strict=False):
            tracer.found.unite(one.nodes, other.nodes, _UNCUT.format(tracer.layer))
            if not one.is_zero and other.is_parameter:
                tracer.found.mask(other.nodes)
            elif not one.is_zero and not other.is_zero:
                tracer.found.block(one.nodes, _NOT_ZERO.format(tracer.layer))
        for each in (flat if not readers else readers) if len(flat) != len(readers) else []:
            tracer.found.block(each.nodes, _UNCUT.format(tracer.layer))
    else:
        _couple_groups(tracer, [*inputs, *tracer.inputs_of_layer(shape)], labeled, groups, source, weight)
    tracer.put(result, labeled)
    return result


def _couple_groups(
    tracer: Tracer, inputs: list[Coloring], outputs: list[Coloring], groups: int, source: Tensor, weight: Tensor
) -> None:
    """Unites the channels of each group, inputs and outputs."""
    heads = []
    for coloring, size in [*((each, source.shape[1]) for each in inputs), *((each, 0) for each in outputs)]:
        nodes = coloring.nodes.flatten().view(groups, -1)
        heads.append(tracer.found.unite_along(nodes, [1]))
        assert size in (0, nodes.numel())
    for one, other in zip(heads, heads[1:], strict=False):
        tracer.found.unite(one, other, _UNCUT.format(tracer.layer))
    if not inputs or not tracer.labels(source):
        for coloring in outputs:
            tracer.found.block(coloring.nodes, _UNCUT.format(tracer.layer))


def embed(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows of a table, or sums of rows."""
    result = func(*args, **kwargs)
    out = result[0] if isinstance(result, tuple) else result
    labeled = []
    for coloring in tracer.labels(args[0]):
        if coloring.dims == [1]:
            labeled.append(Coloring(coloring.nodes.view([1] * (out.dim() - 1) + [-1]), coloring.is_zero))
        else:
            tracer.found.block(coloring.nodes, f"'{tracer.layer}' looks up rows of it")
    tracer.put(out, labeled)
    return result


def normalize_weight(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Weight normalization: the direction's rows go with their lengths; what it reads is masked, too."""
    direction, length = args[:2]
    result = func(*args, **kwargs)
    labeled = [replace(each, is_parameter=False) for each in tracer.labels(length)]
    for coloring in tracer.labels(direction):
        is_row = any(set(coloring.dims) & set(each.dims) for each in labeled)
        if not is_row:
            tracer.found.mask(coloring.nodes)
        labeled.append(replace(coloring, is_zero=True, is_parameter=False))
    tracer.put(result[0], labeled)
    return result


def no_labels(nodes: Tensor) -> Tensor:
    """Labels of entries that belong to no node."""
    return torch.full_like(nodes, -1)

"""How operations that rearrange entries carry labels along: the same operation is applied to the labels."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kedro_aat.compression.filters.tracing.labels import Coloring, compressed
from kedro_aat.model_inputs import tensors_in

if TYPE_CHECKING:
    from kedro_aat.compression.filters.tracing.trace import Tracer

_RESHAPING = {"view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten"}
_DIVIDING = {"split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk"}
REARRANGING = {
    *_RESHAPING,
    *_DIVIDING,
    *("permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "slice", "select", "unbind", "alias", "detach"),
    *("flip", "roll", "repeat", "tile", "unfold", "channel_shuffle"),
    *("native_channel_shuffle", "index", "index_select", "diagonal", "narrow", "movedim", "transpose_", "squeeze_"),
    *("unsqueeze_", "t_", "detach_", "view_copy", "permute_copy", "expand_copy", "rot90"),
}


def rearrange(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Views, copies of parts, and permutations."""
    source: Tensor = args[0]
    name = func._schema.name.removeprefix("aten::")
    colorings = tracer.labels(source)
    shape = source.shape  # an operation in place changes it
    result = func(*args, **kwargs)
    outs = list(tensors_in(result))
    found: list[list[Coloring]] = [[] for _ in outs]
    for coloring in sorted(colorings, key=lambda each: each.dims):
        nodes = coloring.nodes.expand(shape)
        if name in _RESHAPING:
            parts = [nodes.reshape(outs[0].shape)]
        else:
            parts = list(tensors_in(func(nodes.clone() if name.endswith("_") else nodes, *args[1:], **kwargs)))
        parts = [compressed(part) for part in parts]
        if name in _RESHAPING or name in _DIVIDING or name in ("slice", "narrow"):
            for part in (coloring.nodes, *parts):
                tracer.note_lengths(part)
        _note_splits(tracer, name, coloring, parts, args)
        for labeled, part in zip(found, parts, strict=True):
            labeled.append(replace(coloring, nodes=part))
    if name in ("select", "unbind"):
        dim = _argument(name, args) % source.dim()
        for alone, out in itertools.product((each for each in colorings if each.dims == [dim]), outs):
            # Blocked only if something reads it: some models take a channel for the shape of the others.
            tracer.spoil(out, alone.nodes, f"{tracer.where} takes a single channel of it")
    for out, labeled in zip(outs, found, strict=True):
        tracer.put(out, _apart(tracer, labeled) if name in _RESHAPING else labeled)
    tracer.follow(result, (source,), is_view=func.is_view)
    return result


def _apart(tracer: Tracer, colorings: list[Coloring]) -> list[Coloring]:
    """Colorings of different dimensions that a reshape lays into one: only the first free one can still be cut."""
    kept: list[Coloring] = []
    for each in sorted(colorings, key=lambda each: tracer.found.is_blocked(each.nodes)):
        if any(set(each.dims) & set(other.dims) for other in kept):
            tracer.found.block(each.nodes, f"{tracer.where} lays it and other channels into one dimension")
        else:
            kept.append(each)
    return kept


def _note_splits(tracer: Tracer, name: str, before: Coloring, parts: list[Tensor], args: tuple[Any, ...]) -> None:
    """Notes where channels must stay divisible."""
    if name == "channel_shuffle":
        tracer.split(_along(before)[0].view(args[1], -1), [0])
        return
    if name in _RESHAPING or name == "unfold":
        sizes = [size for size in parts[0].shape if size > 1]
        known = [before.nodes.shape[dim] for dim in before.dims]
        if len(sizes) > max(1, len(known)) or (1 < len(sizes) == len(known) and sizes != known):
            tracer.split(parts[0].reshape(sizes))
        return
    if name in _DIVIDING or name in ("slice", "narrow", "select", "unbind"):
        dim = _argument(name, args)
        dim = dim % before.nodes.dim()
        if dim not in before.dims:
            return
        if name in ("select", "unbind"):
            return  # `rearrange` saw to it
        if name in _DIVIDING:
            sizes = [part.shape[dim] for part in parts]
            ends = [sum(sizes[:number]) for number in range(1, len(sizes))]
            tracer.divide(before.nodes.movedim(dim, -1), ends)
            return
        start, end, step = ([*args[2:5], None, None, None])[:3]
        length = before.nodes.shape[dim]
        first, last, stride = slice(start, end if end is None else min(end, length), step or 1).indices(length)
        if stride > 1:
            rest = length // stride * stride
            tracer.split(_along(before, dim)[..., :rest].unflatten(-1, (-1, stride)).squeeze(0), [-1])
        else:
            tracer.divide(before.nodes.movedim(dim, -1), [end for end in (first, last) if 0 < end < length])


def _along(coloring: Coloring, dim: int | None = None) -> Tensor:
    """Nodes with a dimension last and those of size 1 left out, in front of which one of size 1 is."""
    nodes = coloring.nodes.movedim(coloring.dims[-1] if dim is None else dim, -1)
    return nodes.reshape([1, *(size for size in nodes.shape if size > 1)])


def _argument(name: str, args: tuple[Any, ...]) -> int:
    """The dimension that an operation divides."""
    position = 1 if name in ("select", "unbind", "slice", "narrow") else 2
    return int(args[position]) if len(args) > position else 0


def concatenate(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Tensors side by side: channels along that dimension stay apart, those along others are united."""
    parts: list[Tensor] = list(args[0])
    result = func(*args, **kwargs)
    parts = [part for part in parts if part.dim() == result.dim()]  # empty vectors may be among them
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
    tracer.put(result, joined(tracer, parts, dim))
    return result


def joined(tracer: Tracer, parts: list[Tensor], dim: int) -> list[Coloring]:
    """Labels of tensors side by side along a dimension.

    Args:
        tracer: Knows the labels of the tensors.
        parts: Tensors with equally many dimensions.
        dim: The dimension, at least 0.
    """
    fixed: set[int] = set()
    for part in parts:
        labeled = {own for each in tracer.labels(part) for own in each.dims}
        if not tracer.is_flexible(part):
            fixed |= {own for own, size in enumerate(part.shape) if size > 1 and own not in labeled and own != dim}
    # Of each part, the coloring that varies along the dimension, or along others together with such a coloring.
    together = {own for part in parts for each in tracer.labels(part) if dim in each.dims for own in each.dims} - {dim}
    along = [next((each for each in tracer.labels(part) if {dim, *together} & {*each.dims}), None) for part in parts]
    if not any(each is not None and dim in each.dims for each in along):
        along = [None for _ in parts]
    reason = f"{tracer.where} joins it with a tensor of fixed size"
    across = [
        left
        for part, own in zip(parts, along, strict=True)
        for each in tracer.labels(part)
        if each is not own and (left := tracer.without(each, fixed, reason))
    ]
    is_zero_across = all(each.is_zero for each in across) and len(across) >= len(parts)
    across = [replace(each, is_zero=is_zero_across) for each in across]
    if not any(along):
        return across
    ndim = parts[0].dim()
    shape = [max(each.nodes.shape[own] for each in along if each) for own in range(ndim)]
    pieces = []
    for part, own_coloring in zip(parts, along, strict=True):
        shape[dim] = part.shape[dim]
        nodes = torch.full([1] * ndim, -1) if own_coloring is None else own_coloring.nodes
        pieces.append(nodes.expand(shape))
    known = [each for each in along if each is not None]
    return [
        *across,
        Coloring(
            torch.cat(pieces, dim),
            is_zero=all(each.is_zero for each in known),
            is_parameter=len(known) == len(parts) and all(each.is_parameter for each in known),
            is_buffer=len(known) == len(parts) and all(each.is_buffer for each in known),
        ),
    ]


def stack(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Tensors along a new dimension."""
    result = func(*args, **kwargs)
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
    raised = []
    for part in args[0]:
        more = part.unsqueeze(dim)
        tracer.put(more, [replace(each, nodes=each.nodes.unsqueeze(dim)) for each in tracer.labels(part)])
        raised.append(more)
    tracer.put(result, joined(tracer, raised, dim))
    return result


def gate(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """GLU: the product of one half and the sigmoid of the other."""
    source: Tensor = args[0]
    dim = (args[1] if len(args) > 1 else -1) % source.dim()
    result = func(*args, **kwargs)
    labeled = []
    for each in tracer.labels(source):
        if dim in each.dims:
            first, second = each.nodes.chunk(2, dim)
            tracer.found.unite(first, second, f"{tracer.where} splits it into halves")
            labeled.append(Coloring(first, each.is_zero))
        else:
            labeled.append(Coloring(each.nodes, each.is_zero))
    tracer.put(result, labeled)
    return result


def shuffle_pixels(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Groups of channels become the pixels of one."""
    source, factor = args[0], args[1]
    result = func(*args, **kwargs)
    dim = source.dim() - 3
    labeled = []
    for each in tracer.labels(source):
        nodes = each.nodes
        if dim in each.dims:
            grouped = nodes.unflatten(dim, (-1, factor * factor))
            nodes = tracer.found.unite_along(grouped, [dim + 1]).squeeze(dim + 1)
        left = tracer.without(replace(each, nodes=nodes), (dim + 1, dim + 2), f"{tracer.where} shuffles its pixels")
        labeled += [left] if left else []
    tracer.put(result, labeled)
    return result


def unshuffle_pixels(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The pixels of each channel become channels."""
    source, factor = args[0], args[1]
    result = func(*args, **kwargs)
    dim = source.dim() - 3
    labeled = []
    for each in tracer.labels(source):
        left = tracer.without(each, (dim + 1, dim + 2), f"{tracer.where} shuffles its pixels")
        if left and dim in left.dims:
            left = replace(left, nodes=left.nodes.repeat_interleave(factor * factor, dim))
        labeled += [left] if left else []
    tracer.put(result, labeled)
    return result


def unfold_pixels(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The pixels under a window become channels (`F.unfold`)."""
    source, window = args[0], args[1]
    result = func(*args, **kwargs)
    dim = source.dim() - 3
    labeled = []
    for each in tracer.labels(source):
        left = tracer.without(each, (dim + 1, dim + 2), f"{tracer.where} unfolds its pixels")
        if left:
            nodes = left.nodes.repeat_interleave(math.prod(window), dim) if dim in left.dims else left.nodes
            labeled.append(Coloring(nodes.flatten(dim + 1), left.is_zero))
    tracer.put(result, labeled)
    return result


def fold_pixels(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Channels become the pixels under a window (`F.fold`)."""
    source, window = args[0], args[2]
    result = func(*args, **kwargs)
    dim = source.dim() - 2
    labeled = []
    for each in tracer.labels(source):
        left = tracer.without(each, (dim + 1,), f"{tracer.where} folds its pixels")
        if left:
            nodes = left.nodes
            if dim in left.dims:
                grouped = nodes.unflatten(dim, (-1, math.prod(window)))
                nodes = tracer.found.unite_along(grouped, [dim + 1]).squeeze(dim + 1)
            labeled.append(Coloring(nodes.unsqueeze(-1), left.is_zero))
    tracer.put(result, labeled)
    return result


def stride_again(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same numbers in another order of memory, as pooling returns them."""
    source: Tensor = args[0]
    if list(args[1]) == list(source.shape):
        return func(*args, **kwargs)
    tracer.block(source, f"{tracer.where} reads it as another shape")
    result = func(*args, **kwargs)
    tracer.put(result, ())
    return result


def put(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Writes rows into a tensor, such as the embedding of masked positions."""
    source, indices, values = args[:3]
    last = source.dim() - 1
    indexed = sum(max(1, index.dim() if index.dtype == torch.bool else 1) for index in indices if index is not None)
    reason = f"{tracer.where} writes into a part of it"
    kept = [left for each in tracer.labels(source) if (left := tracer.without(each, range(indexed), reason))]
    written = []
    for each in tracer.labels(values):
        if each.dims == [values.dim() - 1] and values.dim() and source.shape[last] == values.shape[-1]:
            nodes = each.nodes.flatten().view([1] * last + [-1])
            written.append(replace(each, nodes=nodes, is_parameter=False))
        else:
            tracer.found.block(each.nodes, reason)
    is_zero = all(each.is_zero for each in (*kept, *written))
    if kept and not written and values.numel() > 1:
        for each in kept:
            tracer.found.block(each.nodes, f"{tracer.where} writes a tensor of fixed size into it")
    result = func(*args, **kwargs)
    tracer.put(result, [replace(each, is_zero=is_zero) for each in (*kept, *written)])
    return result


def pad(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Constants around a tensor, which belong to no channel."""
    source: Tensor = args[0]
    widths = args[1]
    value = args[2] if len(args) > 2 else 0
    result = func(*args, **kwargs)
    padded = {source.dim() - 1 - index // 2 for index, width in enumerate(widths) if width}
    labeled = []
    for each in tracer.labels(source):
        nodes = each.nodes
        if padded & set(each.dims):
            around = [width if source.dim() - 1 - index // 2 in each.dims else 0 for index, width in enumerate(widths)]
            nodes = torch.nn.functional.pad(nodes, around, value=-1)
        labeled.append(Coloring(nodes, each.is_zero and (value == 0 or not padded - set(each.dims))))
    tracer.put(result, labeled)
    tracer.follow(result, (source,), is_view=False)
    return result

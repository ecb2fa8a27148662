"""Which axes of a model's inputs may have any size, what they are called, and inputs of another size to check it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

BATCH = "batch"
_LEAST_SIZE = 2  # torch.export treats an axis of size 0 or 1 as a constant

Axes = dict[str, tuple[str | int, ...]]  # name of an input -> size of each axis: a number, or the name of a symbol


def shapes_to_trace(
    inputs: Mapping[str, Tensor],
    batched: Iterable[str],
    free: Mapping[str, Iterable[int]],
    kind: Any,
    most: int | None = None,
) -> list[dict[int, Any]]:
    """What `torch.export` is told about the axes of each input.

    Args:
        inputs: Name -> tensor.
        batched: Names of the inputs whose first axis is the batch.
        free: Name -> further axes that may have any size.
        kind: `Dim.AUTO` for axes that may turn out to be fixed, `Dim.DYNAMIC` for those that must not.
        most: Largest batch size; None for any.
    """
    batch = kind if kind is Dim.AUTO else Dim(BATCH, max=most)
    return [
        ({0: batch} if name in batched else {})
        | {axis: kind for axis in free.get(name, ()) if not (axis == 0 and name in batched)}
        for name in inputs
    ]


def all_axes(inputs: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """All axes that can be traced with any size."""
    return {
        name: [axis for axis, size in enumerate(tensor.shape) if size >= _LEAST_SIZE] for name, tensor in inputs.items()
    }


def axes_of(program: ExportedProgram, names: Iterable[str]) -> Axes:
    """The size of each axis of a program's inputs, a symbol where it may have any size."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    tensors = (nodes[given].meta["val"] for given in program.graph_signature.user_inputs if isinstance(given, str))
    return {
        name: tuple(int(size) if isinstance(size, int) or str(size).isdecimal() else str(size) for size in tensor.shape)
        for name, tensor in zip(names, tensors, strict=True)
    }


def free_symbols(axes: Axes, batched: Iterable[str]) -> dict[str, dict[str, list[int]]]:
    """Symbol -> input -> axes, for all symbols but the batch; a size such as `2*s1` belongs to no symbol alone."""
    batch = batch_symbol(axes, batched)
    found: dict[str, dict[str, list[int]]] = {}
    for name, sizes in axes.items():
        for axis, size in enumerate(sizes):
            if isinstance(size, str) and size.isidentifier() and size != batch:
                found.setdefault(size, {}).setdefault(name, []).append(axis)
    return found


def batch_symbol(axes: Axes, batched: Iterable[str]) -> str | int | None:
    """The symbol of the batch; a number if the model fixes it, None if no input has a batch."""
    return next((axes[name][0] for name in batched), None)


def axis_names(
    axes: Axes,
    batched: Iterable[str],
    inputs: Mapping[str, Tensor],
    asked: Mapping[str, Mapping[int, str | None]],
) -> dict[str, str]:
    """Symbol -> name in the file: what was asked for, `batch`, or what such an axis usually is.

    Args:
        axes: From `axes_of`.
        batched: Names of the inputs whose first axis is the batch.
        inputs: Name -> tensor.
        asked: Name of an input -> axis -> name, or None for a usual one.
    """
    names: dict[str, str] = {}
    batch = batch_symbol(axes, batched)
    if isinstance(batch, str):
        names[batch] = BATCH
    for name, sizes in asked.items():
        for axis, given in sizes.items():
            symbol = axes[name][axis]
            if given is not None and isinstance(symbol, str):
                names[symbol] = given
    for symbol, places in free_symbols(axes, batched).items():
        name, (axis, *_) = next(iter(places.items()))
        usual = _usual_name(inputs[name].dim(), axis)
        names.setdefault(symbol, usual if usual not in names.values() else f"{name}_{axis}")
    return names


def other_sizes(size: int) -> Iterator[int]:
    """Sizes at which an axis is tried: twice of it, since strides and patches still fit, or else half of it.

    Half of it comes second because a map of one pixel is a case of its own for torch.
    """
    yield 2 * size
    if size // 2 >= _LEAST_SIZE:
        yield size // 2


def resized(inputs: Mapping[str, Tensor], places: Mapping[str, Iterable[int]], size: int) -> dict[str, Tensor]:
    """The inputs with some axes cut or repeated to a size.

    Args:
        inputs: Name -> tensor.
        places: Name -> the axes to change.
        size: Their new size, at least 1.
    """
    changed = dict(inputs)
    for name, axes in places.items():
        for axis in axes:
            tensor = changed[name]
            changed[name] = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
    return changed


def _usual_name(num_axes: int, axis: int) -> str:
    if num_axes >= 4 and axis >= num_axes - 3 and axis > 1:
        return ("depth", "height", "width")[axis - num_axes]
    return "length" if num_axes in (2, 3) else f"axis_{axis}"

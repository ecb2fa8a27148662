"""What Kedro-Viz shows of data sets: of files with tensors the names and shapes, read without the tensors themselves.

Kedro-Viz tells by the *name* of the annotated return type how a preview is shown, so `| None` cannot stand there.
A preview is None where nothing has been written yet; it is left out then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview

Tensors = Mapping[str, tuple[Sequence[int], str]]  # name -> shape, type


def table(columns: list[str], rows: Iterable[Sequence[Any]]) -> TablePreview:
    """A table as Kedro-Viz takes it."""
    data = [list(row) for row in rows]
    return {"columns": columns, "index": list(range(len(data))), "data": data}


def tensors_in(path: Path) -> Tensors:
    """Shape and type of each tensor in a safetensors file; only its header is read."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}


def tensor_table(tensors: Tensors, nrows: int) -> TablePreview:
    """A row for each tensor."""
    rows = [(name, shape_text(shape), kind) for name, (shape, kind) in sorted(tensors.items())]
    return table(["tensor", "shape", "type"], rows[:nrows])


def layer_table(tensors: Tensors, nrows: int) -> TablePreview:
    """A row for each layer of a state dict, in natural order, with the largest of its tensors."""
    layers: dict[str, dict[str, tuple[Sequence[int], str]]] = {}
    for name, described in tensors.items():
        layer, _, own = name.rpartition(".")
        layers.setdefault(layer, {})[own] = described
    rows = []
    for layer in sorted(layers, key=_natural):
        sizes = {own: math.prod(shape) for own, (shape, _) in layers[layer].items()}
        shape, kind = layers[layer][max(sizes, key=lambda own: (sizes[own], own))]
        rows.append((layer, shape_text(shape), kind, sum(sizes.values())))
    return table(["layer", "largest tensor", "type", "numbers"], rows[:nrows])


def shape_text(shape: Iterable[int | str]) -> str:
    """`24 x 1 x 3 x 3`; a scalar has no extent."""
    return " x ".join(map(str, shape)) or "scalar"


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Orders `layer.10` behind `layer.9`."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]

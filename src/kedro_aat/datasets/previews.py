"""Previews of datasets in Kedro-Viz. Files of tensors show names and shapes, which are read without the tensors.

Kedro-Viz chooses how to show a preview by the *name* of the annotated return type, so `| None` cannot be part of it.
A preview is None if nothing has been written yet; Kedro-Viz then shows none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kedro_aat.errors import DataError

if TYPE_CHECKING:
    from kedro_datasets._typing import TablePreview

_MAX_BYTES = 64 << 20  # of a file to show
TensorInfo = Mapping[str, tuple[Sequence[int], str]]  # name -> shape, type


def require_small(path: object, num_bytes: int, limit: int = _MAX_BYTES) -> None:
    """Refuses to show what would fill the memory.

    Args:
        path: The file, for the message.
        num_bytes: Size of what will be read from it.
        limit: The largest size to read.

    Raises:
        DataError: It is larger.
    """
    if num_bytes > limit:
        raise DataError(
            f"{num_bytes / 1e6:.0f} MB would be read from {path} for a preview, which reads at most "
            f"{limit / 1e6:.0f} MB. Load the dataset, if you trust it."
        )


def open_small(path: Path, limit: int = _MAX_BYTES) -> BinaryIO:
    """Opens a file to show, if it is not too large; see `require_small`."""
    require_small(path, path.stat().st_size, limit)
    return path.open("rb")


def table(columns: list[str], rows: Iterable[Sequence[Any]]) -> TablePreview:
    """Returns a table in the format of Kedro-Viz."""
    data = [list(row) for row in rows]
    return {"columns": columns, "index": list(range(len(data))), "data": data}


def read_tensor_info(path: Path) -> TensorInfo:
    """Reads shape and type of each tensor in a safetensors file from its header."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}


def tensor_table(tensors: TensorInfo, nrows: int) -> TablePreview:
    """Returns a table with one row per tensor."""
    rows = [(name, shape_text(shape), kind) for name, (shape, kind) in sorted(tensors.items())]
    return table(["tensor", "shape", "type"], rows[:nrows])


def state_dict_table(tensors: TensorInfo, nrows: int) -> TablePreview:
    """Returns a table with one row per layer of a state dict, in natural order, with its largest tensor."""
    layers: dict[str, dict[str, tuple[Sequence[int], str]]] = {}
    for name, info in tensors.items():
        layer, _, tensor = name.rpartition(".")
        layers.setdefault(layer, {})[tensor] = info
    rows = []
    for layer in sorted(layers, key=_natural_key):
        sizes = {tensor: math.prod(shape) for tensor, (shape, _) in layers[layer].items()}
        shape, kind = layers[layer][max(sizes, key=lambda tensor: (sizes[tensor], tensor))]
        rows.append((layer, shape_text(shape), kind, sum(sizes.values())))
    return table(["layer", "largest tensor", "type", "numbers"], rows[:nrows])


def shape_text(shape: Iterable[int | str]) -> str:
    """Formats a shape as `24 x 1 x 3 x 3`, and that of a scalar as `scalar`."""
    return " x ".join(map(str, shape)) or "scalar"


def _natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sorts `layer.10` after `layer.9`."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]

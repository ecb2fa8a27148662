"""Safetensors files that are written and read a tensor at a time, with a checksum, and no second copy of the whole.

The format: the length of a header (8 bytes, little endian), the header (JSON: type, shape and place of each tensor, and
texts under `__metadata__`), and the bytes of the tensors, one after the other.

Large tensors of bool are written as bits, which take an eighth of the space; the metadata has their shapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kedro_aat.errors import CheckpointError
from kedro_aat.tensors import tensor_bytes, unique_tensors
from kedro_aat.training.checkpoints.checked import CheckedReader, reading, writing

DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Tensors start at multiples of their elements' sizes, since the largest elements come first, and the header ends at one
# of 8.
_ORDER = {dtype: position for position, dtype in enumerate(DTYPES.values())}
_METADATA, _BITS = "__metadata__", "kedro_aat.bits"
# Smaller tensors of bool are written as they are.
_FEWEST_BITS = 1024
# Longest side of a tensor that is read.
_LONGEST = 1 << 48


def write_tensors(tensors: Mapping[str, Any], path: Path) -> str:
    """Writes tensors by name; names that share a tensor are in the metadata.

    Args:
        tensors: A `state_dict`; it must not change meanwhile.
        path: The new file.

    Returns:
        The checksum of the file.

    Raises:
        CheckpointError: If it holds anything but tensors of numbers.
    """
    unique, aliases = unique_tensors(tensors)
    unique = dict(sorted(unique.items(), key=lambda item: (_ORDER.get(item[1].dtype, -1), item[0])))
    bits = {name: list(tensor.shape) for name, tensor in unique.items() if _is_packed(tensor)}
    metadata = aliases | ({_BITS: json.dumps(bits)} if bits else {})
    header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    end = 0
    for name, tensor in unique.items():
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"{name} in the state_dict is a tensor of {tensor.dtype}, which cannot be saved")
        shape = [-(-tensor.numel() // 8)] if name in bits else list(tensor.shape)
        num_bytes = shape[0] if name in bits else tensor.numel() * tensor.element_size()
        begin, end = end, end + num_bytes
        kind = "U8" if name in bits else _NAMES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with writing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in unique.items():
            file.write(np.packbits(tensor.cpu().numpy()).data if name in bits else tensor_bytes(tensor))
    return str(file.checksum)


def _is_packed(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool and tensor.layout is torch.strided and tensor.numel() >= _FEWEST_BITS


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Reads what `write_tensors` or safetensors wrote.

    Returns:
        The tensors, and the checksum of the file.

    Raises:
        ValueError, LookupError, TypeError: If it is no such file.
    """
    tensors: dict[str, Tensor] = {}
    with reading(path) as (file, size):
        places, metadata = _header(file, size)
        for name, place in places.items():
            tensors[name] = torch.empty(place.shape, dtype=place.dtype)
            file.read_into(tensor_bytes(tensors[name]))
    for name, shape in json.loads(metadata.pop(_BITS, "{}")).items():
        tensors[name] = _unpacked(tensors[name], shape)
    return tensors | {alias: tensors[name] for alias, name in metadata.items()}, str(file.checksum)


@dataclass(frozen=True)
class _Place:
    """Where a tensor is in a file.

    Attributes:
        dtype: Its type, in the file.
        shape: Its shape, in the file.
        begin: Number of its first byte.
    """

    dtype: torch.dtype
    shape: list[int]
    begin: int


def _header(file: CheckedReader, size: int) -> tuple[dict[str, _Place], dict[str, str]]:
    """Reads the header of a file: the places of the tensors, in their order, and the metadata."""
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError("its header is longer than the file")
    header = json.loads(file.read(length))
    metadata: dict[str, str] = header.pop(_METADATA, None) or {}
    places: dict[str, _Place] = {}
    start, position, length = 8 + length, 0, size - 8 - length
    for name, place in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, end) = DTYPES[place["dtype"]], place["shape"], place["data_offsets"]
        if not all(isinstance(side, int) and 0 <= side < _LONGEST for side in shape):
            raise ValueError(f"{name} has the shape {shape}")
        if begin != position or end > length or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} is not at its place")
        places[name] = _Place(dtype, shape, start + begin)
        position = end
    if position != length:
        raise ValueError("it is too long")
    return places, metadata


def _unpacked(packed: Tensor, shape: Sequence[int]) -> Tensor:
    unpacked = np.unpackbits(packed.numpy(), count=math.prod(shape)).view(np.bool_)
    return torch.from_numpy(unpacked.reshape(shape))


class TensorFile:
    """A file that `write_tensors` wrote, of which some rows of some tensors are read.

    Args:
        path: The file, whose checksum is not looked at.

    Raises:
        ValueError, LookupError, TypeError: If it is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with reading(path) as (file, size):
            self._places, metadata = _header(file, size)
        self._bits: dict[str, list[int]] = json.loads(metadata.pop(_BITS, "{}"))
        self._places |= {alias: self._places[name] for alias, name in metadata.items()}
        self._bits |= {alias: self._bits[name] for alias, name in metadata.items() if name in self._bits}

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._places)

    def shape(self, name: str) -> torch.Size:
        """Shape of a tensor."""
        return torch.Size(self._bits.get(name, self._places[name].shape))

    def read(self, name: str, rows: slice) -> Tensor:
        """Reads rows of a tensor, on the CPU.

        Args:
            name: Its name.
            rows: From the first one to before the last one, of those that are there.
        """
        place = self._places[name]
        is_packed = name in self._bits
        skipped, shape = (0, place.shape) if is_packed else (rows.start, [rows.stop - rows.start, *place.shape[1:]])
        tensor = torch.empty(shape, dtype=place.dtype)
        with self._path.open("rb") as file:
            file.seek(place.begin + skipped * math.prod(place.shape[1:]) * place.dtype.itemsize)
            CheckedReader(file).read_into(tensor_bytes(tensor))
        return _unpacked(tensor, self._bits[name])[rows] if is_packed else tensor

"""Safetensors files that are written and read a tensor at a time, with a checksum, and no second copy of the whole.

The format: the length of a header (8 bytes, little endian), the header (JSON: type, shape and place of each tensor, and
texts under `__metadata__`), and the bytes of the tensors, one after the other.

Large tensors of bool are written as bits, which take an eighth of the space; the metadata has their shapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kedro_aat.errors import CheckpointError
from kedro_aat.tensors import tensor_bytes, unique_tensors
from kedro_aat.training.checkpoints.checked import reading, writing

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
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
        metadata: dict[str, str] = header.pop(_METADATA, None) or {}
        position, length = 0, size - 8 - length
        for name, place in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (begin, end) = DTYPES[place["dtype"]], place["shape"], place["data_offsets"]
            if not all(isinstance(side, int) and 0 <= side < _LONGEST for side in shape):
                raise ValueError(f"{name} has the shape {shape}")
            if begin != position or end > length or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} is not at its place")
            tensors[name] = torch.empty(shape, dtype=dtype)
            file.read_into(tensor_bytes(tensors[name]))
            position = end
        if position != length:
            raise ValueError("it is too long")
    for name, shape in json.loads(metadata.pop(_BITS, "{}")).items():
        packed = tensors[name].numpy()
        unpacked = np.unpackbits(packed, count=math.prod(shape)).view(np.bool_)
        tensors[name] = torch.from_numpy(unpacked.reshape(shape))
    return tensors | {alias: tensors[name] for alias, name in metadata.items()}, str(file.checksum)

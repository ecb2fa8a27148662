"""Tensors in safetensors files, without pickle, and hashes of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save as serialize_arrays
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from kedro_aat.errors import CheckpointError

_UNKNOWN_TO_NUMPY = {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}


def save_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Writes a `state_dict` as safetensors; see `serialize_tensors`."""
    path.write_bytes(serialize_tensors(tensors))


def serialize_tensors(tensors: Mapping[str, Any]) -> bytes:
    """Returns a `state_dict` in the format of safetensors; names that share a tensor are listed in its metadata.

    Raises:
        CheckpointError: If it holds anything but tensors.
    """
    owners: dict[tuple[Any, ...], str] = {}
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{name} in the state_dict must be a tensor, but is {type(tensor).__name__}")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in owners:
            aliases[name] = owners[key]
        else:
            owners[key] = name
            unique[name] = tensor.detach().cpu().contiguous()
    # Safetensors refuses different views of one storage, so they are copied.
    storages = [tensor.untyped_storage().data_ptr() for tensor in unique.values()]
    if len(set(storages)) < len(storages):
        unique = {name: tensor.clone() for name, tensor in unique.items()}
    if any(tensor.dtype in _UNKNOWN_TO_NUMPY for tensor in unique.values()):
        return serialize(unique, metadata=aliases or None)
    # The variant for numpy takes half the time.
    return serialize_arrays({name: tensor.numpy() for name, tensor in unique.items()}, metadata=aliases or None)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads what `save_tensors` wrote."""
    from safetensors import safe_open

    tensors: dict[str, Tensor] = load_file(path)
    with safe_open(path, framework="pt") as file:
        aliases: dict[str, str] = file.metadata() or {}
    return tensors | {alias: tensors[name] for alias, name in aliases.items()}


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tensors(named: Iterable[tuple[object, Tensor]]) -> str:
    """Returns a hash of the tensors' names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

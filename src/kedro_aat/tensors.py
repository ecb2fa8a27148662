"""Tensors in safetensors files, without pickle; hashes of tensors; made-up values in place of the user's."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save as serialize_arrays
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from kedro_aat.errors import CheckpointError
from kedro_aat.model_inputs import ModelInputs, map_tensors, num_examples, tensors_in

# So many examples are needed to give each position a range of its own: two would nearly be the examples themselves.
_NUM_RANGED = 32
_UNKNOWN_TO_NUMPY = {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}


def save_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Writes a `state_dict` as safetensors; see `serialize_tensors`."""
    path.write_bytes(serialize_tensors(tensors))


def serialize_tensors(tensors: Mapping[str, Any]) -> bytes:
    """Returns a `state_dict` in the format of safetensors; names that share a tensor are listed in its metadata.

    Raises:
        CheckpointError: If it holds anything but tensors.
    """
    owned, aliases = unique_tensors(tensors)
    unique = {name: tensor.detach().cpu().contiguous() for name, tensor in owned.items()}
    # Safetensors refuses different views of one storage, so they are copied.
    storages = [tensor.untyped_storage().data_ptr() for tensor in unique.values()]
    if len(set(storages)) < len(storages):
        unique = {name: tensor.clone() for name, tensor in unique.items()}
    if any(tensor.dtype in _UNKNOWN_TO_NUMPY for tensor in unique.values()):
        return serialize(unique, metadata=aliases or None)
    # The variant for numpy takes half the time.
    return serialize_arrays({name: tensor.numpy() for name, tensor in unique.items()}, metadata=aliases or None)


def unique_tensors(tensors: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a `state_dict` without those that are another one, and their names with the other's.

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
            unique[name] = tensor
    return unique, aliases


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
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor's values, in the order of its dimensions."""
    dense = tensor.detach().cpu()
    dense = dense if dense.layout is torch.strided else dense.to_dense()
    data: memoryview = dense.contiguous().flatten().view(torch.uint8).numpy().data
    return data


def mark_made_up(values: ModelInputs) -> ModelInputs:
    """Marks tensors in place as made up, so that they can be saved as they are; so are copies by `deepcopy`."""
    for tensor in tensors_in(values):
        tensor.is_made_up = True  # type: ignore[attr-defined]  # tensors take attributes
    return values


def is_made_up(values: ModelInputs) -> bool:
    """Whether `mark_made_up` was called for all tensors of these values."""
    return all(getattr(tensor, "is_made_up", False) for tensor in tensors_in(values))


def synthetic_like(examples: ModelInputs, num_made_up: int) -> ModelInputs:
    """Returns made-up values of the shape, type and range of examples, for what is saved: no example is in it.

    The values are the same for the same ranges, and the random generators stay as they are. Each position of an
    example has its own range if it is whole, since a column of numbers may choose rows of an embedding, or if there are
    at least 32 examples; otherwise all have one. The bounds are rounded inward, to at most 8 steps of the range, so
    that they are hardly numbers of the examples either. Whole numbers stay whole, and 0 and 1 stay 0 and 1.

    Args:
        examples: (B, ...) with B at least 1, or several tensors in any structure, of which those without a row for each
            example keep their shapes; NaN and infinity count as 0.
        num_made_up: Number of examples to make up, at least 1.

    Returns:
        (num_made_up, ...) on the CPU, or the same structure.
    """
    number, seeds = num_examples(examples), itertools.count()

    def made_up(part: Tensor) -> Tensor:
        if part.dim() and len(part) == number:
            return _synthetic(part, num_made_up, next(seeds))
        return _synthetic(part[None], 1, next(seeds))[0]

    return map_tensors(made_up, examples)


def _synthetic(examples: Tensor, num_examples: int, seed: int) -> Tensor:
    """(B, ...) -> (num_examples, ...) made-up values."""
    numbers = examples.detach().cpu()
    if numbers.is_complex():
        return torch.zeros(num_examples, *examples.shape[1:], dtype=examples.dtype)
    numbers = numbers.nan_to_num(0, 0, 0) if numbers.is_floating_point() else numbers.long()
    of_each = len(numbers) >= _NUM_RANGED or not numbers.is_floating_point()
    pooled = (0,) if of_each else tuple(range(numbers.ndim))
    low, high = numbers.amin(pooled).double(), numbers.amax(pooled).double()
    are_whole = (numbers == numbers.trunc()).all(pooled)
    step = torch.exp2(torch.log2((high - low) / 4).floor())
    step = torch.where(are_whole, step.clamp(min=1), step)
    # A number that never changes becomes a power of two, between 0 and itself.
    constant = low.sign() * torch.exp2(low.abs().log2().floor())
    is_constant = low == high
    lowest = torch.where(is_constant, constant, (low / step).ceil() * step)
    highest = torch.where(is_constant, constant, (high / step).floor() * step)
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(num_examples, *examples.shape[1:], dtype=torch.float64, generator=generator)
    values = lowest + (highest - lowest) * shares
    return torch.where(are_whole, values.round(), values).to(examples.dtype)

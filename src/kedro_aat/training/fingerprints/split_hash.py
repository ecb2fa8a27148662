"""Identifies a test split by its examples, whatever their order and form, for the ledger of the splits that were read.

For the identity of a run, in which the order of the examples matters, see `data.data_fingerprint`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from kedro_aat.tensors import hash_tensors
from kedro_aat.training.data import NUM_SAMPLED_EXAMPLES, Data, as_dataset
from kedro_aat.training.loading.datasets import Loaded, Rows, Streamed, examples_in
from kedro_aat.training.loading.settings import BatchSettings
from kedro_aat.training.random_state import rng_state, seed_everything, set_rng_state

# Numbers that are converted at a time, so that they stay in the processor's cache.
CHUNK = 2**18
_PAIR = ("inputs", "targets")


def split_fingerprint(data: Data, batch: BatchSettings | None = None, *, is_ordered: bool = True) -> str:
    """Hash of the multiset of a split's examples: the same for another order, another type of numbers, another form.

    Each example is hashed alone, as its input and its target in single precision: data saved in double precision, in
    other integers, as arrays or as a dataset of pairs are the same examples. Whatever else the split has, such as the
    groups of its examples, does not count. All examples of any dataset are read, one by one; only their hashes are
    kept. The random generators are seeded anew for each example, so that random augmentation does not depend on the
    order, and are left as they were.

    Args:
        data: The split.
        batch: What of a batch is input and target; None for the defaults.
        is_ordered: Whether the parts of a mapping are read by their names; earlier versions read them as they came.

    Raises:
        DataError: If the split is empty, if inputs and targets differ in number, or if it changes from reading to
            reading.
    """
    if isinstance(data, Mapping) and all(isinstance(data.get(name), np.ndarray | Tensor) for name in _PAIR):
        data = {name: torch.as_tensor(data[name]) for name in (_PAIR if batch in (None, BatchSettings()) else data)}
    dataset = as_dataset(data, "test", batch)
    is_pair = type(dataset) is TensorDataset
    examples = _rows(*dataset.tensors[:2]) if is_pair else _examples(dataset, is_ordered=is_ordered)
    hashes = sorted(examples)
    digest = hashlib.blake2b(b"".join(hashes), digest_size=16)
    return f"{len(hashes)}-examples-{digest.hexdigest()}"


def former_fingerprints(data: Data, batch: BatchSettings | None = None) -> list[str]:
    """Hashes by which earlier versions knew a split; nothing new is to be known by them.

    Args:
        data: The split.
        batch: As for `split_fingerprint`.
    """
    first = next(examples_in(as_dataset(data, "test", batch)))
    as_they_came = [split_fingerprint(data, batch, is_ordered=False)] if isinstance(_plain(first), Mapping) else []
    return [*as_they_came, former_fingerprint(data)]


def former_fingerprint(data: Data) -> str:
    """Hash by which versions before 0.2.0 knew a split: of its tensors, or of a dataset's size and some examples.

    It changes with the order of the examples. Ledgers have such hashes; nothing new is to be known by them. Empty for
    data that those versions did not know.
    """
    dataset = as_dataset(data, "test")
    if isinstance(dataset, Streamed | Loaded | Rows):  # which those versions did not know
        return ""
    if type(dataset) is TensorDataset:
        return hash_tensors(enumerate(dataset.tensors))
    size = len(dataset)
    before = rng_state()
    seed_everything(0)
    examples = [dataset[index] for index in range(0, size, max(1, size // NUM_SAMPLED_EXAMPLES))]
    set_rng_state(before)
    with suppress(TypeError, ValueError, RuntimeError):  # those versions knew no dictionaries and no texts
        parts = [torch.as_tensor(np.asarray(part)) for example in examples for part in example]
        return f"{size}-{hash_tensors(enumerate(parts))}"
    return ""


def _rows(*tensors: Tensor) -> Iterator[bytes]:
    """The hash of each example of tensors (N, ...)."""
    size = max(1, CHUNK // max(1, tensors[0][0].numel()))
    for parts in zip(*(tensor.split(size) for tensor in tensors), strict=True):
        numbers = [_single_precision(part).reshape(len(part), -1) for part in parts]
        yield from map(_hash, zip(*numbers, strict=True))


def _leaves(example: Any, *, is_ordered: bool) -> list[Any]:
    """What an example consists of, that of a mapping in the order of the names, because some files have no other."""
    if is_ordered and isinstance(example, Mapping):
        example = [example[name] for name in sorted(example, key=str)]
    return list(tree_leaves(example))


def _examples(dataset: Any, *, is_ordered: bool) -> Iterator[bytes]:
    """The hash of each example of a dataset of pairs."""
    before = rng_state()
    try:
        seed_everything(0)
        for example in examples_in(dataset):
            is_pair = isinstance(example, tuple | list) and len(example) == 2
            parts = _leaves(example[:2] if is_pair else _plain(example), is_ordered=is_ordered)
            yield _hash([_single_precision(part) for part in parts])
            seed_everything(0)
    finally:
        set_rng_state(before)


def _plain(example: Any) -> Any:
    """An example whose dataclass, if it is one, is a mapping."""
    return vars(example) if is_dataclass(example) else example


def _single_precision(values: Any) -> NDArray[Any]:
    """Numbers in float32, in which equal numbers have equal bytes; other things as texts."""
    if isinstance(values, Tensor):
        values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
        values = values.detach().cpu().float().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        return np.frombuffer(repr(array.tolist()).encode(), dtype=np.uint8)
    with np.errstate(over="ignore"):
        numbers = np.asarray(array.astype(np.float32, copy=False) + np.float32(0))  # -0 becomes 0
    numbers[np.isnan(numbers)] = np.nan
    return numbers


def _hash(parts: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        contents = part.tobytes()
        digest.update(len(contents).to_bytes(8, "little"))
        digest.update(contents)
    return digest.digest()

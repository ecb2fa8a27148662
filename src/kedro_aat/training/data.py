"""The data of a split: tensors or a torch dataset, counted, sampled and hashed."""

from __future__ import annotations

import functools
import logging
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from kedro_aat.errors import DataError
from kedro_aat.tensors import hash_tensors, mark_made_up, synthetic_like
from kedro_aat.training.fingerprints.contents import ContentHash, FileHash, kept_hashes, known_hash, size_and_time
from kedro_aat.training.random_state import rng_state, seed_everything, set_rng_state

logger = logging.getLogger(__name__)

_KNOWN: dict[str, str] = {}  # hashes of all examples in this process
_MAX_KNOWN = 64


class Examples(Protocol):
    """A dataset of (input, target) pairs with a length; torch's own `Dataset` does not promise one."""

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, index: int) -> Any:
        """One pair."""
        ...


Data = Mapping[str, Tensor] | Examples

NUM_SAMPLED_EXAMPLES = 16  # are read twice
NOTEWORTHY_SECONDS = 10.0  # for reading all examples
NUM_RANGED_EXAMPLES = 64  # give the range of made-up inputs


def as_dataset(data: Data, split: str) -> Examples:
    """The data of a split as a torch dataset.

    Raises:
        DataError: If the split is empty, or inputs and targets differ in number.
    """
    if isinstance(data, Mapping):
        missing = [key for key in ("inputs", "targets") if key not in data]
        if missing:
            raise DataError(f"The {split} split needs {' and '.join(missing)}, but has {', '.join(data) or 'nothing'}.")
        sizes = {key: len(data[key]) for key in ("inputs", "targets")}
        if len(set(sizes.values())) > 1:
            raise DataError(f"The {split} split has {sizes['inputs']} inputs, but {sizes['targets']} targets.")
        data = TensorDataset(data["inputs"], data["targets"])
    if len(data) == 0:
        raise DataError(f"The {split} split has 0 examples. Add examples, or give it a larger share of the data.")
    return data


def example_input(data: Data, num_examples: int = 2) -> Tensor:
    """The first inputs of a split, (num_examples, ...)."""
    dataset = as_dataset(data, "validation")
    count = min(num_examples, len(dataset))
    return torch.stack([dataset[index][0] for index in range(count)])


def synthetic_input(data: Data, num_examples: int = 2) -> Tensor:
    """Made-up inputs like those of a split, (num_examples, ...), for what is saved; see `synthetic_like`."""
    made_up: Tensor = mark_made_up(synthetic_like(example_input(data, NUM_RANGED_EXAMPLES), num_examples))
    return made_up


def example_count(data: Data) -> int:
    """Number of examples of a split."""
    return len(as_dataset(data, "given"))


def data_fingerprint(data: Data, kept: Path | None = None) -> str:
    """Hash that identifies a split, with the number of its examples for a dataset.

    It is that of all examples, which are read once in a process. Instead, it is

    - what the dataset's attribute or method `fingerprint` says,
    - for a dataset that tells its files (`files` or `samples`, a list of paths or of tuples with one): their contents,
      and the dataset's class and attributes,
    - for examples that differ when they are read twice: the dataset's class and attributes, with a warning.

    Args:
        data: The split.
        kept: File that keeps the hashes of files for other processes; None if there is none.

    Raises:
        DataError: If the split is empty, or its `fingerprint` is neither text nor a number.
    """
    dataset = as_dataset(data, "given")
    if type(dataset) is Subset and type(dataset.dataset) is TensorDataset:
        dataset = TensorDataset(*(tensor[torch.as_tensor(dataset.indices)] for tensor in dataset.dataset.tensors))
    if type(dataset) is TensorDataset:
        return hash_tensors(enumerate(dataset.tensors))
    if (given := getattr(dataset, "fingerprint", None)) is not None:
        return f"{len(dataset)}-given-{_hash(_stated(given() if callable(given) else given))}"
    before = rng_state()
    try:
        with kept_hashes(kept):
            return _hash_of_examples(dataset)
    finally:
        set_rng_state(before)


def _hash_of_examples(dataset: Examples) -> str:
    size, started = len(dataset), time.perf_counter()
    sample, again = (_sample(dataset, seed) for seed in (0, 1))
    seconds = (time.perf_counter() - started) / (2 * len(sample)) * size
    are_same = (seen := _hash(sample)) == _hash(again)
    known = f"{size}-{_hash_of_first_versions(sample) if are_same else 'differing'}"
    if _tells_files(dataset):
        return f"{known}-{_description(dataset, known_hash)}"
    if not are_same:
        _warn_that_they_differ(f"{type(dataset).__module__}.{type(dataset).__qualname__}")
        return f"{known}-{_description(dataset, known_hash)}"
    # Kedro hands each node a copy. All attributes, and size and time of the files, tell it from other data.
    key = ""
    with suppress(Exception):  # private attributes may hold anything
        key = f"{size} {seen} {_description(dataset, size_and_time, private=True)}"
    if not key or key not in _KNOWN:
        if seconds > NOTEWORTHY_SECONDS:
            logger.info(
                "Reading all %d examples once, to identify the data: about %.0f s. A dataset with an attribute or "
                "method `fingerprint` saves this.",
                size,
                seconds,
            )
        seed_everything(0)  # augmentation that the sample did not show must not change the hash
        content = ContentHash()
        for index in range(size):
            content.add(dataset[index])
        if len(_KNOWN) >= _MAX_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[key] = content.hexdigest()
    return f"{known}-{_KNOWN[key]}"


def _sample(dataset: Examples, seed: int) -> list[Any]:
    seed_everything(seed)
    size = len(dataset)
    return [dataset[index] for index in range(0, size, max(1, size // NUM_SAMPLED_EXAMPLES))]


def _hash_of_first_versions(sample: list[Any]) -> str:
    """What versions before 0.2.0 had for the whole split, so that their runs are recognized."""
    with suppress(TypeError, ValueError, RuntimeError):  # they knew no dictionaries and no texts
        return hash_tensors(
            enumerate(torch.as_tensor(np.asarray(part).copy()) for example in sample for part in example)
        )
    return ""


def _hash(value: Any) -> str:
    content = ContentHash()
    content.add(value)
    return content.hexdigest()


def _description(dataset: Examples, file_hash: FileHash, *, private: bool = False) -> str:
    """Hash of a dataset's class, with its source, and of its attributes."""
    content = ContentHash(file_hash, private=private)
    content.add(dataset)
    return content.with_sources()


def _stated(value: Any) -> str | int | float | bytes:
    if not isinstance(value, str | int | float | bytes):
        raise DataError(f"The fingerprint of a dataset must be text or a number, but got {value!r:.60}.")
    return value


def _tells_files(dataset: Examples) -> bool:
    for name in ("files", "samples"):
        told = getattr(dataset, name, None)
        if isinstance(told, list) and len(told) == len(dataset):
            parts = told[0] if isinstance(told[0], tuple) else (told[0],)
            if any(isinstance(part, str | Path) and Path(part).is_file() for part in parts):
                return True
    return False


@functools.cache
def _warn_that_they_differ(name: str) -> None:
    logger.warning(
        "Examples of %s differ when they are read twice, as with random augmentation. A run is identified by the "
        "class's source, its attributes and the number of examples instead. If the data can change in another way, "
        "give the class an attribute or method `fingerprint` that changes with them.",
        name,
    )


def ignore_ctrl_c(worker: int) -> None:
    """Lets a worker load the rest of the epoch; a terminal sends Ctrl-C to it, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

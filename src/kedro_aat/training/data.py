"""The data of a split: tensors or a torch dataset, counted, sampled and hashed."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from kedro_aat.errors import DataError
from kedro_aat.model_inputs import ModelInputs, map_tensors, named_tensors, precision_of, take_examples
from kedro_aat.tensors import hash_tensors, mark_made_up, synthetic_like
from kedro_aat.training.fingerprints.contents import ContentHash, FileHash, kept_hashes, known_hash, size_and_time
from kedro_aat.training.loading.datasets import (
    Loaded,
    Rows,
    Streamed,
    as_tensors,
    examples_in,
    first_batch,
    is_array,
    rows_of,
)
from kedro_aat.training.loading.form import TARGET_NAMES, BatchForm
from kedro_aat.training.loading.settings import BatchSettings, function_of
from kedro_aat.training.random_state import rng_state, seed_everything, set_rng_state

if TYPE_CHECKING:
    from kedro_aat.training.settings import TrainingSettings

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


# Tensors or arrays by name, a pair of them, a dataset with examples by index, one that yields them, or a data loader.
Data = Mapping[str, Any] | Examples | IterableDataset[Any] | DataLoader[Any]

NUM_SAMPLED_EXAMPLES = 16  # are read twice
NOTEWORTHY_SECONDS = 10.0  # for reading all examples
NUM_RANGED_EXAMPLES = 61  # give the range of made-up inputs; a prime, as hardly any table beside the rows is so long


def as_dataset(data: Data, split: str, batch: BatchSettings | None = None) -> Any:
    """The data of a split as a torch dataset: with a length, and examples that `examples_in` yields.

    Args:
        data: The split; arrays in a mapping, or in a pair of inputs and targets, become tensors.
        split: Its name. What judges models, `validation` or `test`, must have the same order at each reading.
        batch: What of a batch is input and target; None if it does not matter here.

    Raises:
        DataError: If the split is empty, if its tensors differ in number, or if a split that judges models changes
            from reading to reading, or a data loader drops some of its examples.
    """
    dataset: Any = data
    if isinstance(data, tuple | list) and len(data) == 2 and all(map(is_array, data)):
        data = {"inputs": data[0], "targets": data[1]}
    if isinstance(data, Mapping):
        dataset = _of_mapping(as_tensors(data), split, batch)
    elif isinstance(data, DataLoader | IterableDataset) or not hasattr(data, "__getitem__"):
        read = Loaded(data) if isinstance(data, DataLoader) else Streamed(data)
        if split in ("validation", "test"):
            read.refuse_chance(split)
        return read
    if len(dataset) == 0:
        raise DataError(f"The {split} split has 0 examples. Add examples, or give it a larger share of the data.")
    return dataset


def _of_mapping(data: Mapping[str, Any], split: str, batch: BatchSettings | None) -> Any:
    is_default = batch is None or batch == BatchSettings()
    if is_default and {"inputs", "targets"} <= {*data}:
        pair = data["inputs"], data["targets"]
        if isinstance(pair[0], Tensor) and isinstance(pair[1], Tensor):
            if len(pair[0]) != len(pair[1]):
                raise DataError(f"The {split} split has {len(pair[0])} inputs, but {len(pair[1])} targets.")
            return TensorDataset(*pair)
        return rows_of({"inputs": pair[0], "targets": pair[1]}, split)
    if batch is not None and is_default and (len(data) < 2 or not {*TARGET_NAMES} & {*data}):
        missing = " and ".join(key for key in ("inputs", "targets") if key not in data)
        named = "" if len(data) < 2 else " Name both under training.batch."
        raise DataError(f"The {split} split needs {missing}, but has {', '.join(data) or 'nothing'}.{named}")
    return rows_of(data, split)


def example_input(
    data: Data,
    num_examples: int = 2,
    training: TrainingSettings | None = None,
    model: nn.Module | None = None,
    split: str = "given",
) -> ModelInputs:
    """The first inputs of a split, as a model is called with them; `num_examples` at most.

    Args:
        data: The split.
        num_examples: Number of examples.
        training: Says how batches are made, and what of them is input; None for the defaults.
        model: The model, whose signature may name its inputs; None if it is not known.
        split: Name of the split, for errors.
    """
    batch = BatchSettings() if training is None else training.batch
    collate = None if training is None or training.loader.collate_fn is None else training.loader.collate_fn
    examples = first_batch(
        as_dataset(data, split, batch), num_examples, None if collate is None else function_of(collate)
    )
    group = () if training is None or training.group is None else (training.group,)
    inputs = take_examples(BatchForm(batch, model, split, group)(examples)[0], slice(num_examples))
    dtype = torch.float64 if model is None else precision_of(model) or torch.float64
    return map_tensors(lambda part: part.to(dtype) if part.dtype is torch.float64 else part, inputs)


def synthetic_input(
    data: Data, num_examples: int = 2, training: TrainingSettings | None = None, model: nn.Module | None = None
) -> ModelInputs:
    """Made-up inputs like those of a split, for what is saved; see `synthetic_like`.

    Args:
        data: The split.
        num_examples: Number of examples.
        training: As for `example_input`.
        model: As for `example_input`.
    """
    inputs = example_input(data, NUM_RANGED_EXAMPLES, training, model)
    return mark_made_up(synthetic_like(inputs, num_examples))


def require_all_seen(number: int, dataset: Any, num_workers: int) -> None:
    """Makes sure that a validation has read each example of a stream once.

    Args:
        number: Examples that were read.
        dataset: The validation split.
        num_workers: Processes that load it.

    Raises:
        DataError: If not, or if there is none. Each worker process reads a whole stream, unless the stream knows it.
    """
    if not number:
        raise DataError("The validation split has 0 examples. Add examples, or give it a larger share of the data.")
    if isinstance(dataset, Streamed | Loaded) and number != (expected := len(dataset)):
        advice = (
            f"With {num_workers} worker processes, each reads the whole stream, unless it asks "
            "torch.utils.data.get_worker_info() for its part: set training.num_workers to 0."
            if num_workers and isinstance(dataset, Streamed)
            else "A split that judges models must give the same examples each time that it is read."
        )
        raise DataError(f"The validation read {number:,} examples, but the split has {expected:,}. {advice}")


def example_count(data: Data) -> int:
    """Number of examples of a split."""
    return len(as_dataset(data, "given"))


def data_fingerprint(data: Data, kept: Path | None = None, batch: BatchSettings | None = None) -> str:
    """Hash that identifies a split, with the number of its examples for a dataset.

    It is that of all examples, which are read once in a process. Instead, it is

    - what the dataset's attribute or method `fingerprint` says,
    - for a dataset that tells its files (`files` or `samples`, a list of paths or of tuples with one): their contents,
      and the dataset's class and attributes,
    - for examples that differ when they are read twice: the dataset's class and attributes, with a warning.

    Args:
        data: The split.
        kept: File that keeps the hashes of files for other processes; None if there is none.
        batch: What of a batch is input and target; more than these two of a mapping count only if it names them.

    Raises:
        DataError: If the split is empty, or its `fingerprint` is neither text nor a number.
    """
    dataset = as_dataset(data, "given", batch)
    if isinstance(dataset, Loaded):
        return _hash([_description_of_loader(dataset), data_fingerprint(cast(Examples, dataset.loader.dataset), kept)])
    if type(dataset) is Subset and type(dataset.dataset) is TensorDataset:
        dataset = TensorDataset(*(tensor[torch.as_tensor(dataset.indices)] for tensor in dataset.dataset.tensors))
    if type(dataset) is TensorDataset:
        return hash_tensors(enumerate(dataset.tensors))
    if type(dataset) is Rows:
        return hash_tensors(sorted(named_tensors(dataset.tensors)))  # by name; some files have no order
    if isinstance(dataset, Streamed):
        return _hash_of_stream(dataset, kept)
    if (given := getattr(dataset, "fingerprint", None)) is not None:
        return f"{len(dataset)}-given-{_hash(_stated(given() if callable(given) else given))}"
    before = rng_state()
    try:
        with kept_hashes(kept):
            return _hash_of_examples(dataset)
    finally:
        set_rng_state(before)


def _hash_of_stream(stream: Streamed, kept: Path | None) -> str:
    """Hash of a dataset that yields its examples, all of which are read only if it tells their number."""
    source = stream.dataset
    if (given := getattr(source, "fingerprint", None)) is not None:
        return f"given-{_hash(_stated(given() if callable(given) else given))}"
    before = rng_state()
    try:
        with kept_hashes(kept):
            found = []
            for seed in (0, 1):
                seed_everything(seed)
                found.append(_hash(list(itertools.islice(source, NUM_SAMPLED_EXAMPLES))))
            if found[0] != found[1] or not hasattr(source, "__len__"):
                _warn_that_they_differ(f"{type(source).__module__}.{type(source).__qualname__}")
                return f"{found[0] if found[0] == found[1] else 'differing'}-{_description(source, known_hash)}"
            seed_everything(0)
            content = ContentHash()
            for example in examples_in(stream):
                content.add(example)
            return f"{len(stream)}-{content.hexdigest()}"
    finally:
        set_rng_state(before)


def _description_of_loader(dataset: Loaded) -> str:
    """Hash of how a loader of the user's makes batches; the state of its generators does not count."""
    loader = dataset.loader
    samplers = [type(part).__qualname__ for part in (loader.sampler, loader.batch_sampler)]
    content = ContentHash()
    content.add([loader.batch_size, loader.drop_last, loader.collate_fn, samplers])
    return content.with_sources()


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
        "Examples of %s differ when they are read twice, as with random augmentation, or their number is not known. A "
        "run is identified by the class's source and attributes instead. If the data can change in another way, "
        "give the class an attribute or method `fingerprint` that changes with them.",
        name,
    )

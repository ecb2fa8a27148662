"""One interface for every form of data: examples that can be counted, and read one after another."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from kedro_aat.errors import DataError
from kedro_aat.model_inputs import map_tensors, named_tensors, num_examples, take_examples
from kedro_aat.training.fingerprints.contents import ContentHash
from kedro_aat.training.random_state import rng_state, seed_everything, set_rng_state

# Seconds after which the count of a stream's examples is given up: it may never end.
COUNTING_SECONDS = 60.0
NUM_COMPARED = 16  # examples of a stream that are read twice

_LENGTHS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


class Rows(Dataset[Any]):
    """Tensors in any structure, whose first dimension counts the examples; indexed by one number or by many.

    Args:
        tensors: The structure.
    """

    def __init__(self, tensors: Any) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return num_examples(self.tensors)

    def __getitem__(self, index: Any) -> Any:
        return map_tensors(lambda tensor: tensor[index], self.tensors)


class Streamed(IterableDataset[Any]):
    """A dataset that yields its examples, with their number: its own, or what one pass counts.

    Args:
        dataset: The dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataset)

    def __len__(self) -> int:
        return length_of(self.dataset)

    def refuse_chance(self, split: str) -> None:
        """Makes sure that each pass reads the same examples in the same order.

        Raises:
            DataError: If the first ones differ.
        """
        _require_same(self.dataset, split)


class Loaded(Dataset[Any]):
    """A data loader of the user's, whose batches are used as they come.

    Args:
        loader: The loader.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        if self._makes_batches or isinstance(self.loader.dataset, IterableDataset):
            return length_of(self.loader.dataset) if self._makes_batches else sum(map(num_examples, self._batches()))
        return sum(map(len, self.index_batches()))

    @property
    def _makes_batches(self) -> bool:
        """Whether the loader makes the batches of a dataset that yields single examples."""
        return self.loader.batch_size is not None and isinstance(self.loader.dataset, IterableDataset)

    @property
    def _yields_batches(self) -> bool:
        """Whether the dataset itself yields batches, which the loader passes on."""
        return self.loader.batch_size is None and self.loader.batch_sampler is None

    def _batches(self) -> Iterator[Any]:
        before = rng_state()
        seed_everything(0)
        try:
            yield from self.loader
        finally:
            set_rng_state(before)

    def index_batches(self) -> list[list[Any]]:
        """The indices of each batch, or of each item of a dataset that yields batches."""
        chosen: Any = self.loader.sampler if self._yields_batches else self.loader.batch_sampler
        return [list(each) if isinstance(each, list | tuple) else [each] for each in chosen]

    def __iter__(self) -> Iterator[Any]:
        """The examples in the loader's order, without its transformations of batches."""
        if self._yields_batches:
            for batch in self._batches():
                yield from (take_examples(batch, slice(i, i + 1)) for i in range(num_examples(batch)))
        elif isinstance(self.loader.dataset, IterableDataset):
            yield from self.loader.dataset
        else:
            for index in itertools.chain.from_iterable(self.index_batches()):
                yield self.loader.dataset[index]

    def collated(self, example: Any) -> Any:
        """The batch of one of the examples, as the loader makes it."""
        return example if self._yields_batches else self.loader.collate_fn([example])

    def first_batch(self, number: int) -> Any:
        """A batch of the first examples, `number` at most."""
        if self._yields_batches:
            return take_examples(next(self._batches()), slice(number))
        return self.loader.collate_fn(list(itertools.islice(self, number)))

    def refuse_chance(self, split: str) -> None:
        """Makes sure that each pass reads the same examples in the same order, and all of them.

        Raises:
            DataError: If the loader shuffles or drops examples.
        """
        if isinstance(self.loader.dataset, IterableDataset):
            return _require_same(self.loader.dataset, split)
        before = rng_state()
        orders = []
        for seed in (0, 1):
            seed_everything(seed)
            orders.append(self.index_batches())
        set_rng_state(before)
        number, sampler = sum(map(len, orders[0])), self.loader.sampler
        advice = "Give a DataLoader with shuffle=False and drop_last=False, or the dataset itself."
        if orders[0] != orders[1]:
            raise DataError(
                f"The DataLoader of the {split} split reads its {number:,} examples in another order each time, but "
                f"models are compared example by example. {advice}"
            )
        num_all = len(sampler) if isinstance(sampler, Sized) else number
        if self.loader.drop_last and num_all > number:
            raise DataError(
                f"The DataLoader of the {split} split drops the last {num_all - number:,} of {num_all:,} examples. "
                f"{advice}"
            )
        return None


def differs(source: Any) -> bool:
    """Whether the first examples of a stream differ when it is read twice."""
    before, found = rng_state(), []
    for seed in (0, 1):
        seed_everything(seed)
        content = ContentHash()
        content.add(list(itertools.islice(source, NUM_COMPARED)))
        found.append(content.hexdigest())
    set_rng_state(before)
    return found[0] != found[1]


def _require_same(source: Any, split: str) -> None:
    if differs(source):
        raise DataError(
            f"The first examples of the {split} split ({type(source).__name__}) differ when they are read twice, but "
            "models are compared example by example. Give it a fixed order, and no random augmentation."
        )


def length_of(dataset: Any) -> int:
    """Number of examples of a dataset that yields them: its length or, without one, what one pass counts.

    Raises:
        DataError: If counting takes too long.
    """
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        pass
    if dataset not in _LENGTHS:
        number, end, before = 0, time.monotonic() + COUNTING_SECONDS, rng_state()
        for number, _ in enumerate(dataset, 1):
            if time.monotonic() > end:
                raise DataError(
                    f"{number:,} examples of {type(dataset).__name__} were read in {COUNTING_SECONDS:g} seconds to "
                    "count them, and more are left: it has no length. Give it a __len__. For training, "
                    "training.loader.steps_per_epoch will do; a split that judges models must end."
                )
        set_rng_state(before)
        _LENGTHS[dataset] = number
    return _LENGTHS[dataset]


def rows_of(data: Mapping[str, Any], split: str) -> Rows:
    """The tensors of a mapping, nested in any way, as a dataset.

    Raises:
        DataError: If there is none, or if they differ in length.
    """
    sizes = {name: len(tensor) for name, tensor in named_tensors(dict(data)) if tensor.dim()}
    if not sizes:
        kinds = ", ".join(f"{name} ({type(part).__name__})" for name, part in data.items())
        raise DataError(
            f"The {split} split has neither tensors nor arrays of numbers, but {kinds}. Give one of these for each, "
            "with the examples along the first dimension, or a torch dataset."
        )
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
        raise DataError(f"The {split} split has {named}: give as many of each.")
    return Rows(dict(data))


def is_array(part: Any) -> bool:
    """Whether it is an array of rows: a tensor, or one of NumPy, or a table or column of pandas."""
    return hasattr(part, "__array__") and bool(getattr(part, "ndim", 0))


def as_tensors(part: Any) -> Any:
    """A structure with tensors in place of its arrays of numbers, and whatever else it holds as it was.

    float64 becomes float32, like the weights of models; integers become int64, as labels are, but for pixels (uint8).
    """
    if isinstance(part, Mapping):
        found = {name: as_tensors(value) for name, value in part.items()}
        return part if all(found[name] is value for name, value in part.items()) else found
    if isinstance(part, tuple | list) and any(map(is_array, part)):
        parts = [as_tensors(value) for value in part]
        return type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)
    if isinstance(part, Tensor) or not is_array(part) or (array := np.asarray(part)).dtype.kind not in "biufc":
        return part
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    elif array.dtype.kind in "iu" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # copied only if it must be


def examples_in(dataset: Any) -> Iterator[Any]:
    """The examples of a dataset of any form, in its order."""
    if isinstance(dataset, Streamed | Loaded):
        return iter(dataset)
    return (dataset[index] for index in range(len(dataset)))


def batches_of_one(dataset: Any, collate: Callable[[list[Any]], Any] | None = None) -> Iterator[Any]:
    """The examples of a dataset of any form, in its order, each as a batch of its own.

    Args:
        dataset: The dataset.
        collate: Makes a batch of a list of examples; None stacks them. A data loader has its own.
    """
    for example in examples_in(dataset):
        yield dataset.collated(example) if isinstance(dataset, Loaded) else (collate or stacked)([example])


def first_batch(dataset: Any, number: int, collate: Callable[[list[Any]], Any] | None = None) -> Any:
    """A batch of the first examples of a dataset; the random generators stay as they are.

    Args:
        dataset: The dataset.
        number: Number of examples, at most.
        collate: Makes a batch of a list of examples; None stacks them. A data loader has its own.

    Raises:
        DataError: If there is none, or if examples cannot be put into a batch.
    """
    before = rng_state()
    try:
        if isinstance(dataset, Loaded):
            return dataset.first_batch(number)
        examples = list(itertools.islice(examples_in(dataset), number))
    finally:
        set_rng_state(before)
    if not examples:
        raise DataError("The given split has 0 examples. Add examples, or give it a larger share of the data.")
    return (collate or stacked)(examples)


def stacked(examples: list[Any]) -> Any:
    """A batch as torch makes it.

    Raises:
        DataError: If examples differ in shape, or hold what torch does not stack.
    """
    try:
        return default_collate(examples)
    except (RuntimeError, TypeError) as error:
        shapes = {tuple(tensor.shape) for each in examples for _, tensor in named_tensors(each)}
        shown = ", ".join(map(str, sorted(shapes)[:6]))
        raise DataError(
            f"{len(examples)} examples cannot be put into one batch{f': their shapes are {shown}' if shown else ''}. "
            "Name a function that makes a batch of a list of examples, by padding for instance, under "
            f"training.loader.collate_fn. The error was: {error}"
        ) from error


def plain_tensors(dataset: Any) -> bool:
    """Whether batches are made by one indexing of tensors."""
    return type(dataset) is TensorDataset or isinstance(dataset, Rows)

"""Worker processes that stay from epoch to epoch, and load what new ones would."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_MOST_ITEMS = 64  # of a container, in which a generator is looked for
_MOST_OBJECTS = 10_000


@dataclass(frozen=True)
class Wanted:
    """A batch that a worker is to load.

    Attributes:
        epoch: Number of the epoch, which a dataset with a method `set_epoch` is told; None for none.
        seed: Seed of this pass over the data.
        indices: Indices of the examples.
    """

    epoch: int | None
    seed: int
    indices: list[int]


class WantedBatches(Sampler[Wanted]):
    """Batches of indices, with a new seed in each pass, which is drawn as torch's loader draws one."""

    def __init__(self) -> None:
        self._batches: Any = ()
        self._epoch: int | None = None

    def choose(self, batches: Any, epoch: int | None) -> None:
        """Sets what the next pass loads; one that has begun goes on as it is.

        Args:
            batches: Yields lists of indices.
            epoch: Number of the epoch; None for none.
        """
        self._batches, self._epoch = batches, epoch

    def __iter__(self) -> Iterator[Wanted]:
        seed, epoch = int(torch.empty((), dtype=torch.int64).random_()), self._epoch
        for indices in self._batches:
            yield Wanted(epoch, seed, indices)

    def __len__(self) -> int:
        return len(self._batches)


class LoadedByWorkers(Dataset[Any]):
    """Whole batches of a dataset; the first one of a pass in a process seeds this process, as if it were new.

    For functions of the user's that ask a loader for its dataset, it also has the dataset's attributes and examples.

    Args:
        dataset: The dataset.
        collate: Makes a batch of a list of examples; None if one indexing with a list gives it.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any] | None) -> None:
        self.dataset, self._collate = dataset, collate
        self._begun: tuple[int | None, int] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if "dataset" not in vars(self):  # it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, wanted: Any) -> Any:
        if not isinstance(wanted, Wanted):
            return self.dataset[wanted]
        if self._begun != (wanted.epoch, wanted.seed):
            self._begun = wanted.epoch, wanted.seed
            self._begin(wanted)
        if self._collate is None:
            return self.dataset[wanted.indices]
        many = getattr(self.dataset, "__getitems__", None)
        examples = many(wanted.indices) if many else [self.dataset[index] for index in wanted.indices]
        return self._collate(examples)

    def _begin(self, wanted: Wanted) -> None:
        worker = get_worker_info()
        if worker is None:
            return
        seed = wanted.seed + worker.id
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(np.random.SeedSequence((wanted.seed, worker.id)).generate_state(4))
        object.__setattr__(worker, "seed", seed)  # it is frozen; for datasets that take it from there
        if wanted.epoch is not None and callable(tell := getattr(self.dataset, "set_epoch", None)):
            tell(wanted.epoch)


def as_loaded(batch: Any) -> Any:
    """The batch as it is; workers have collated it."""
    return batch


def holds_generator(dataset: Any) -> bool:
    """Whether a dataset has a generator of random numbers, as far as can be seen.

    Its state would go on from epoch to epoch in a process that stays, but be lost in a run that is resumed.
    """
    left, seen = [dataset], set[int]()
    while left and len(seen) < _MOST_OBJECTS:
        value = left.pop()
        if isinstance(value, _GENERATORS):
            return True
        if id(value) in seen or isinstance(value, type | str | bytes | int | float | torch.Tensor | np.ndarray):
            continue
        seen.add(id(value))
        if isinstance(value, dict):  # another mapping may load what it holds when it is asked for it
            left += itertools.islice(value.values(), _MOST_ITEMS)
        elif isinstance(value, list | tuple | set | frozenset):
            left += itertools.islice(value, _MOST_ITEMS)
        else:
            left += list(getattr(value, "__dict__", {}).values())
    return False

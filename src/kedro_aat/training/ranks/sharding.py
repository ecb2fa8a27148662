"""Each rank's part of every batch: the batches and their order are those of a single process."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Sampler

from kedro_aat.model_inputs import num_examples, take_examples
from kedro_aat.ranks import group


@dataclass(frozen=True)
class Shard:
    """Which part of each batch a rank computes: neighboring examples, about as many on every rank.

    Attributes:
        rank: Number of the rank, from 0.
        size: Number of ranks.
    """

    rank: int
    size: int

    def part_of(self, number: int) -> slice:
        """The rank's part of so many examples, which is empty where there are more ranks than examples."""
        return slice(number * self.rank // self.size, number * (self.rank + 1) // self.size)


@dataclass(frozen=True)
class Part:
    """A rank's part of a batch.

    Attributes:
        examples: At least one example, since a model may not run with none.
        number: How many of them count: all, or none where there are more ranks than examples.
        total: Examples in the batch of all ranks.
        smallest: The smallest number of examples of a rank, but 1 at least.
    """

    examples: Any
    number: int
    total: int
    smallest: int


class ShardedBatches(Sampler[list[int]]):
    """The indices of a rank's part of each batch.

    Args:
        batches: Yields the indices of whole batches.
        shard: The rank.
        limit: Number of batches at most; None for all.
        is_told: Whether the batches are chosen by chance, so that only rank 0's count.
    """

    def __init__(self, batches: Any, shard: Shard, *, limit: int | None, is_told: bool) -> None:
        self._batches, self._shard, self._limit, self._is_told = batches, shard, limit, is_told
        self.sizes: deque[int] = deque()  # of whole batches that were given to the loader and not yet taken from it

    def __iter__(self) -> Iterator[list[int]]:
        self.sizes.clear()
        batches: Iterable[list[int]] = itertools.islice(self._batches, self._limit)
        for batch in group.told(list(batches)) if self._is_told else batches:
            self.sizes.append(len(batch))
            yield list(batch[self._shard.part_of(len(batch))]) or list(batch[:1])

    def __len__(self) -> int:
        return len(self._batches)


class Sharded:
    """The batches of a loader, of which each rank computes its part.

    Args:
        loader: Yields the rank's parts if there is a sampler of them, else whole batches.
        shard: The rank.
        sampler: What chooses the parts; None to take them from whole batches.
    """

    def __init__(self, loader: Any, shard: Shard, sampler: ShardedBatches | None = None) -> None:
        self._loader, self._shard, self._sampler = loader, shard, sampler

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Part]:
        for batch in self._loader:
            total = num_examples(batch) if self._sampler is None else self._sampler.sizes.popleft()
            part = self._shard.part_of(total)
            number = part.stop - part.start
            examples = batch
            if self._sampler is None:
                examples = take_examples(batch, part if number else slice(1))
            yield Part(examples, number, total, max(total // self._shard.size, 1))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)

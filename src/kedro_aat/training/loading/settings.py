"""Settings of what a batch holds and how it is loaded; see `form` and `loaders`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

from pydantic import Field, field_validator

from kedro_aat.imports import Imported, ImportedOrPath
from kedro_aat.validated import Settings

Key = int | str  # position or name of a part of a batch; `meta.age` is a part of a part


class BatchSettings(Settings):
    """Which parts of a batch are inputs and targets, by name or position.

    Attributes:
        inputs: One part, which is the model's only argument as it is, or a list: names become keyword arguments of the
            model, and positions positional ones. None takes the first of a pair, or the usual names.
        targets: One part, or a list: the loss takes all of them in one dictionary (of names) or tuple (of positions),
            and the metric takes the first. None takes the second of a pair, or the usual name.
        weights: One part, the weight of each example in the loss of the training: 1 for a usual one, 0 for one that is
            not to count. Metrics do not read it. None weighs all examples alike.
    """

    inputs: Key | list[Key] | None = None
    targets: Key | list[Key] | None = None
    weights: Key | None = None

    @field_validator("inputs", "targets", "weights", mode="before")
    @classmethod
    def _names_or_positions(cls, keys: object) -> object:
        kinds = [type(key) for key in keys] if isinstance(keys, list | tuple) else [type(keys)]
        if keys is not None and set(kinds) not in ({str}, {int}):
            raise ValueError(f"must be a name, a position, or a list of names or of positions, but got {keys!r:.60}")
        return keys


class LoaderSettings(Settings):
    """How batches are loaded, beside `batch_size` and `num_workers`; a data loader of the user's is used as it is.

    The order of the training examples is drawn anew for each epoch from the run's seed and the number of the epoch.

    Attributes:
        collate_fn: Makes a batch of a list of examples: a function, or a class with its arguments. None stacks them.
        sampler: Chooses the training examples of an epoch; called with those of `data_source`, `dataset` and
            `generator` that it has parameters for. None shuffles all.
        batch_sampler: The same for whole batches; may take `sampler`, `batch_size` and `drop_last`, too.
        worker_init_fn: Function that each worker process calls first, with its number.
        pin_memory: Whether batches are copied to page-locked memory; None does so with a GPU.
        persistent_workers: Whether worker processes stay from epoch to epoch; they are seeded anew for each. None lets
            them stay unless there is a `worker_init_fn`, or the dataset has a random generator of its own, whose state
            would go on with them. A dataset that yields its examples has new ones in any case.
        prefetch_factor: Batches that each worker loads in advance; None leaves it to torch.
        on_device: Whether splits of tensors without a `collate_fn` stay on the device of the training, where later
            changes of them are not seen; None lets those stay on a CUDA GPU that take at most a tenth of its free
            memory.
        steps_per_epoch: Optimizer steps in an epoch, at most; None for one pass over the training split. Needed for a
            split that never ends.
    """

    collate_fn: ImportedOrPath | None = None
    sampler: ImportedOrPath | None = None
    batch_sampler: ImportedOrPath | None = None
    worker_init_fn: ImportedOrPath | None = None
    pin_memory: bool | None = None
    persistent_workers: bool | None = None
    prefetch_factor: Annotated[int, Field(ge=1, le=1024)] | None = None
    on_device: bool | None = None
    steps_per_epoch: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None

    @property
    def imported(self) -> Iterator[tuple[str, Imported]]:
        """What is named by an import path, by its key."""
        for key in ("collate_fn", "sampler", "batch_sampler", "worker_init_fn"):
            if (named := getattr(self, key)) is not None:
                yield key, named

    def lookup_mistakes(self, key: str) -> list[str]:
        """Paths that cannot be imported, and unknown arguments."""
        found = super().lookup_mistakes(key)
        if self.sampler is not None and self.batch_sampler is not None:
            found.append(f"{key}.batch_sampler: chooses the examples, so that sampler must be left out")
        return found


def function_of(named: Imported) -> Any:
    """A function as it is, or with some arguments bound; an object of a class."""
    target = named.load()
    if inspect.isclass(target):
        return named.make()
    return partial(target, **named.init_args) if named.init_args else target

"""Batches of a split for one epoch, from data of any form."""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler

from kedro_aat.errors import DataError
from kedro_aat.model_inputs import map_tensors
from kedro_aat.training.guards.watchdog import Watchdog, WatchedLoader
from kedro_aat.training.loading.datasets import Loaded, Streamed, differs, plain_tensors, stacked
from kedro_aat.training.loading.on_device import OnDevice, fits
from kedro_aat.training.loading.settings import function_of
from kedro_aat.training.loading.workers import LoadedByWorkers, WantedBatches, as_loaded, holds_generator
from kedro_aat.training.ranks.sharding import Shard, Sharded, ShardedBatches
from kedro_aat.training.settings import TrainingSettings

# Shuffling has its own generator for each seed and epoch; a prime stride keeps those of different seeds apart.
EPOCHS_PER_SEED = 1_000_003
# Arguments of a data loader with which another one is made.
_OPTIONS = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator"),
    "prefetch_factor",
)

logger = logging.getLogger(__name__)


class Loaders:
    """Makes the batches of training and validation.

    The order of the training examples is a function of seed and epoch, where the data allow it: samplers get a
    generator, and what has a method `set_epoch` is told the epoch.

    Args:
        settings: Settings of the training.
        device: Device of the model.
        seed: Seed of shuffling.
        shard: Which part of each batch this rank loads; None in a single process.
        plain: Whether loaders are torch's own with its own batches, for functions of the user's.

    Attributes:
        validation_batch_size: Examples in a batch of a split that judges models.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        device: torch.device,
        seed: int,
        shard: Shard | None = None,
        *,
        plain: bool = False,
    ) -> None:
        self._settings, self._seed, self._shard, self._plain = settings, seed, shard, plain
        self._device, own = device, settings.loader
        self._collate = None if own.collate_fn is None else function_of(own.collate_fn)
        # Elsewhere than on a GPU, larger batches take up to 1.3 times as long (ResNet-18, one thread of a CPU).
        enlarges = device.type == "cuda" and self._collate is None and shard is None and not plain
        self.validation_batch_size = settings.validation_batch_size or settings.batch_size * (4 if enlarges else 1)
        self._generator = torch.Generator()
        self._kept: dict[bool, tuple[Any, Any, WantedBatches]] = {}  # for training or not: dataset, loader, its sampler
        self._on_device: dict[bool, tuple[Any, Any]] = {}  # the same: dataset and its tensors, or None
        pins = device.type == "cuda" if own.pin_memory is None else own.pin_memory
        self._options: dict[str, Any] = {"num_workers": settings.num_workers, "pin_memory": pins}
        if settings.num_workers:
            init = None if own.worker_init_fn is None else function_of(own.worker_init_fn)
            self._options |= {
                "worker_init_fn": ignore_ctrl_c if init is None else partial(_initialized, init),
                "prefetch_factor": own.prefetch_factor,
            }

    def training(self, dataset: Any, epoch: int) -> Any:
        """The shuffled batches of one epoch, without a last smaller one, whose BatchNorm statistics would be poor."""
        self._generator = torch.Generator()
        self._generator.manual_seed((self._seed * EPOCHS_PER_SEED + epoch) % 2**63)
        limit = self._settings.loader.steps_per_epoch
        if isinstance(dataset, Loaded):
            _begin_epoch(dataset.loader, epoch, self._generator)
            return self._passed(dataset.loader, limit, is_training=True)
        _set_epoch(dataset.dataset if isinstance(dataset, Streamed) else dataset, epoch)
        loader = self._loader(dataset, is_training=True, epoch=epoch)
        return loader if limit is None else Passed(loader, None, limit)

    def validation(self, dataset: Any) -> Any:
        """The batches of a split that judges models, in its own order."""
        if isinstance(dataset, Loaded):
            return self._passed(dataset.loader, None, is_training=False)
        return self._loader(dataset, is_training=False)

    def _passed(self, loader: DataLoader[Any], limit: int | None, *, is_training: bool) -> Any:
        """The batches of a loader of the user's, or this rank's parts of them."""
        timeout = self._settings.step_timeout_seconds
        if self._shard is None:
            return Passed(loader, timeout, limit)
        chooses = type(loader) is DataLoader and loader.batch_sampler is not None
        if not chooses or isinstance(loader.dataset, IterableDataset):  # each rank loads whole batches
            return Sharded(Passed(loader, timeout, limit), self._shard)
        parts = ShardedBatches(loader.batch_sampler, self._shard, limit=limit, is_told=is_training)
        options = {name: getattr(loader, name) for name in _OPTIONS}
        loader = DataLoader(loader.dataset, batch_sampler=parts, **options)
        return Sharded(Passed(loader, timeout), self._shard, parts)

    def _loader(self, dataset: Any, *, is_training: bool, epoch: int | None = None) -> Any:
        own = self._settings.loader
        if isinstance(dataset, Streamed):
            ends = own.steps_per_epoch is None or not is_training
            size = self._settings.batch_size if is_training else self.validation_batch_size
            drop_last = is_training and (not ends or len(dataset) > size)
            options: dict[str, Any] = {"batch_size": size, "drop_last": drop_last}
            whole = self._made(dataset, collate_fn=self._collate or stacked, **options)
            return whole if self._shard is None else Sharded(whole, self._shard)
        options, batches = self._batches(dataset, is_training=is_training)
        tensors = self._tensors_on_device(dataset, is_training=is_training)
        if tensors is not None:
            limit = own.steps_per_epoch if is_training else None
            made: Any = OnDevice(dataset, tensors, batches, self._device, limit)
            timeout = self._settings.step_timeout_seconds
            made = made if timeout is None else Passed(made, timeout)
        elif self._keeps_workers(dataset):
            made = self._with_kept_workers(dataset, batches, is_training=is_training, epoch=epoch)
        else:
            made = self._made(dataset, **options)
        return made if self._shard is None else Sharded(made, self._shard, batches)

    def _with_kept_workers(
        self, dataset: Any, batches: Any, *, is_training: bool, epoch: int | None
    ) -> DataLoader[Any]:
        """A loader whose workers stay; batches are chosen anew for each pass, as a sampler may belong to one epoch."""
        if (kept := self._kept.get(is_training)) is None or kept[0] is not dataset:
            collate = None if plain_tensors(dataset) and self._collate is None else self._collate or stacked
            wanted = WantedBatches()
            # Seeds are those of the batches; a generator for torch's own leaves the one of the process alone.
            made = self._made(
                LoadedByWorkers(dataset, collate),
                sampler=wanted,
                batch_size=None,
                collate_fn=as_loaded,
                persistent_workers=True,
                generator=torch.Generator(),
            )
            kept = self._kept[is_training] = dataset, made, wanted
        _, loader, wanted = kept
        wanted.choose(batches, epoch)
        return loader

    def _batches(self, dataset: Any, *, is_training: bool) -> tuple[dict[str, Any], Any]:
        """Arguments of torch's loader that choose the examples of each batch, and what yields their indices."""
        size, own = self._settings.batch_size if is_training else self.validation_batch_size, self._settings.loader
        drop_last = is_training and len(dataset) > size
        sampler: Any = SequentialSampler(dataset)
        batches: Any = None
        if is_training:
            known = {"data_source": dataset, "dataset": dataset, "generator": self._generator}
            sampler = RandomSampler(dataset, generator=self._generator)
            if own.sampler is not None:
                sampler = own.sampler.make(**known)
            if own.batch_sampler is not None:
                known |= {"sampler": sampler, "batch_size": size, "drop_last": drop_last}
                batches = own.batch_sampler.make(**known)
        indexes_many = plain_tensors(dataset) and self._collate is None  # one indexing, with nothing to collate
        usual = batches is None
        if batches is None:
            batches = BatchSampler(sampler, size, drop_last)
        if self._shard is not None:
            is_told = is_training and (own.sampler or own.batch_sampler) is not None
            limit = own.steps_per_epoch if is_training else None
            batches = ShardedBatches(batches, self._shard, limit=limit, is_told=is_told)
        if indexes_many:
            return {"sampler": batches, "batch_size": None}, batches
        collate = self._collate or stacked
        if not usual or self._shard is not None:
            return {"batch_sampler": batches, "collate_fn": collate}, batches
        chosen = {"sampler": sampler, "batch_size": size, "drop_last": drop_last, "collate_fn": collate}
        return chosen, batches

    def _made(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        timeout = self._settings.step_timeout_seconds
        loader: Callable[..., DataLoader[Any]] = DataLoader if timeout is None else partial(WatchedLoader, timeout)
        return loader(dataset, **self._options, **options)

    def _keeps_workers(self, dataset: Any) -> bool:
        """Whether the processes that load a dataset stay from epoch to epoch."""
        own = self._settings.loader
        if not self._settings.num_workers or own.persistent_workers is not None:
            return bool(self._settings.num_workers and own.persistent_workers)
        return not self._plain and own.worker_init_fn is None and not holds_generator(dataset)

    def _tensors_on_device(self, dataset: Any, *, is_training: bool) -> Any:
        """The tensors of a dataset on the device of the training, if they stay there; None if not."""
        stays = self._settings.loader.on_device
        if self._plain or stays is False or self._collate is not None or not plain_tensors(dataset):
            return None
        if (known := self._on_device.get(is_training)) is None or known[0] is not dataset:
            self._on_device.pop(is_training, None)  # its memory is free again
            tensors = None
            if stays or fits(dataset.tensors, self._device):
                tensors = map_tensors(lambda tensor: tensor.to(self._device), dataset.tensors)
            known = self._on_device[is_training] = dataset, tensors
        return known[1]

    @property
    def collate(self) -> Callable[[list[Any]], Any] | None:
        """The user's own function that makes a batch of examples; None if there is none."""
        return self._collate


class Passed:
    """Batches of a loader as they come, at most so many, and each within a time limit.

    Args:
        loader: The loader.
        timeout: Seconds for a batch and its step; None for no limit.
        limit: Number of batches at most; None for all.
    """

    def __init__(self, loader: Any, timeout: float | None, limit: int | None = None) -> None:
        self.loader, self._timeout, self._limit = loader, timeout, limit

    def __iter__(self) -> Iterator[Any]:
        watchdog = None if self._timeout is None else Watchdog(self._timeout)
        try:
            for batch in itertools.islice(self.loader, self._limit):
                if watchdog is not None:
                    watchdog.restart()
                yield batch
        finally:
            if watchdog is not None:
                watchdog.stop()

    def __len__(self) -> int:
        if self._limit is None:
            return _num_batches(self.loader)
        dataset = self.loader.dataset
        endless = isinstance(dataset, IterableDataset)  # as a `Streamed` one is
        return self._limit if endless else min(self._limit, len(self.loader))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def _num_batches(loader: DataLoader[Any]) -> int:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # a dataset without a length
        count = len(Loaded(loader))
        size = loader.batch_size
        return count if size is None else count // size if loader.drop_last else -(-count // size)


def require_batches(number: int) -> None:
    """Makes sure that an epoch had batches.

    Raises:
        DataError: If it had none.
    """
    if not number:
        raise DataError("The training split gave 0 batches: give it more examples, or a smaller batch size.")


def warn_of_chance(dataset: Any) -> None:
    """Says what of the order of the training examples a resumed run may not repeat."""
    loader = dataset.loader if isinstance(dataset, Loaded) else None
    source = dataset.dataset if isinstance(dataset, Streamed) else dataset if loader is None else loader.dataset
    unknown = None
    if isinstance(source, IterableDataset) or isinstance(dataset, Streamed):
        if not hasattr(source, "set_epoch") and differs(source):
            unknown = source
    elif loader is not None:
        chosen = [part for part in _samplers(loader) if type(part) not in (SequentialSampler, BatchSampler)]
        unknown = next((part for part in chosen if not hasattr(part, "generator") and not _is_told(part)), None)
    if unknown is not None:
        logger.warning(
            "The order in which %s gives the training examples is its own: a run that is resumed may see another one "
            "than a run without interruption. With a method set_epoch(epoch) that seeds it, both see the same.",
            type(unknown).__qualname__,
        )


def _is_told(part: Any) -> bool:
    return callable(getattr(part, "set_epoch", None))


def _set_epoch(part: Any, epoch: int) -> None:
    if _is_told(part):
        part.set_epoch(epoch)


def _samplers(loader: DataLoader[Any]) -> list[Any]:
    found = [loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
    return list({id(part): part for part in found if isinstance(part, Sampler)}.values())


def _begin_epoch(loader: DataLoader[Any], epoch: int, generator: torch.Generator) -> None:
    """Makes the order of a loader of the user's a function of the generator's seed and the epoch."""
    for part in [loader.dataset, *_samplers(loader)]:
        _set_epoch(part, epoch)
    for part in [loader, *_samplers(loader)]:
        if getattr(part, "generator", None) is not None:
            part.generator.manual_seed(generator.initial_seed())
        elif hasattr(part, "generator") and part is not loader:
            part.generator = generator


def _initialized(function: Callable[[int], object], worker: int) -> None:
    ignore_ctrl_c(worker)
    function(worker)


def ignore_ctrl_c(worker: int) -> None:
    """Lets a worker load the rest of the epoch; a terminal sends Ctrl-C to it, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

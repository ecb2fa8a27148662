"""Finds examples that depend on each other: windows that overlap, and exact copies."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from kedro_aat.model_inputs import ModelInputs, tensors_in
from kedro_aat.training.data import Data, as_dataset
from kedro_aat.training.loading.datasets import batches_of_one, plain_tensors
from kedro_aat.training.loading.form import BatchForm
from kedro_aat.training.loading.settings import BatchSettings, function_of
from kedro_aat.training.random_state import rng_state, set_rng_state
from kedro_aat.training.settings import TrainingSettings

# Windows that are searched for the beginnings of others.
NUM_PROBES = 256
# Numbers that are hashed of all examples together, so that it takes at most about 0.1 s.
MAX_HASHED = 2**20
# Steps of a beginning that is searched for.
NUM_STEPS = 8
# Positions of an example that are hashed to find copies.
NUM_POSITIONS = 64
# Examples that are read of a dataset that is no tensor, and seconds after which reading ends.
MAX_READ, READING_SECONDS = 512, 0.1
# Share of the examples from which one is warned; fewer happen in any collection.
MIN_OVERLAPPING, MIN_COPIES, MIN_FOUND = 0.05, 0.01, 5
# Accidental matches that are expected in the whole split, at most.
MAX_ACCIDENTAL = 0.01
# Different numbers that an example has at least, if its copy is to be no accident.
MIN_DISTINCT = 8

Hashes = NDArray[np.uint64]


def dependence_warning(
    data: Data, split: str = "validation", groups: Tensor | None = None, training: TrainingSettings | None = None
) -> str | None:
    """Says which examples of a split seem to depend on each other, and what to do; None if none do.

    Windows (N, T), (N, C, T) or (N, T, C) overlap if one ends as another one begins, wherever that is in the split.
    Stretches that agree by accident, as constant ones or those of few values do, do not count. Nor do copies of
    examples that have few values, such as rows of a one-hot table, and token ids. Of a large split a part is looked at.

    Args:
        data: The split.
        split: Its name.
        groups: The group of each example, (N,), within which examples may depend on each other; None for no groups.
        training: Says what of a batch is input; None for the defaults.
    """
    inputs = _inputs(data, training)
    if inputs is None or len(inputs) < MIN_FOUND or inputs.ndim < 2 or not inputs.numel():
        return None
    numbers = None if groups is None else groups.cpu().numpy()
    is_floating = inputs.is_floating_point()
    generator = np.random.default_rng(0)
    share = 0.0
    if is_floating and inputs.ndim in (2, 3):
        layouts = [inputs[..., None]] if inputs.ndim == 2 else [inputs, inputs.transpose(1, 2)]
        share = max(_overlapping(windows, numbers, generator) for windows in layouts)
    found = f"About {share:.0%} of the {len(as_dataset(data, split)):,} {split} examples"
    so = "so that they are worth fewer examples: standard errors come out too small, and a certificate may be wrong."
    if share >= MIN_OVERLAPPING:
        return (
            f"{found} overlap with another one, as windows of one series do, {so} Name the groups that they belong to "
            "(`certificate.group`), such as their series, or use windows that do not overlap."
        )
    share = _copies(inputs, numbers, generator) if is_floating or inputs.ndim > 2 else 0.0
    if share >= MIN_COPIES:
        found = f"About {share:.0%} of the {len(as_dataset(data, split)):,} {split} examples"
        return (
            f"{found} are exact copies of another one, {so} Remove the copies, or name the groups that they belong to "
            "(`certificate.group`)."
        )
    return None


def _inputs(data: Data, training: TrainingSettings | None) -> Tensor | None:
    """The inputs of a split, or the first of them if they must be read one by one; None if they are no numbers.

    Several inputs of an example, such as two images, count as one vector.
    """
    batch = None if training is None else training.batch
    dataset, before, read = as_dataset(data, "given", batch), rng_state(), []
    if type(dataset) is TensorDataset and batch in (None, BatchSettings()):
        return dataset.tensors[0]
    form = BatchForm(batch or BatchSettings(), None, "given")
    if plain_tensors(dataset):
        return _one_tensor(form(dataset[:])[0])
    end = time.monotonic() + READING_SECONDS
    own = None if training is None else training.loader.collate_fn
    batches = batches_of_one(dataset, None if own is None else function_of(own))
    for batch_of_one in itertools.islice(batches, MAX_READ):
        tensors = [part[0] for part in tensors_in(form(batch_of_one)[0]) if part.dim()]
        if not tensors:
            break
        read.append(tensors)
        if time.monotonic() > end:
            break
    set_rng_state(before)
    if len({tuple(part.shape for part in parts) for parts in read}) != 1:
        return None
    return _one_tensor([torch.stack(parts) for parts in zip(*read, strict=True)])


def _one_tensor(inputs: ModelInputs) -> Tensor | None:
    """The only tensor; or all of them as vectors in one, (N, ...)."""
    tensors = list(tensors_in(inputs))
    if len(tensors) == 1:
        return tensors[0]
    if not tensors or len({len(tensor) if tensor.dim() else 0 for tensor in tensors}) != 1:
        return None
    joined = torch.cat([tensor.reshape(len(tensor), -1).double() for tensor in tensors], 1)
    return joined if any(tensor.is_floating_point() for tensor in tensors) else joined.long()


def _overlapping(windows: Tensor, groups: NDArray[Any] | None, generator: np.random.Generator) -> float:
    """Share of the windows (N, T, C) whose end is the beginning of another one."""
    num_windows, length, num_channels = windows.shape
    num_steps = min(NUM_STEPS, length // 2)
    if num_steps < 2:
        return 0.0
    factors = generator.integers(2**63, size=num_channels, dtype=np.uint64) | np.uint64(1)
    powers = generator.integers(2**63, size=num_steps, dtype=np.uint64) | np.uint64(1)
    # A part of the windows, whole blocks of neighbors, if there are too many.
    known = _chosen(num_windows, MAX_HASHED // (num_steps * num_channels), generator)
    probes = known[_chosen(len(known), max(1, min(NUM_PROBES, MAX_HASHED // (length * num_channels))), generator)]
    beginnings = _hashed(windows[torch.from_numpy(known), :num_steps], factors)  # (K, steps)
    searched = _hashed(windows[torch.from_numpy(probes)], factors)  # (P, T)
    changes = (beginnings[:, 1:] != beginnings[:, :-1]).sum(1)
    known, beginnings = known[changes > 0], beginnings[changes > 0]
    if not len(known):
        return 0.0
    keys = beginnings @ powers
    order = np.argsort(keys)
    keys, known = keys[order], known[order]
    ends = np.lib.stride_tricks.sliding_window_view(searched, num_steps, axis=1)[:, 1:] @ powers  # (P, T - steps)
    positions = np.minimum(np.searchsorted(keys, ends), len(keys) - 1)
    needed = _changes_needed(searched, num_windows)
    found = 0
    rows, offsets = np.nonzero(keys[positions] == ends)
    for row in np.unique(rows):
        for offset in offsets[rows == row][:4]:  # the longest stretches
            other = known[positions[row, offset]]
            end = searched[row, offset + 1 :]
            is_long = len(end) * 10 >= length and (end[1:] != end[:-1]).sum() >= needed
            if other == probes[row] or not is_long or (groups is not None and groups[other] == groups[probes[row]]):
                continue
            if np.array_equal(_hashed(windows[int(other)][None, : len(end)], factors)[0], end):
                found += 1
                break
    return found / len(probes) if found >= min(MIN_FOUND, len(probes)) else 0.0


def _chosen(number: int, most: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Numbers below `number` in rising order: all, or at most `most`, half of them in one block and half at random."""
    if number <= most:
        return np.arange(number)
    start = int(generator.integers(number - most // 2))
    block = np.arange(start, start + most // 2)
    return np.union1d(block, generator.choice(number, most - len(block), replace=False))


def _hashed(numbers: Tensor, factors: Hashes) -> Hashes:
    """Hashes of the last axis of numbers (..., C)."""
    bits = (numbers.detach().cpu().float() + 0.0).contiguous().numpy().view(np.uint32).astype(np.uint64)
    return np.asarray(bits @ factors)


def _changes_needed(searched: Hashes, num_windows: int) -> float:
    """Number of changes from step to step in a stretch that hardly agrees with another one of the split by accident.

    The chance that two stretches agree is estimated as in a Markov chain, by how often two steps of one window agree,
    and two pairs of steps. Only changes count, so a constant stretch never suffices. That is careful: windows of few
    values that change rarely are not found, but 64 gray values of a digit are not mistaken for a series either.
    """
    single, double = (_collisions(steps) for steps in (searched, searched[:, 1:] * np.uint64(3) + searched[:, :-1]))
    first = max(single, 1e-3)
    following = min(max(double / first, 1e-3), 0.99)
    return float(np.log(MAX_ACCIDENTAL / (num_windows * searched.shape[1] * first)) / np.log(following))


def _collisions(steps: Hashes) -> float:
    """Share of the pairs of steps of one window that are equal."""
    num_steps = steps.shape[1]
    ordered = np.sort(steps, axis=1)
    starts = np.ones(ordered.shape, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counts = np.diff(np.append(np.nonzero(starts.ravel())[0], starts.size)).astype(np.float64)
    return float((counts * (counts - 1)).sum() / (len(steps) * num_steps * max(1, num_steps - 1)))


def _copies(inputs: Tensor, groups: NDArray[Any] | None, generator: np.random.Generator) -> float:
    """Share of the examples (N, ...) that are exact copies of another one, and no accident."""
    flat = inputs.reshape(len(inputs), -1)
    width = flat.shape[1]
    places = np.sort(generator.choice(width, min(NUM_POSITIONS, width), replace=False))
    known = _chosen(len(flat), MAX_HASHED // len(places), generator)
    sample = flat[torch.from_numpy(known)][:, torch.from_numpy(places)]
    factors = generator.integers(2**63, size=len(places), dtype=np.uint64) | np.uint64(1)
    keys = _hashed(sample, factors)
    order = np.argsort(keys, kind="stable")
    pairs = np.nonzero(keys[order][1:] == keys[order][:-1])[0]
    if not len(pairs):
        return 0.0
    has_measurements = any(len(column.unique()) * 10 > len(sample[:1000]) for column in sample[:1000].T)
    chosen = generator.choice(pairs, min(len(pairs), NUM_PROBES), replace=False)
    num_equal = 0
    for first, second in zip(known[order[chosen]], known[order[chosen + 1]], strict=True):
        if groups is not None and groups[first] == groups[second]:
            continue
        example = flat[int(first)]
        if torch.equal(example, flat[int(second)]):
            num_equal += has_measurements or len(example[:4096].unique()) >= MIN_DISTINCT
    found = len(pairs) * num_equal / len(chosen)
    return found / len(known) if found >= MIN_FOUND else 0.0

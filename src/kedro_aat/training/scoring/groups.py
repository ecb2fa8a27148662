"""Groups of examples that depend on each other, such as the frames of one patient or the windows of one series."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from kedro_aat.errors import DataError, MetricError
from kedro_aat.tensors import hash_tensors
from kedro_aat.training.callables import Evaluation
from kedro_aat.training.data import Data, as_dataset
from kedro_aat.training.loading.datasets import Loaded, examples_in


def groups_of(data: Data, name: str | None, split: str = "validation") -> Tensor | None:
    """The group of each example of a split.

    Args:
        data: The split: a mapping with one more key, or a dataset with one more attribute or method; a `Subset` of
            such a dataset will do. The values are numbers or texts, one per example.
        name: Name of that key or attribute; None if each example counts for itself.
        split: Name of the split, for errors.

    Returns:
        Numbers from 0, (N,) int64; None if there are no groups.

    Raises:
        DataError: If the split has no such key, if there is not one value for each example, if a value is missing, or
            if all examples belong to one group.
    """
    from pandas import isna

    if name is None:
        return None
    num_examples = len(as_dataset(data, split))
    values = _values_of(data, name, split)
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    names = np.asarray(values)
    if names.shape != (num_examples,):
        raise DataError(
            f"The {split} split has {num_examples} examples, but {name}, which names their groups, has the shape "
            f"{names.shape}. Give one value for each example."
        )
    if num_missing := int(isna(names).sum()):
        raise DataError(
            f"{num_missing} of {num_examples} examples of the {split} split have no {name}. Give each its group; an "
            "example that depends on no other one is a group of its own."
        )
    found, numbers = np.unique(names.astype(str) if names.dtype == object else names, return_inverse=True)
    if len(found) == 1:
        raise DataError(
            f"All {num_examples} examples of the {split} split have the same {name} ({found[0]}), so nothing is known "
            "of other groups. Split the data so that each split has many whole groups."
        )
    return torch.from_numpy(numbers.astype(np.int64))


def _values_of(data: Data, name: str, split: str) -> Any:
    if isinstance(data, Subset):
        of_all = _values_of(data.dataset, name, split)  # type: ignore[arg-type]  # torch's datasets promise no length
        return [of_all[index] for index in data.indices]
    if isinstance(data, DataLoader):
        loaded = Loaded(data)
        if isinstance(data.dataset, IterableDataset) or data.batch_size is None:
            return _values_in_examples(loaded, name, split)
        of_all = _values_of(data.dataset, name, split)  # type: ignore[arg-type]  # as above
        return [of_all[index] for batch in loaded.index_batches() for index in batch]
    if isinstance(data, Mapping):
        if name not in data:
            raise DataError(
                f"The {split} split has no {name}, which certificate.group (or training.group) names: it has "
                f"{', '.join(data)}. Add one value for each example under that key."
            )
        return data[name]
    if not hasattr(data, name):
        if isinstance(first := next(examples_in(as_dataset(data, split)), None), Mapping) and name in first:
            return _values_in_examples(as_dataset(data, split), name, split)
        own = ", ".join(key for key in vars(data) if not key.startswith("_")) or "none"
        raise DataError(
            f"The {split} split, a {type(data).__name__}, has no attribute {name}, which certificate.group (or "
            f"training.group) names; its own attributes: {own}. Add one with one value for each example."
        )
    values = getattr(data, name)
    return values() if callable(values) else values


def _values_in_examples(dataset: Any, name: str, split: str) -> list[Any]:
    """The groups that the examples themselves hold under a name."""
    found = []
    for example in examples_in(dataset):
        if not isinstance(example, Mapping) or name not in example:
            raise DataError(
                f"Examples of the {split} split have no {name}, which certificate.group (or training.group) names. "
                "Let each be a mapping with one value under that key."
            )
        value = example[name]
        found.append(value.item() if isinstance(value, Tensor) else value)
    return found


def identity_of_groups(data: Data, name: str | None) -> dict[str, str]:
    """What identifies the groups of a split as part of a run, as JSON data; empty without groups."""
    groups = groups_of(data, name)
    return {} if groups is None else {"groups": hash_tensors([("groups", groups)])}


def with_groups(validate: Callable[..., Any], groups: Tensor | None) -> Callable[..., Any]:
    """A validation function whose evaluations know the groups of the examples.

    Args:
        validate: The function; what it says of groups itself is left as it is.
        groups: The group of each example, (N,); None leaves the function as it is.
    """
    if groups is None:
        return validate

    @wraps(validate)
    def grouped(*args: Any, **kwargs: Any) -> Any:
        evaluation = validate(*args, **kwargs)
        if not isinstance(evaluation, Evaluation) or evaluation.groups is not None:
            return evaluation
        if evaluation.scores is not None and len(evaluation.scores) != len(groups):
            raise MetricError(
                f"the validation returned {len(evaluation.scores)} scores, but the groups of {len(groups)} examples "
                "are known. Return one score for each example, or Evaluation(..., groups=...) with those of the scores."
            )
        return replace(evaluation, groups=groups)

    return grouped

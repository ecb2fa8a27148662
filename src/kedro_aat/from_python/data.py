"""The splits that a caller gives, as the pipeline's nodes take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from kedro_aat.errors import DataError
from kedro_aat.training.data import Data
from kedro_aat.training.loading.datasets import as_tensors


def as_data(given: Any, split: str) -> Data:
    """A split as the training reads it.

    Args:
        given: A pair of inputs and targets (tensors, NumPy arrays, pandas tables or lists of numbers; inputs may be a
            mapping of them), or anything that the pipeline takes: a mapping of tensors, a dataset, a data loader.
            What is no tensor becomes one: of float64, float32, like the model's weights; of integers, int64, but for
            pixels (uint8).
        split: Its name, for errors.

    Raises:
        DataError: If it is none of these.
    """
    if isinstance(given, tuple | list) and len(given) == 2 and all(map(_is_array, given)):
        return {"inputs": _as_tensors(given[0]), "targets": _as_tensors(given[1])}
    if isinstance(given, Mapping):
        return {name: _as_tensors(part) if _is_array(part) else part for name, part in given.items()}
    if hasattr(given, "__array__") or (isinstance(given, tuple | list) and len(given) < 3):
        raise DataError(
            f"The {split} split has inputs without targets: give a pair (inputs, targets) of tensors, or a dataset of "
            "such pairs."
        )
    if hasattr(given, "__getitem__") or hasattr(given, "__iter__"):
        data: Data = given
        return data
    raise DataError(
        f"The {split} split is a {type(given).__name__}: give a pair (inputs, targets) of tensors, a dataset, or a "
        "data loader."
    )


def _is_array(part: Any) -> bool:
    if isinstance(part, Mapping):
        return all(map(_is_array, part.values()))
    return hasattr(part, "__array__") or (isinstance(part, list) and bool(part) and _is_regular(part))


def _is_regular(part: list[Any]) -> bool:
    try:
        return np.asarray(part).dtype != object
    except (ValueError, TypeError, RuntimeError):  # rows of several lengths, or tensors that NumPy cannot hold
        return False


def _as_tensors(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {name: _as_tensors(value) for name, value in part.items()}
    if isinstance(part, Tensor):
        return part
    made = as_tensors(np.asarray(part))
    if not isinstance(made, Tensor):  # objects, text, dates
        raise DataError("A column holds something else than numbers: encode it as numbers first.")
    return made

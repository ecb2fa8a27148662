"""Splits in the forms in which callers have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kedro_aat.errors import DataError
from kedro_aat.from_python.data import as_data

TABLE = pd.DataFrame({"age": [31.5, 40.0], "visits": [1.0, 7.0]})


@pytest.mark.parametrize(
    ("given", "inputs", "targets"),
    [
        ((np.zeros((2, 3)), np.array([0, 1], dtype=np.int32)), ((2, 3), torch.float32), ((2,), torch.int64)),
        ((TABLE, pd.Series([0.5, 1.5])), ((2, 2), torch.float32), ((2,), torch.float32)),
        ((torch.zeros(2, 3, dtype=torch.float64), [0, 1]), ((2, 3), torch.float64), ((2,), torch.int64)),
        ((np.zeros((2, 4), dtype=np.uint8), np.zeros((2, 1))), ((2, 4), torch.uint8), ((2, 1), torch.float32)),
        ([[[1.0], [2.0]], [0, 1]], ((2, 1), torch.float32), ((2,), torch.int64)),
    ],
)
def test_pairs(given: Any, inputs: Any, targets: Any) -> None:
    data: Any = as_data(given, "training")
    assert (data["inputs"].shape, data["inputs"].dtype) == inputs
    assert (data["targets"].shape, data["targets"].dtype) == targets


def test_several_inputs_by_name() -> None:
    data: Any = as_data(({"ids": np.zeros((2, 5), dtype=np.int32), "mask": np.ones((2, 5))}, [0, 1]), "training")
    assert data["inputs"]["ids"].dtype == torch.int64
    assert data["inputs"]["mask"].dtype == torch.float32


def test_datasets_and_loaders_stay_what_they_are() -> None:
    dataset = TensorDataset(torch.zeros(3, 1), torch.zeros(3))
    loader = DataLoader(dataset)
    assert as_data(dataset, "training") is dataset
    assert as_data(loader, "training") is loader


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(3, 2), "The training split has inputs without targets: give a pair"),
        ((torch.zeros(3, 2),), "inputs without targets"),
        (np.zeros((3, 2)), "inputs without targets"),
        (TABLE, "inputs without targets"),
        ((TABLE, np.array(["no", "yes"])), "A column holds something else than numbers: encode"),
        ([[[1.0], [2.0, 3.0]], [0, 1]], "inputs without targets"),
        ((pd.DataFrame({"city": ["Bonn", "Lyon"]}), [0, 1]), "A column holds something else than numbers: encode"),
        (3, "The training split is a int: give a pair"),
        (None, "The training split is a NoneType"),
    ],
)
def test_what_is_no_split(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_data(given, "training")

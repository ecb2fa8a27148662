"""The ledger knows a split by its examples, in whatever order and form they come."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from kedro_aat.errors import DataError
from kedro_aat.training.data import data_fingerprint
from kedro_aat.training.fingerprints import split_hash
from kedro_aat.training.fingerprints.split_hash import former_fingerprint, former_fingerprints, split_fingerprint
from kedro_aat.training.loading.settings import BatchSettings
from tests.nets import images

SPLIT: Any = images(40)
ORDER = torch.randperm(40, generator=torch.Generator().manual_seed(1))


class Pairs(Dataset[Any]):
    def __init__(self, inputs: Any, targets: Any, *, noise: Any = False) -> None:
        self.inputs, self.targets, self.noise = inputs, targets, noise

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        noise = torch.rand(()) + np.random.rand() + random.random() if self.noise else 0
        return self.inputs[index] + noise, self.targets[index]


def reordered(split: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values[ORDER] for name, values in split.items()}


@pytest.mark.parametrize(
    "same",
    [
        reordered(SPLIT),
        {name: values.numpy() for name, values in SPLIT.items()},
        {"inputs": SPLIT["inputs"].double(), "targets": SPLIT["targets"].to(torch.int32)},
        {"inputs": SPLIT["inputs"].contiguous(memory_format=torch.channels_last), "targets": SPLIT["targets"]},
        {**SPLIT, "patient": torch.arange(40)},
        TensorDataset(*SPLIT.values()),
        Pairs(**SPLIT),
        Pairs(**reordered(SPLIT)),
        Pairs(**{name: values.numpy() for name, values in SPLIT.items()}),
        Pairs(SPLIT["inputs"], SPLIT["targets"].tolist()),
        Subset(Pairs(**SPLIT), ORDER.tolist()),
    ],
    ids=["order", "arrays", "types", "memory", "key", "tensors", "pairs", "order", "arrays", "numbers", "subset"],
)
def test_the_same_examples_are_the_same_split(same: Any) -> None:
    assert split_fingerprint(same) == split_fingerprint(SPLIT)


def test_what_numbers_have_several_forms_of() -> None:
    inputs = torch.tensor([[0.0, float("nan")], [1.0, 2.0]])
    others = torch.tensor([[-0.0, -float("nan")], [1.0, 2.0]])
    targets = torch.zeros(2)
    assert split_fingerprint({"inputs": inputs, "targets": targets}) == split_fingerprint(
        {"inputs": others, "targets": targets.bool()}
    )


@pytest.mark.parametrize(
    "other",
    [
        {name: values[:39] for name, values in SPLIT.items()},
        {name: torch.cat([values, values[:1]]) for name, values in SPLIT.items()},
        {"inputs": SPLIT["inputs"], "targets": SPLIT["targets"][ORDER]},
        {"inputs": SPLIT["inputs"] + 1e-3, "targets": SPLIT["targets"]},
        {"inputs": SPLIT["inputs"], "targets": SPLIT["targets"] + 1},
    ],
    ids=["fewer", "one twice", "other pairs", "inputs", "targets"],
)
def test_other_examples_are_another_split(other: dict[str, Tensor]) -> None:
    assert split_fingerprint(other) != split_fingerprint(SPLIT)
    assert split_fingerprint(Pairs(**other)) != split_fingerprint(SPLIT)


def test_parts_of_a_tensor_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = split_fingerprint(SPLIT)
    monkeypatch.setattr(split_hash, "CHUNK", 1)
    assert split_fingerprint(SPLIT) == whole


def test_random_augmentation_does_not_depend_on_the_order() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = split_fingerprint(Pairs(**SPLIT, noise=True))
    assert torch.equal(torch.rand(2), expected)
    assert split_fingerprint(Pairs(**reordered(SPLIT), noise=True)) == one


def test_texts_and_numbers_alone_are_examples_too() -> None:
    one = split_fingerprint(_Texts(["a", "b"]))
    assert split_fingerprint(_Texts(["b", "a"])) == one
    assert split_fingerprint(_Texts(["b", "c"])) != one


class _Texts(Dataset[Any]):
    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Any:
        return {"text": self.texts[index], "label": 1}


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(DataError, match="0 examples"):
        split_fingerprint({"inputs": torch.zeros(0, 3), "targets": torch.zeros(0)})


def test_entries_of_former_versions_are_found() -> None:
    tensors = {"inputs": torch.arange(6.0).reshape(3, 2), "targets": torch.arange(3)}
    assert former_fingerprint(tensors) == "d0a5b0bd2f259902c648dd1533f8f410"  # that of version 0.1.0
    assert former_fingerprint(Pairs(**tensors)) == "3-df5d42d5ca4c91da6a404f938c5515ea"


def test_the_order_of_the_names_does_not_count() -> None:
    tensors = {"numbers": torch.rand(5, 3), "kinds": torch.arange(5), "targets": torch.arange(5) % 2}
    batch = BatchSettings(inputs=["numbers", "kinds"], targets="targets")
    turned = dict(reversed(tensors.items()))
    assert split_fingerprint(tensors, batch) == split_fingerprint(turned, batch)
    assert data_fingerprint(tensors, batch=batch) == data_fingerprint(turned, batch=batch)
    # Ledgers of earlier versions know the split by the order in which it came.
    assert split_fingerprint(turned, batch, is_ordered=False) in former_fingerprints(turned, batch)
    assert split_fingerprint(tensors, batch, is_ordered=False) != split_fingerprint(turned, batch, is_ordered=False)

"""Models of any signature are called with any structure of tensors."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.model_inputs import (
    call_model,
    describe_inputs,
    map_tensors,
    named_tensors,
    num_examples,
    placed_like,
    take_examples,
    tensors_in,
)

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Words:
    ids: Tensor
    mask: Tensor | None
    language: str = "en"


X, Y = torch.ones(4, 3), torch.full((4, 3), 2.0)


class TakesTwo(nn.Module):
    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return (left - right) * scale


class TakesOne(nn.Module):
    def forward(self, batch: Any) -> Any:
        return batch


@pytest.mark.parametrize(
    "inputs", [(X, Y), [X, Y], {"left": X, "right": Y}, OrderedDict(right=Y, left=X)], ids=lambda i: type(i).__name__
)
def test_several_inputs_are_passed_one_by_one_to_a_model_that_takes_several(inputs: Any) -> None:
    assert torch.equal(call_model(TakesTwo(), inputs), X - Y)


@pytest.mark.parametrize(
    "inputs", [X, (X, Y), [X, Y], {"left": X}, Pair(X, Y), Words(X, Y)], ids=lambda i: type(i).__name__
)
def test_a_structure_is_passed_whole_to_a_model_that_takes_one_argument(inputs: Any) -> None:
    assert call_model(TakesOne(), inputs) is inputs


def test_a_function_gets_the_inputs_of_its_module_and_any_other_one_argument() -> None:
    assert torch.equal(call_model(TakesTwo().forward, (X, Y)), X - Y)
    assert call_model(len, (X, Y)) == 2


def test_tensors_of_nested_structures_are_found_by_name_and_mapped() -> None:
    nested = {"words": Words(X, None), "pairs": [Pair(X, Y), (Y, 3, "text")]}
    assert [name for name, _ in named_tensors(nested)] == ["words.ids", "pairs.0.left", "pairs.0.right", "pairs.1.0"]
    doubled = map_tensors(lambda tensor: 2 * tensor, nested)
    assert all(torch.equal(b, 2 * a) for a, b in zip(tensors_in(nested), tensors_in(doubled), strict=True))
    assert isinstance(doubled["words"], Words)
    assert isinstance(doubled["pairs"][0], Pair)
    assert (doubled["words"].mask, doubled["words"].language, doubled["pairs"][1][1:]) == (None, "en", (3, "text"))


def test_examples_are_taken_from_all_tensors_that_have_them() -> None:
    batch = {"x": X, "ids": torch.arange(4), "scale": torch.tensor(2.0), "codes": torch.zeros(7, 3)}
    taken = take_examples(batch, slice(1))
    assert (num_examples(batch), num_examples(taken)) == (4, 1)
    assert taken["ids"].shape == (1,)
    assert taken["codes"].shape == (7, 3)
    assert num_examples({"text": "none"}) == 0


def test_inputs_get_the_precision_of_the_model_but_whole_numbers_stay_whole() -> None:
    placed = placed_like({"x": X, "ids": torch.arange(4)}, nn.Linear(3, 3).double())
    assert (placed["x"].dtype, placed["ids"].dtype) == (torch.float64, torch.int64)


def test_inputs_are_described_by_name() -> None:
    assert describe_inputs(X) == "(4, 3) torch.float32"
    assert describe_inputs({"ids": torch.arange(2)}) == "ids: (2,) torch.int64"
    assert describe_inputs(("text",)) == "a tuple without tensors"

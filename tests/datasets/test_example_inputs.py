"""Controllers of models with several inputs are saved with made-up inputs of the same structure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kedro.io import DataCatalog

from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.datasets.structure import described, restored
from kedro_aat.errors import ModelError
from kedro_aat.model_inputs import named_tensors, tensors_in
from tests.datasets.saved import built
from tests.export.structured import Answer, mask, words


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        ("TwoInputs", (torch.randn(4, 6), torch.randn(4, 4))),
        ("TwoInputs", {"numbers": torch.randn(4, 4), "image": torch.randn(4, 6), "scale": 2.0}),
        ("Encoder", {"input_ids": words(), "attention_mask": mask(), "labels": None}),
    ],
)
def test_an_example_input_of_any_structure_is_made_up_and_loaded(kind: str, example: Any, catalog: DataCatalog) -> None:
    catalog.save(
        "controller",
        MagnitudeSparsityController(built(f"tests.export.structured.{kind}"), example_input=example),
    )
    loaded = catalog.load("controller").example_input
    assert type(loaded) is type(example)
    assert [name for name, _ in named_tensors(loaded)] == [name for name, _ in named_tensors(example)]
    for mine, yours in zip(tensors_in(loaded), tensors_in(example), strict=True):
        assert (mine.shape, mine.dtype) == (yours.shape, yours.dtype)
        assert not (yours.is_floating_point() and torch.isin(mine, yours).any())
    if isinstance(example, dict):
        assert {key: value for key, value in loaded.items() if not torch.is_tensor(value)} == {
            key: value for key, value in example.items() if not torch.is_tensor(value)
        }


def test_structures_are_written_without_the_names_of_classes() -> None:
    text, tensors = described([Answer(words(), None), {"scale": 1.5, "kind": "text"}])
    assert "Answer" not in str(text)
    assert restored(text, tensors) == [
        {"logits": tensors["input.0.logits"], "hidden": None},
        {"scale": 1.5, "kind": "text"},
    ]


def test_what_is_no_plain_value_is_not_saved() -> None:
    with pytest.raises(ModelError, match=r"input\.1 .* is a object, which is not saved"):
        described((words(), object()))


@pytest.mark.parametrize("text", [{}, {"tensor": "missing"}, {"class": "os.system"}, {"mapping": 3}, {"list": None}])
def test_a_damaged_structure_is_one_clear_error(text: Any) -> None:
    with pytest.raises(ModelError, match="structure of the saved example input"):
        restored(text, {})

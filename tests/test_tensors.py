"""Made-up values in place of the user's; how tensors are saved is tested with models and checkpoints."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kedro_aat.tensors import is_made_up, mark_made_up, synthetic_like


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) * 10 - 3).to(dtype)


@pytest.mark.parametrize("num_examples", [3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int64, torch.uint8])
def test_made_up_values_have_shape_type_and_range(num_examples: int, dtype: torch.dtype) -> None:
    examples = numbers(num_examples, 4, 5, dtype=dtype).abs()
    values = synthetic_like(examples, 2)
    assert (values.shape, values.dtype) == ((2, 4, 5), dtype)
    assert examples.amin() <= values.amin() < values.amax() <= examples.amax()
    assert torch.equal(values, synthetic_like(examples, 2))


def test_no_number_of_the_examples_is_among_them_not_even_the_lowest_and_the_highest() -> None:
    for num_examples in (1, 2, 64):
        examples = numbers(num_examples, 10)
        assert not torch.isin(synthetic_like(examples, 100), examples).any()


def test_large_integers_are_no_ids_of_the_user() -> None:
    examples = torch.randint(2**60, 2**62, (64, 3), generator=torch.Generator().manual_seed(1))
    values = synthetic_like(examples, 100)
    assert not torch.isin(values, examples).any()
    assert examples.amin() <= values.amin() < values.amax() <= examples.amax()


def test_each_column_has_its_own_range_if_there_are_enough_examples() -> None:
    """A model may look up the first column in an embedding of 7 rows."""
    category, amount = torch.arange(64) % 7, torch.linspace(1e4, 1e6, 64)
    category_made, amount_made = synthetic_like(torch.stack([category, amount], dim=1), 100).unbind(1)
    assert set(category_made.tolist()) <= set(range(7))
    assert len(set(category_made.tolist())) > 3
    assert amount_made.min() >= 1e4
    assert amount_made.max() <= 1e6


def test_each_column_of_whole_numbers_has_its_own_range_in_a_few_examples() -> None:
    few = torch.tensor([[40, 1, 0], [3, 2, 0]])
    values = synthetic_like(few, 100)
    assert (values.amin(0) >= few.amin(0)).all()
    assert (values.amax(0) <= few.amax(0)).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_stay_masks(dtype: torch.dtype) -> None:
    values = synthetic_like((torch.arange(40).view(10, 4) % 3 == 0).to(dtype), 10)
    assert set(values.unique().tolist()) == {0, 1}
    assert values.dtype == dtype


@pytest.mark.parametrize(
    ("number", "expected"), [(0.0, 0.0), (1.0, 1.0), (0.7, 0.5), (-5.0, -4.0), (1e-30, 2.0**-100), (math.nan, 0.0)]
)
def test_a_number_that_never_changes_is_rounded_toward_zero(number: float, expected: float) -> None:
    for num_examples in (1, 40):
        examples = torch.full((num_examples, 3), number)
        assert synthetic_like(examples, 2).tolist() == [[expected] * 3] * 2


def test_the_random_generator_stays_as_it_is() -> None:
    before = torch.get_rng_state()
    synthetic_like(numbers(4, 4), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_missing_or_complex_becomes_zeros() -> None:
    assert synthetic_like(torch.full((2, 3), math.inf), 2).tolist() == [[0.0] * 3] * 2
    assert synthetic_like(torch.ones(2, 3, dtype=torch.complex64), 1).tolist() == [[0] * 3]


def test_made_up_values_keep_a_structure_and_what_is_no_example() -> None:
    examples = {"x": torch.rand(40, 3), "ids": torch.randint(0, 9, (40, 5)), "scale": torch.tensor(0.7), "flag": None}
    made_up = synthetic_like(examples, 2)
    assert {key: getattr(value, "shape", None) for key, value in made_up.items()} == {
        "x": (2, 3),
        "ids": (2, 5),
        "scale": (),
        "flag": None,
    }
    assert made_up["scale"] != examples["scale"]
    assert not is_made_up(made_up)
    assert is_made_up(mark_made_up(made_up))

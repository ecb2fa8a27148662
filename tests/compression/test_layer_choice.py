from __future__ import annotations

import pytest
import torch

from kedro_aat.compression.layer_choice import least_damaged, relative_energy


@pytest.mark.parametrize(
    ("target", "chosen"), [(0, []), (4, []), (6, [2]), (15, [2, 0]), (34, [2, 0]), (36, [2, 0, 1]), (1000, [2, 0, 1])]
)
def test_least_damaged_layers_are_chosen_until_the_total_is_nearest(target: float, chosen: list[int]) -> None:
    assert least_damaged([0.2, 0.9, 0.1], [5, 40, 10], target) == chosen


def test_of_equally_damaged_layers_the_first_is_chosen() -> None:
    assert least_damaged([0.5, 0.5, 0.5], [3, 3, 3], 6) == [0, 1]


def test_energy_is_relative_to_the_weight() -> None:
    assert relative_energy(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 2.0])) == 0.25
    assert relative_energy(torch.zeros(2), torch.zeros(2)) == 0

"""The benchmark of targets judges a file by the standard error of its metric."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.targets import Data, accuracy, columns, rows


class Given(nn.Module):
    """Returns the same logits for whatever it is called with."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits


def test_standard_error_of_a_share_of_images() -> None:
    labels = torch.arange(100) % 2
    right = torch.arange(100) < 90
    logits = nn.functional.one_hot(torch.where(right, labels, 1 - labels)).float()
    found, error = accuracy(Given(logits), Data(torch.zeros(100, 1), labels))
    assert found == pytest.approx(0.9)
    assert error == pytest.approx((0.9 * 0.1 / 99) ** 0.5)


def test_pixels_of_an_image_are_not_independent() -> None:
    """Half of the images are all right, half of them all wrong: the error is that of 10 images, not of 640 pixels."""
    targets = torch.ones(10, 8, 8, dtype=torch.int64)
    logits = torch.zeros(10, 2, 8, 8)
    logits[:5, 1], logits[5:, 0] = 1, 1
    found, error = accuracy(Given(logits), Data(torch.zeros(10, 1), targets))
    assert found == pytest.approx(0.5)
    assert error == pytest.approx((0.25 / 9) ** 0.5)


def test_every_row_has_a_cell_for_every_head() -> None:
    made = rows("MLP", ["onnx"], 0.01)
    for runtime, found in made.items():
        assert [row[:2] for row in found] == [["MLP", "float32"], ["MLP", "int8"]]
        assert {len(row) for row in found} == {len(columns(runtime))}
        assert {row[6] for row in found} == {"yes"}

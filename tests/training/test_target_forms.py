"""Numbers as (N,) or (N, 1), integers or floats: loss and metric agree with what they are by hand."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC, MultilabelF1Score

from kedro_aat.training.target_forms import TargetForm, main_target

NUMBERS = torch.randn(12, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(12, generator=torch.Generator().manual_seed(1))
SHAPES: list[tuple[int, ...]] = [(12,), (12, 1)]


@pytest.mark.parametrize("of_targets", SHAPES)
@pytest.mark.parametrize("of_outputs", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.BCEWithLogitsLoss()])
def test_losses_compare_each_output_with_its_target(
    loss: nn.Module, dtype: torch.dtype, of_outputs: tuple[int, ...], of_targets: tuple[int, ...]
) -> None:
    targets = (TARGETS > 0).to(dtype)
    expected = loss(NUMBERS, targets.float())
    form = TargetForm(loss)
    outputs = NUMBERS.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of broadcasting
        for _ in range(2):
            found = loss(*form(outputs.reshape(of_outputs), targets.reshape(of_targets)))
            found.backward()
    torch.testing.assert_close(found.float(), expected)


@pytest.mark.parametrize("of_targets", SHAPES)
@pytest.mark.parametrize("of_outputs", SHAPES)
@pytest.mark.parametrize(
    ("make", "targets", "expected"),
    [
        (torchmetrics.MeanSquaredError, TARGETS, TARGETS),
        (torchmetrics.R2Score, TARGETS, TARGETS),
        (torchmetrics.PearsonCorrCoef, TARGETS, TARGETS),
        (BinaryAUROC, (TARGETS > 0).float(), (TARGETS > 0).long()),
        (BinaryAUROC, TARGETS > 0, (TARGETS > 0).long()),
    ],
)
def test_metrics_compare_each_output_with_its_target(
    make: Any, targets: Tensor, expected: Tensor, of_outputs: tuple[int, ...], of_targets: tuple[int, ...]
) -> None:
    metric, reference = make(), make()
    metric.update(*TargetForm(metric)(NUMBERS.reshape(of_outputs), targets.reshape(of_targets)))
    reference.update(NUMBERS, expected)
    torch.testing.assert_close(metric.compute(), reference.compute())


def test_several_labels_may_be_floats_or_integers() -> None:
    outputs, targets = torch.randn(6, 3), torch.randint(2, (6, 3))
    for given in (targets, targets.float()):
        metric = MultilabelF1Score(num_labels=3)
        assert torch.equal(TargetForm(metric)(outputs, given)[1], targets)
        assert TargetForm(nn.BCEWithLogitsLoss())(outputs, given)[1].dtype == torch.float32


def test_masks_of_one_channel() -> None:
    outputs, targets = torch.randn(4, 1, 5, 7), torch.randint(2, (4, 5, 7))
    read = TargetForm(nn.BCEWithLogitsLoss())(outputs, targets)
    assert [tuple(each.shape) for each in read] == [(4, 5, 7)] * 2


class OwnLoss(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean()


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (nn.CrossEntropyLoss(), torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])),
        (nn.CrossEntropyLoss(), torch.randn(6, 3, 4), torch.zeros(6, 4, dtype=torch.int64)),
        (OwnLoss(), torch.randn(6, 1), torch.randn(6)),
        (nn.MSELoss(), torch.randn(6, 2), torch.randn(6, 3)),
        (OwnLoss(), [torch.randn(6, 1)], torch.randn(6)),
    ],
)
def test_labels_and_what_the_users_own_functions_take_stay(loss: nn.Module, outputs: Any, targets: Tensor) -> None:
    read = TargetForm(loss)(outputs, targets)
    assert read[0] is outputs
    assert read[1] is targets


def test_the_metric_reads_the_first_of_several_targets() -> None:
    assert main_target({"kind": TARGETS, "size": NUMBERS}) is TARGETS
    assert main_target((TARGETS, NUMBERS)) is TARGETS
    assert main_target(TARGETS) is TARGETS

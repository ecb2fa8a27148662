"""Loss and metric follow from the targets where they leave no doubt."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.from_python.guessed import with_loss_and_metric

INPUTS = torch.randn(8, 4)
ZEROS_AND_ONES = torch.tensor([0, 1] * 4)


@pytest.mark.parametrize(
    ("num_outputs", "targets", "loss", "metric"),
    [
        (3, ZEROS_AND_ONES, "CrossEntropyLoss", "MulticlassAccuracy"),
        (1, ZEROS_AND_ONES, "BCEWithLogitsLoss", "BinaryAccuracy"),
        (1, ZEROS_AND_ONES.float()[:, None], "BCEWithLogitsLoss", "BinaryAccuracy"),
    ],
)
def test_loss_and_metric_that_fit(
    num_outputs: int, targets: Tensor, loss: str, metric: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "kedro_aat"):
        found = with_loss_and_metric({}, nn.Linear(4, num_outputs), {"inputs": INPUTS, "targets": targets})
    assert found["loss"] == f"torch.nn.{loss}"
    described: Any = found["metric"]
    path = described if isinstance(described, str) else described["class_path"]
    assert path == f"torchmetrics.classification.{metric}"
    assert f"No loss was given: torch.nn.{loss}, which fits the targets." in caplog.messages


def test_what_is_given_stays(caplog: pytest.LogCaptureFixture) -> None:
    given = {"loss": "torch.nn.L1Loss", "metric": "torchmetrics.MeanAbsoluteError"}
    assert with_loss_and_metric(given, nn.Linear(4, 1), {"inputs": INPUTS, "targets": INPUTS[:, :1]}) == given
    assert not caplog.messages

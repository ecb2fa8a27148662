"""Objects become settings that make them again."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn

from kedro_aat.errors import ConfigurationError
from kedro_aat.from_python.described import as_settings
from kedro_aat.imports import Imported


class Focal(nn.Module):
    """Keeps what it was given under another name."""

    def __init__(self, gamma: float, alpha: float = 0.25) -> None:
        super().__init__()
        self.exponent, self.alpha = gamma, alpha


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (nn.CrossEntropyLoss, "torch.nn.CrossEntropyLoss"),
        (torch.optim.SGD, "torch.optim.SGD"),
        (nn.functional.cross_entropy, "torch.nn.functional.cross_entropy"),
        (nn.CrossEntropyLoss(), {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {}}),
        (
            nn.CrossEntropyLoss(label_smoothing=0.5, weight=torch.tensor([0.5, 2.0])),
            {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weight": [0.5, 2.0], "label_smoothing": 0.5}},
        ),
        (
            functools.partial(torch.optim.AdamW, lr=0.5),
            {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.5}},
        ),
        (
            torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5, momentum=0.25),
            {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5, "momentum": 0.25}},
        ),
        (
            torchmetrics.MeanSquaredError(squared=False),
            {"class_path": "torchmetrics.MeanSquaredError", "init_args": {"squared": False}},
        ),
        (
            torchmetrics.Accuracy(task="multiclass", num_classes=3),
            {
                "class_path": "torchmetrics.classification.MulticlassAccuracy",
                "init_args": {"num_classes": 3, "average": "micro"},
            },
        ),
        ({"a": [torch.float32 and 1, None]}, {"a": [1, None]}),
    ],
)
def test_described(value: Any, expected: Any) -> None:
    assert as_settings(value, "key") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Focal(2.0), r"the arguments that made this Focal cannot be read off it: .*functools.partial\(Focal"),
        (lambda x: x, "has no import path"),
        (functools.partial(nn.Linear, 3), "keyword arguments only"),
    ],
)
def test_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        as_settings(value, "loss")


def test_what_is_described_is_made_again() -> None:
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]))
    again = Imported.model_validate(as_settings(loss, "loss")).make()
    logits, targets = torch.randn(8, 1), torch.ones(8, 1)
    assert again(logits, targets) == loss(logits, targets)

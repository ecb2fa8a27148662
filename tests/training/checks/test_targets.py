"""Targets that metric or loss misread are an error before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from kedro_aat.errors import DataError
from tests.nets import Pairs
from tests.training.checks.baselines import evaluated, labels, random

ACCURACY = "torchmetrics.classification.MulticlassAccuracy"
TEN = {"num_classes": 10, "average": "micro"}
BCE = {"loss": "torch.nn.BCEWithLogitsLoss"}
MSE: dict[str, Any] = {"loss": "torch.nn.MSELoss"}
MAE = "torchmetrics.MeanAbsoluteError"
LABELS = labels(200, 10)
SCORES = random(200, 10) + 3 * one_hot(LABELS, 10)
NUMBERS = random(200)
BINARY = (NUMBERS > 0).long()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (one_hot(LABELS, 10).float(), "MulticlassAccuracy is 0 instead of 0.*one-hot, but should be labels"),
        (one_hot(LABELS, 10), "the metric MulticlassAccuracy is 0 instead of 0.*one-hot, but should be labels"),
        (SCORES.softmax(1), r"MulticlassAccuracy is 0 instead of .*They are probabilities .* give targets\.argmax"),
        (LABELS.float(), r"type float32.*the loss CrossEntropyLoss fails .*should be labels: give targets\.long\(\)"),
        (LABELS.int(), r"type int32.*the loss CrossEntropyLoss fails .*give targets\.long\(\)"),
        (LABELS[:, None], r"shape \(N, 1\) .*MulticlassAccuracy fails .*give integers of shape \(N,\)"),
        (LABELS + 1, r"lie outside 0 to 9, .* run from 1 to 10: subtract 1"),
        (torch.where(torch.arange(200) == 150, 77, LABELS), "1 of 64 labels .*run from 0 to 77: correct them"),
        (torch.where(torch.arange(200) == 3, -100, LABELS), r"the metric MulticlassAccuracy needs.* set ignore_index"),
    ],
)
def test_targets_that_are_no_labels(targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluated(SCORES, targets, ACCURACY, TEN)


@pytest.mark.parametrize(
    ("outputs", "targets", "metric", "loss", "message"),
    [
        (
            NUMBERS,
            BINARY,
            "torchmetrics.classification.BinaryAccuracy",
            {},
            r"\(N,\): the loss CrossEntropyLoss needs one",
        ),
        (
            NUMBERS,
            NUMBERS + 0.1,
            "torchmetrics.classification.BinaryAccuracy",
            MSE,
            r"no classes: the metric BinaryAccuracy is one of classification",
        ),
        (NUMBERS[:, None], BINARY.float()[:, None], MAE, {}, r"\(N, 1\): the loss CrossEntropyLoss needs one output"),
        (
            NUMBERS[:, None, None],
            NUMBERS[:, None],
            "tests.training.checks.baselines.BroadcastingError",
            MSE,
            "is -1.* instead of 0",
        ),
    ],
)
def test_targets_of_another_shape_or_type(
    outputs: Tensor, targets: Tensor, metric: str, loss: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluated(outputs, targets, metric, **loss, higher_is_better=metric != MAE)


@pytest.mark.parametrize(
    ("outputs", "targets", "metric", "arguments", "training"),
    [
        (SCORES, LABELS, ACCURACY, TEN, {}),
        (SCORES, torch.where(LABELS == 9, -100, LABELS), ACCURACY, TEN | {"ignore_index": -100}, {}),
        (SCORES, LABELS.float(), ACCURACY, TEN, {"train_epoch": "tests.training.user_functions.train_epoch"}),
        (NUMBERS, (10 * NUMBERS).long(), MAE, {}, MSE),
        (NUMBERS[:, None], NUMBERS[:, None] + 0.1, MAE, {}, MSE),
        (NUMBERS[:, None], NUMBERS + 0.1, MAE, {}, MSE),
        (NUMBERS, NUMBERS[:, None] + 0.1, MAE, {}, MSE),
        (NUMBERS[:, None], BINARY.float(), "torchmetrics.classification.BinaryAccuracy", {}, BCE),
        (NUMBERS, BINARY, "torchmetrics.classification.BinaryAccuracy", {}, BCE),
        (NUMBERS, BINARY.float(), "torchmetrics.classification.BinaryAveragePrecision", {}, BCE),
        (SCORES[:10] / 9, one_hot(LABELS[:10], 10).float(), "torchmetrics.MeanSquaredError", {}, MSE),
        (SCORES - 2, one_hot(LABELS, 10).float(), "torchmetrics.classification.BinaryF1Score", {}, BCE),
        (
            SCORES - 2,
            one_hot(LABELS, 10).float(),
            "torchmetrics.classification.MultilabelF1Score",
            {"num_labels": 10},
            BCE,
        ),
    ],
    ids=[
        "labels",
        "ignored",
        "own training",
        "integers",
        "columns",
        "column and numbers",
        "numbers and column",
        "floats of a logit",
        "integers for a loss",
        "floats for a metric",
        "as many as classes",
        "one-hot",
        "multilabel",
    ],
)
def test_targets_that_fit(
    outputs: Tensor, targets: Tensor, metric: str, arguments: dict[str, Any], training: dict[str, Any]
) -> None:
    assert evaluated(outputs, targets, metric, arguments, **training).validation


def test_cross_entropy_may_have_one_hot_targets_and_class_weights() -> None:
    loss = {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}}
    targets = one_hot(LABELS, 10).float()
    assert evaluated(SCORES - 2, targets, "torchmetrics.classification.BinaryF1Score", loss=loss).validation


def test_mistakes_may_be_only_told_of(caplog: pytest.LogCaptureFixture) -> None:
    targets = torch.where(LABELS == 0, -1, LABELS)
    loose = TEN | {"validate_args": False}
    evaluated(SCORES, targets, ACCURACY, loose, baseline_check="warn", data=Pairs(SCORES, targets))
    assert caplog.text.count("lie outside 0 to 9") == 1
    caplog.clear()
    evaluated(SCORES, targets, ACCURACY, loose, baseline_check="off")
    assert "outside" not in caplog.text

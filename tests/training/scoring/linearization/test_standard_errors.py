"""The standard error from linearized scores is that of a bootstrap, for each kind of metric."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchmetrics.classification as c
import torchmetrics.regression as r
import torchmetrics.segmentation as s
from torchmetrics import Metric

from kedro_aat.certificate import paired_standard_error
from tests.training.scoring.linearization.predictions import Predictions, classes, evaluation, labels, numbers, value

Case = tuple[Metric, Callable[[], Predictions]]


def images() -> Predictions:
    return classes(3, (6, 6))


def masks() -> Predictions:
    return labels((6, 6))


def several() -> Predictions:
    return labels((3,))


def partly_empty() -> Predictions:
    """Masks; a third of the images have neither a target nor a prediction, and the second model misses some more."""
    targets, *models = labels((6, 6))
    targets[::3] = 0
    predicted = [(outputs > 0).long() for outputs in models]
    for each in predicted:
        each[::3] = 0
    targets[1::30], predicted[1][1::30] = 0, 0
    return targets, predicted[0], predicted[1]


LINEARIZED: list[Case] = [
    # The mean over those images that have any: torchmetrics leaves the others out.
    (s.DiceScore(2, include_background=False, average="macro", input_format="index"), partly_empty),
    (c.MulticlassF1Score(4), classes),
    (c.MulticlassF1Score(4, average="weighted"), classes),
    (c.MulticlassF1Score(4, ignore_index=1), classes),
    (c.MulticlassFBetaScore(beta=0.5, num_classes=4), classes),
    (c.MulticlassPrecision(4), classes),
    (c.MulticlassAccuracy(4), classes),
    (c.MulticlassAccuracy(4, top_k=2), classes),
    (c.MulticlassSpecificity(4), classes),
    (c.MulticlassJaccardIndex(4), classes),
    (c.MulticlassCohenKappa(4), classes),
    (c.MulticlassCohenKappa(4, weights="quadratic"), classes),
    (c.MulticlassMatthewsCorrCoef(4), classes),
    (c.MulticlassAUROC(4), classes),
    (c.MulticlassAUROC(4, average="weighted"), classes),
    (c.MulticlassAveragePrecision(4), classes),
    (c.BinaryF1Score(), labels),
    (c.BinaryPrecision(), labels),
    (c.BinaryJaccardIndex(), labels),
    (c.BinaryMatthewsCorrCoef(), labels),
    (c.BinaryAUROC(), labels),
    (c.BinaryAveragePrecision(), labels),
    (c.BinaryF1Score(), masks),
    (c.MultilabelF1Score(3), several),
    (c.MultilabelJaccardIndex(3), several),
    (c.MultilabelAUROC(3), several),
    (c.MultilabelAUROC(3, average="weighted"), several),
    (c.MulticlassJaccardIndex(3), images),
    (c.MulticlassF1Score(3, ignore_index=0), images),
    (s.MeanIoU(3, input_format="mixed"), images),
    (s.MeanIoU(3, input_format="mixed", include_background=False), images),
    (s.DiceScore(3, input_format="mixed", average="macro", aggregation_level="global"), images),
    (r.MeanSquaredError(squared=False), numbers),
    (r.R2Score(), numbers),
    (r.ExplainedVariance(), numbers),
    (r.WeightedMeanAbsolutePercentageError(), numbers),
]
MEANS: list[Case] = [
    (c.MulticlassF1Score(4, average="micro"), classes),
    (c.MulticlassAccuracy(4, average="micro", top_k=2), classes),
    (c.MulticlassAccuracy(4, average="weighted"), classes),
    (c.MultilabelAccuracy(3), several),
    (s.DiceScore(3, input_format="mixed", average="macro"), images),
    (s.GeneralizedDiceScore(3, input_format="mixed"), images),
    (r.LogCoshError(), numbers),
    (r.MeanAbsolutePercentageError(), numbers),
]


def bootstrapped(metric: Metric, predictions: Predictions, num_resamples: int) -> float:
    targets, *models = predictions
    generator = torch.Generator().manual_seed(0)
    differences = []
    for _ in range(num_resamples):
        drawn = torch.randint(len(targets), (len(targets),), generator=generator)
        first, second = (value(metric, outputs[drawn], targets[drawn]) for outputs in models)
        differences.append(first - second)
    return float(np.std(differences, ddof=1))


def name_of(case: object) -> str:
    return type(case).__name__


@pytest.mark.parametrize(("metric", "predictions"), LINEARIZED + MEANS, ids=name_of)
def test_scores_have_the_metric_as_their_mean(metric: Metric, predictions: Callable[[], Predictions]) -> None:
    targets, *models = predictions()
    for outputs in models:
        found = evaluation(metric, outputs, targets)
        assert found.scores is not None
        assert found.scores.shape == (len(targets),)
        assert found.metric == pytest.approx(float(metric.compute()), rel=1e-4)
        assert float(found.scores.mean()) == pytest.approx(found.metric, rel=1e-9)
        is_mean = any(metric is each for each, _ in MEANS)
        assert found.is_linearized is not is_mean
        if is_mean:
            assert found.score_range is not None
            assert found.score_range[0] == 0


@pytest.mark.parametrize(("metric", "predictions"), LINEARIZED + MEANS, ids=name_of)
def test_scores_are_within_their_range(metric: Metric, predictions: Callable[[], Predictions]) -> None:
    targets, outputs, _ = predictions()
    found = evaluation(metric, outputs, targets)
    is_open = found.linearization is not None and found.linearization.per_squared_error is not None
    if found.score_range is None or is_open:
        return
    assert found.scores is not None
    assert found.score_range[0] - 1e-9 <= float(found.scores.min())
    assert float(found.scores.max()) <= found.score_range[1] + 1e-9


@pytest.mark.parametrize(("metric", "predictions"), LINEARIZED + MEANS, ids=name_of)
def test_the_error_is_that_of_a_bootstrap(metric: Metric, predictions: Callable[[], Predictions]) -> None:
    """300 resamples know an error to 4%; half an example more, lost or won, makes it up to 10% larger."""
    drawn = predictions()
    targets, *models = drawn
    scores = [evaluation(metric, outputs, targets).scores for outputs in models]
    error = paired_standard_error(*(each.numpy() for each in scores if each is not None))
    assert 0.85 < error / bootstrapped(metric, drawn, 300) < 1.3


@pytest.mark.parametrize(
    ("metric", "predictions"),
    [
        (c.MulticlassF1Score(4), classes),
        (c.MulticlassJaccardIndex(3), images),
        (c.BinaryAUROC(), labels),
        (r.MeanSquaredError(squared=False), numbers),
    ],
    ids=name_of,
)
def test_the_error_is_that_of_many_resamples(metric: Metric, predictions: Callable[[], Predictions]) -> None:
    """2,000 resamples know it to 1.6%. The influences alone, without the half example more."""
    drawn = predictions()
    targets, *models = drawn
    first, second = (evaluation(metric, outputs, targets).scores for outputs in models)
    assert first is not None
    assert second is not None
    error = float((first - second).std()) / len(targets) ** 0.5
    assert error == pytest.approx(bootstrapped(metric, drawn, 2000), rel=0.06)

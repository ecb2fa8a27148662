"""What must hold of linearized scores, and what has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
import torchmetrics.classification as c
import torchmetrics.regression as r
import torchmetrics.segmentation as s
from torch import Tensor
from torchmetrics import Metric

from kedro_aat.certificate import paired_standard_error
from kedro_aat.training.callables import Evaluation
from kedro_aat.training.scoring.linearization import linearizer_for, tables, waiting
from kedro_aat.training.scoring.linearization.ranks import auroc, average_precision
from tests.training.scoring.linearization.predictions import NUM_EXAMPLES, classes, evaluation, labels, numbers, value

METRICS: list[tuple[Metric, Any]] = [
    (c.MulticlassF1Score(4), classes()),
    (c.MulticlassJaccardIndex(3), classes(3, (5, 5))),
    (c.MultilabelF1Score(3), labels((3,))),
    (c.BinaryAUROC(), labels()),
    (c.MulticlassAveragePrecision(4), classes()),
    (r.MeanSquaredError(squared=False), numbers()),
    (r.R2Score(), numbers()),
    (s.MeanIoU(3, input_format="mixed"), classes(3, (5, 5))),
]
EACH = pytest.mark.parametrize(("metric", "predictions"), METRICS, ids=lambda each: type(each).__name__)


def scores_of(metric: Metric, outputs: Tensor, targets: Tensor, batch_size: int = 64) -> Tensor:
    found = evaluation(metric, outputs, targets, batch_size)
    assert found.is_linearized
    assert found.scores is not None
    return found.scores


@EACH
def test_the_order_of_examples_does_not_matter(metric: Metric, predictions: Any) -> None:
    targets, outputs, _ = predictions
    order = torch.randperm(NUM_EXAMPLES, generator=torch.Generator().manual_seed(1))
    expected = scores_of(metric, outputs, targets)[order]
    torch.testing.assert_close(scores_of(metric, outputs[order], targets[order]), expected, rtol=1e-4, atol=1e-5)


@EACH
def test_the_batch_size_does_not_matter(metric: Metric, predictions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, outputs, _ = predictions
    expected = scores_of(metric, outputs, targets, NUM_EXAMPLES)
    monkeypatch.setattr(waiting, "MAX_WAITING", 0)
    monkeypatch.setattr(tables, "MAX_COUNTS", 100)
    for batch_size in (50, 37):
        torch.testing.assert_close(scores_of(metric, outputs, targets, batch_size), expected, rtol=1e-4, atol=1e-5)


@EACH
def test_twice_the_examples_have_the_same_scores(metric: Metric, predictions: Any) -> None:
    targets, outputs, _ = predictions
    expected = scores_of(metric, outputs, targets).repeat(2)
    twice = scores_of(metric, torch.cat([outputs, outputs]), torch.cat([targets, targets]))
    torch.testing.assert_close(twice, expected, rtol=1e-4, atol=1e-5)


@EACH
def test_influences_are_those_of_one_more_example(metric: Metric, predictions: Any) -> None:
    """An example that is there once more changes the metric by its influence, divided by N, in the first order."""
    targets, outputs, _ = predictions
    before = value(metric, outputs.double(), targets)
    scores = scores_of(metric, outputs, targets)
    for example in range(0, NUM_EXAMPLES, 80):
        index = torch.cat([torch.arange(NUM_EXAMPLES), torch.tensor([example] * 4)])
        after = value(metric, outputs.double()[index], targets[index])
        expected = before + 4 * (float(scores[example]) - before) / (NUM_EXAMPLES + 4)
        assert after == pytest.approx(expected, abs=6e-4 * max(1.0, abs(float(scores[example]))))


@pytest.mark.parametrize(
    ("metric", "predictions"),
    [
        (c.MulticlassF1Score(4), classes()),
        (c.MulticlassJaccardIndex(4), classes()),
        (c.BinaryAUROC(), labels()),
        (c.BinaryAveragePrecision(), labels()),
    ],
)
def test_all_scores_of_a_perfect_model_are_1(metric: Metric, predictions: Any) -> None:
    targets, outputs, _ = predictions
    right = torch.nn.functional.one_hot(targets, 4).float() if outputs.dim() == 2 else targets.float()
    scores = scores_of(metric, right, targets)
    torch.testing.assert_close(scores, torch.ones_like(scores), rtol=0, atol=1e-6)
    assert paired_standard_error(scores, scores) > 0


def test_auroc_has_the_variance_of_delong() -> None:
    """DeLong et al. 1988, equation 5, computed by all pairs; outputs have ties."""
    targets, outputs, _ = labels()
    ranks, is_positive = outputs.mul(2).round().numpy(), targets.numpy() == 1
    positives, negatives = ranks[is_positive][:, None], ranks[~is_positive][None, :]
    wins = (positives > negatives) + 0.5 * (positives == negatives)
    found = auroc(ranks, is_positive)
    assert found.value == pytest.approx(wins.mean())
    expected = wins.mean(1).var() / len(positives) + wins.mean(0).var() / negatives.shape[1]
    assert (found.influences**2).sum() / len(ranks) ** 2 == pytest.approx(expected)


@pytest.mark.parametrize("rank", [auroc, average_precision])
def test_ranks_of_single_precision_are_those_of_double(rank: Any) -> None:
    targets, outputs, _ = labels()
    chances, is_positive = outputs.mul(2).round().sigmoid().numpy(), targets.numpy() == 1
    single, double = rank(chances.astype(np.float32), is_positive), rank(chances.astype(np.float64), is_positive)
    np.testing.assert_allclose(single.influences, double.influences, atol=1e-12)


@pytest.mark.parametrize(
    ("metric", "predictions"),
    [
        (c.BinaryAUROC(thresholds=50), labels()),  # has no ranks
        (c.BinaryAUROC(max_fpr=0.5), labels()),
        (c.BinaryAUROC(ignore_index=-1), labels()),
        (torchmetrics.SpearmanCorrCoef(), numbers()),
        (c.BinaryAUROC() + c.BinaryF1Score(), labels()),
    ],
    ids=lambda each: type(each).__name__,
)
def test_other_metrics_are_resampled(metric: Metric, predictions: Any) -> None:
    targets, outputs, _ = predictions
    found = evaluation(metric, outputs.sigmoid() if targets.dtype is torch.long else outputs, targets)
    assert found.scores is None
    assert found.resampled is not None
    assert not found.is_linearized


class SumOfErrors(Metric):
    """A sum, which twice the examples double."""

    full_state_update = False
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += (outputs - targets).abs().sum()

    def compute(self) -> Tensor:
        return self.total


class OwnRatio(SumOfErrors):
    """A ratio of sums that a user wrote."""

    size: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("size", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += (outputs - targets).abs().sum()
        self.size += targets.abs().sum()

    def compute(self) -> Tensor:
        return self.total / self.size


class RatioOfBatches(OwnRatio):
    """A sum over batches of something that is no sum over examples."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += (outputs - targets).abs().max()
        self.size += targets.abs().sum()


def test_metrics_of_users_are_linearized() -> None:
    targets, outputs, _ = numbers()
    metric = OwnRatio()
    errors, sizes = (outputs - targets).abs().double(), targets.abs().double()
    ratio = errors.sum() / sizes.sum()
    expected = ratio + (errors - ratio * sizes) / sizes.mean()
    torch.testing.assert_close(scores_of(metric, outputs, targets), expected, rtol=1e-4, atol=1e-5)
    assert evaluation(metric, outputs, targets).score_range is None


@pytest.mark.parametrize("metric", [SumOfErrors(), RatioOfBatches()])
def test_what_is_no_function_of_shares_of_examples_has_no_scores(metric: Metric) -> None:
    targets, outputs, _ = numbers()
    assert evaluation(metric, outputs, targets).scores is None


def test_a_class_that_is_predicted_but_never_a_target_leaves_no_effective_example() -> None:
    targets, outputs, _ = classes()
    targets[targets == 3] = 0
    found = evaluation(c.MulticlassF1Score(4), outputs, targets)
    assert _effective(found) == 0


def test_effective_examples_of_images_are_those_with_most_pixels() -> None:
    targets = torch.zeros(100, 10, 10).long()
    targets[:50, :5] = 1
    targets[0, 5:] = 2  # one image has nearly all pixels of the rarest class
    targets[1, 9, 9] = 2
    outputs = torch.nn.functional.one_hot(targets, 3).movedim(-1, 1).float()
    found = evaluation(c.MulticlassJaccardIndex(3), outputs, targets)
    assert _effective(found) == pytest.approx(51**2 / (50**2 + 1))


def test_effective_examples_of_rmse_are_those_with_the_largest_errors() -> None:
    targets = torch.zeros(NUM_EXAMPLES)
    outputs = torch.full((NUM_EXAMPLES,), 0.01)
    outputs[:3] = 10.0
    assert _effective(evaluation(r.MeanSquaredError(squared=False), outputs, targets)) == pytest.approx(3, rel=1e-3)


def _effective(found: Evaluation) -> float:
    assert found.linearization is not None
    return found.linearization.effective_examples


def test_large_tables_are_not_linearized() -> None:
    assert linearizer_for(c.MulticlassF1Score(5000)) is None

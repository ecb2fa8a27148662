"""Certificates of linearized metrics, from a validation to the verdict."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.budget import Budget
from kedro_aat.certificate import Certificate
from kedro_aat.errors import DataError
from kedro_aat.training.callables import Evaluation
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.scoring.scores import certify_evaluations, standard_error_of, worst_drop
from kedro_aat.training.settings import TrainingSettings
from tests.training.scoring.linearization.predictions import classes, labels, numbers


def validated(metric: str, arguments: dict[str, Any], outputs: Tensor, targets: Tensor) -> Evaluation:
    settings = TrainingSettings.model_validate(
        {"metric": {"class_path": f"torchmetrics.{metric}", "init_args": arguments}, "batch_size": 64, "device": "cpu"}
    )
    model = nn.Identity()
    return DefaultTraining(model, settings, None, {"inputs": outputs, "targets": targets}).validate(model)


def certificate_of(
    before: Evaluation,
    after: Evaluation,
    drop: float,
    *,
    higher_is_better: bool = True,
    error_range: tuple[float, float] | None = None,
) -> Certificate:
    budget = Budget(baseline=before.metric, drop=drop, higher_is_better=higher_is_better)
    certificate = certify_evaluations(before, after, budget, 0.05, error_range)
    assert certificate is not None
    return certificate


@pytest.mark.parametrize(
    ("metric", "arguments", "predictions", "drop"),
    [
        ("classification.MulticlassF1Score", {"num_classes": 4}, classes(), 0.2),
        ("classification.MulticlassAccuracy", {"num_classes": 4}, classes(), 0.2),
        ("classification.MulticlassJaccardIndex", {"num_classes": 3}, classes(3, (5, 5)), 0.1),
        ("segmentation.MeanIoU", {"num_classes": 3, "input_format": "mixed"}, classes(3, (5, 5)), 0.1),
        ("classification.BinaryAUROC", {}, labels(), 0.1),
        ("classification.MulticlassAUROC", {"num_classes": 4}, classes(), 0.1),
    ],
)
def test_a_small_loss_is_certified_and_a_large_one_is_not(
    metric: str, arguments: dict[str, Any], predictions: Any, drop: float
) -> None:
    targets, first, second = predictions
    before = validated(metric, arguments, first, targets)
    certificate = certificate_of(before, validated(metric, arguments, second, targets), drop)
    assert certificate.kind == "asymptotic"
    assert certificate.is_certified
    assert certificate.holds_from is not None
    assert certificate.holds_from < len(targets)
    assert certificate.estimated_drop == pytest.approx(
        before.metric - validated(metric, arguments, second, targets).metric
    )
    guesses = torch.randn(first.shape, generator=torch.Generator().manual_seed(1))
    assert not certificate_of(before, validated(metric, arguments, guesses, targets), drop).is_certified


@pytest.mark.parametrize(
    ("metric", "arguments", "higher_is_better"),
    [("regression.MeanSquaredError", {"squared": False}, False), ("regression.R2Score", {}, True)],
)
def test_errors_need_their_range(metric: str, arguments: dict[str, Any], higher_is_better: bool) -> None:
    targets, first, second = numbers()
    before, after = (validated(metric, arguments, outputs, targets) for outputs in (first, second))
    without = certificate_of(before, after, 0.3, higher_is_better=higher_is_better)
    assert without.kind is None
    assert without.reason is not None
    assert "certificate.score_range" in without.reason
    bounds = []
    for largest in (5.0, 10.0):
        found = certificate_of(before, after, 0.3, higher_is_better=higher_is_better, error_range=(0.0, largest))
        assert found.kind == "asymptotic"
        assert found.upper_bound is not None
        bounds.append(found.upper_bound)
    assert bounds[0] < bounds[1]
    with pytest.raises(DataError, match="score_range must include the absolute errors"):
        certificate_of(before, after, 0.3, higher_is_better=higher_is_better, error_range=(0.0, 0.5))


def test_the_worst_drop_of_rmse_is_that_of_the_largest_error() -> None:
    targets, outputs, _ = numbers()
    evaluation = validated("regression.MeanSquaredError", {"squared": False}, outputs, targets)
    budget = Budget(baseline=evaluation.metric, drop=0.1, higher_is_better=False)
    found = worst_drop(evaluation, evaluation, budget, (0.0, 10.0))
    assert found == pytest.approx(100 / (2 * evaluation.metric), rel=1e-4)


def test_the_worst_drop_of_auroc_is_a_placement_of_the_rarer_class() -> None:
    targets, outputs, _ = labels()
    evaluation = validated("classification.BinaryAUROC", {}, outputs, targets)
    budget = Budget(baseline=evaluation.metric, drop=0.1, higher_is_better=True)
    share = float(targets.double().mean())
    assert worst_drop(evaluation, evaluation, budget, None) == pytest.approx(1 / share, rel=1e-4)


def test_without_resamples_there_are_no_scores_and_no_certificate() -> None:
    targets, outputs, _ = labels()
    settings = TrainingSettings.model_validate(
        {"metric": "torchmetrics.classification.BinaryAUROC", "num_bootstrap_resamples": 0, "device": "cpu"}
    )
    model = nn.Identity()
    found = DefaultTraining(model, settings, None, {"inputs": outputs, "targets": targets}).validate(model)
    assert found.scores is None
    assert standard_error_of(found, found) is None


@pytest.mark.parametrize("metric", ["MulticlassF1Score", "MulticlassJaccardIndex", "MulticlassAveragePrecision"])
def test_a_class_without_examples_allows_no_certificate(metric: str) -> None:
    """A rare class that died is absent from most splits, and the metric leaves it out there."""
    targets, first, second = classes()
    never = torch.full((len(targets), 1), -100.0)
    evaluations = [
        validated(f"classification.{metric}", {"num_classes": 5}, torch.cat([outputs, never], 1), targets)
        for outputs in (first, second)
    ]
    certificate = certificate_of(evaluations[0], evaluations[1], 0.3)
    assert certificate.kind is None
    assert certificate.reason is not None
    assert "count as only 0 examples" in certificate.reason


def test_an_ignored_class_needs_no_examples() -> None:
    targets, first, second = classes()
    is_kept = targets > 0
    evaluations = [
        validated(
            "classification.MulticlassJaccardIndex",
            {"num_classes": 4, "ignore_index": 0},
            torch.cat([torch.full((int(is_kept.sum()), 1), -100.0), outputs[is_kept, 1:]], 1),
            targets[is_kept],
        )
        for outputs in (first, second)
    ]
    assert certificate_of(evaluations[0], evaluations[1], 0.3).kind == "asymptotic"


def test_a_perfect_baseline_is_certified_too() -> None:
    """All derivatives of its macro F1 are 0 but for rounding in single precision."""
    targets, first, second = classes()
    perfect, nearly = (outputs + 10.0 * torch.nn.functional.one_hot(targets, 4) for outputs in (first, second))
    nearly[:3] = -nearly[:3]
    evaluations = [
        validated("classification.MulticlassF1Score", {"num_classes": 4}, each, targets) for each in (perfect, nearly)
    ]
    assert evaluations[0].metric == 1.0
    assert certificate_of(evaluations[0], evaluations[1], 0.2).is_certified


def test_r2_of_several_targets_has_a_standard_error() -> None:
    """Its states begin as single zeros, and have a number per target after the first batch."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(400, 3, generator=generator)
    first, second = (targets + 0.5 * torch.randn(400, 3, generator=generator) for _ in range(2))
    before, after = (validated("regression.R2Score", {}, each, targets) for each in (first, second))
    error = standard_error_of(before, after)
    assert error is not None
    assert 0.005 < error < 0.05


def test_a_split_without_positives_has_too_few_examples() -> None:
    """There, no answer changes F1, so that the largest drop is 0; the budget is no percentage because of that."""
    targets, first, second = labels()
    before, after = (
        validated("classification.BinaryF1Score", {}, each, torch.zeros_like(targets)) for each in (first, second)
    )
    reason = certificate_of(before, after, 0.05).reason
    assert reason is not None
    assert "count as only 0 examples" in reason

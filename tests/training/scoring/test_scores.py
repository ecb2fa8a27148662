"""Scores per example for metrics that are means over examples, and a resampled metric for all others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from kedro_aat.certificate import bootstrap_standard_error, paired_standard_error
from kedro_aat.errors import ConfigurationError, MetricError
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.scoring.scores import scorer_for, standard_error_of
from kedro_aat.training.settings import TrainingSettings

NUM_EXAMPLES = 400
LABELS = (torch.arange(NUM_EXAMPLES) % 3 == 0).long()
LOGITS = LABELS.double() + torch.randn(NUM_EXAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class ReadsLogits(nn.Module):
    """Returns the logits in its inputs, plus noise."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise * torch.randn(NUM_EXAMPLES, generator=torch.Generator().manual_seed(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, 1] + self.noise[inputs[:, 0].long()]


INPUTS = torch.stack([torch.arange(NUM_EXAMPLES).float(), LOGITS.float()], dim=1)


def evaluate(
    metric: str, noise: float = 0.0, *, batch_size: int = 64, arguments: dict[str, Any] | None = None, **changes: Any
) -> Evaluation:
    settings = TrainingSettings.model_validate(
        {
            "batch_size": batch_size,
            "optimizer": "torch.optim.SGD",
            "device": "cpu",
            "metric": {"class_path": f"torchmetrics.classification.{metric}", "init_args": arguments or {}},
            **changes,
        }
    )
    model = ReadsLogits(noise)
    training = DefaultTraining(model, settings, None, {"inputs": INPUTS, "targets": LABELS})
    return training.validate(model)


def test_binary_accuracy_has_one_score_per_example() -> None:
    evaluation = evaluate("BinaryAccuracy")
    assert evaluation.scores is not None
    assert evaluation.resampled is None
    assert torch.equal(evaluation.scores, ((torch.sigmoid(LOGITS) > 0.5).long() == LABELS).double())


@pytest.mark.parametrize("kind", ["MeanAbsoluteError", "MeanSquaredError"])
@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 2, 3)])
def test_errors_have_one_score_per_example_for_outputs_of_any_shape(kind: str, shape: tuple[int, ...]) -> None:
    """A table has one target per example, (N,)."""
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(shape)
    metric = getattr(torchmetrics.regression, kind)()
    scorer = scorer_for(metric)
    assert scorer is not None
    scores = scorer(outputs, targets)
    assert scores.shape == (6,)
    assert float(scores.mean()) == pytest.approx(float(metric(outputs, targets)), rel=1e-6)


# Of a few thresholds only, so that it is no function of placements.
RESAMPLED: dict[str, Any] = {"arguments": {"thresholds": 50}}


def test_other_metrics_are_resampled() -> None:
    evaluation = evaluate("BinaryAUROC", **RESAMPLED)
    assert evaluation.scores is None
    assert evaluation.resampled is not None
    assert evaluation.resampled.shape == (20,)
    assert evaluation.resampled.mean() == pytest.approx(float(evaluation.metric), abs=0.02)
    assert 0.005 < evaluation.resampled.std() < 0.1


def test_resamples_are_the_same_for_every_model_and_epoch() -> None:
    torch.manual_seed(0)
    first = evaluate("BinaryAUROC", **RESAMPLED).resampled
    torch.manual_seed(1)
    again = evaluate("BinaryAUROC", **RESAMPLED).resampled
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)


def test_resampling_does_not_change_the_global_generator() -> None:
    draws = []
    for num_resamples in (0, 100):
        torch.manual_seed(0)
        evaluate("BinaryAUROC", num_bootstrap_resamples=num_resamples, **RESAMPLED)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


def test_paired_resamples_measure_the_difference_more_exactly_than_each_metric() -> None:
    baseline, candidate = (evaluate("BinaryAUROC", noise, **RESAMPLED).resampled for noise in (0.0, 0.3))
    assert baseline is not None
    assert candidate is not None
    error = bootstrap_standard_error(baseline.numpy(), candidate.numpy())
    assert 0 < error < 0.5 * float(baseline.std())


def test_standard_errors_from_resamples_and_scores_agree() -> None:
    scored = [evaluate("BinaryAUROC", noise).scores for noise in (0.0, 0.5)]
    resampled = [evaluate("BinaryAUROC", noise, **RESAMPLED).resampled for noise in (0.0, 0.5)]
    expected = paired_standard_error(*(each.numpy() for each in scored if each is not None))
    found = bootstrap_standard_error(*(each.numpy() for each in resampled if each is not None))
    assert found == pytest.approx(expected, rel=0.4)


def test_resampling_can_be_switched_off() -> None:
    evaluation = evaluate("BinaryAUROC", num_bootstrap_resamples=0)
    assert evaluation.resampled is None
    assert evaluation.scores is None


@pytest.mark.parametrize(
    "metric",
    [
        "torchmetrics.MeanAbsoluteError",
        {"class_path": "torchmetrics.MeanSquaredError", "init_args": {"squared": False}},
        "torchmetrics.PearsonCorrCoef",
        "torchmetrics.regression.NormalizedRootMeanSquaredError",  # whose states torchmetrics cannot merge
    ],
)
def test_a_diverged_model_does_not_change_how_the_next_ones_are_judged(metric: Any) -> None:
    """An epoch that has failed is followed by others, whose drop needs a standard error as well."""
    settings = TrainingSettings.model_validate({"loss": "torch.nn.MSELoss", "metric": metric})
    model = ReadsLogits(noise=0.5)
    training = DefaultTraining(model, settings, None, {"inputs": INPUTS, "targets": LOGITS.float()})
    first = training.validate(model)
    noise, model.noise = model.noise, torch.full_like(model.noise, torch.nan)
    assert not torch.as_tensor(training.validate(model).metric).isfinite()
    model.noise = noise
    assert standard_error_of(first, training.validate(model)) is not None


def test_a_single_resample_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="must be 0, for none, or at least 2, but got 1"):
        evaluate("BinaryAUROC", num_bootstrap_resamples=1)


@pytest.mark.parametrize(
    "scores",
    [[1.0, 0.0, 1.0], np.array([1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]), [torch.tensor(1.0), np.float64(0), 1]],
)
def test_an_evaluation_takes_arrays_lists_and_tensors(scores: Any) -> None:
    evaluation = Evaluation(2 / 3, scores)
    assert isinstance(evaluation.scores, Tensor)
    assert evaluation.scores.tolist() == [1, 0, 1]
    assert evaluation.score_range is None


def test_scores_may_be_of_any_precision() -> None:
    evaluation = Evaluation(2 / 3, torch.tensor([1.0, 0.0, 1.0], dtype=torch.bfloat16))
    assert standard_error_of(evaluation, evaluation) == standard_error_of(*[Evaluation(2 / 3, [1.0, 0.0, 1.0])] * 2)


def test_a_range_of_scores_may_be_a_list() -> None:
    assert Evaluation(0.5, [0.0, 1.0], score_range=[0, 1]).score_range == (0.0, 1.0)  # type: ignore[arg-type]


def test_truth_values_are_scores_from_0_to_1() -> None:
    assert Evaluation(0.5, np.array([True, False])).score_range == (0, 1)


@pytest.mark.parametrize("scores", [["good", "bad"], [[1.0], [1.0, 2.0]], object()])
def test_scores_that_are_no_numbers_are_refused(scores: Any) -> None:
    with pytest.raises(MetricError, match="scores of an Evaluation must be numbers"):
        Evaluation(0.5, scores)

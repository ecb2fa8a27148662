"""What a validation tells beside the metric, for metrics that are means over examples and for others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.certificate import bootstrap_standard_error, paired_standard_error
from kedro_aat.errors import ConfigurationError
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.settings import TrainingSettings

N = 400
LABELS = (torch.arange(N) % 3 == 0).long()
LOGITS = LABELS.double() + torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Recorded(nn.Module):
    """Answers with logits that stand in the inputs."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise * torch.randn(N, generator=torch.Generator().manual_seed(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, 1] + self.noise[inputs[:, 0].long()]


INPUTS = torch.stack([torch.arange(N).float(), LOGITS.float()], dim=1)


def evaluate(metric: str, noise: float = 0.0, *, batch_size: int = 64, **more: Any) -> Evaluation:
    settings = TrainingSettings.model_validate(
        {
            "batch_size": batch_size,
            "optimizer": "torch.optim.SGD",
            "metric": {"class_path": f"torchmetrics.classification.{metric}"},
            **more,
        }
    )
    model = Recorded(noise)
    training = DefaultTraining(model, settings, None, {"inputs": INPUTS, "targets": LABELS})
    return training.validate(model)


def test_binary_accuracy_has_a_score_an_example() -> None:
    evaluation = evaluate("BinaryAccuracy")
    assert evaluation.scores is not None
    assert evaluation.resampled is None
    assert torch.equal(evaluation.scores, ((torch.sigmoid(LOGITS) > 0.5).long() == LABELS).double())


@pytest.mark.parametrize("metric", ["BinaryAUROC", "BinaryF1Score", "BinaryJaccardIndex"])
def test_other_metrics_are_resampled(metric: str) -> None:
    evaluation = evaluate(metric)
    assert evaluation.scores is None
    assert evaluation.resampled is not None
    assert evaluation.resampled.shape == (100,)
    assert evaluation.resampled.mean() == pytest.approx(float(evaluation.metric), abs=0.02)
    assert 0.005 < evaluation.resampled.std() < 0.1


def test_resamples_are_the_same_for_every_model_and_epoch() -> None:
    torch.manual_seed(0)
    first = evaluate("BinaryAUROC").resampled
    torch.manual_seed(1)
    again = evaluate("BinaryAUROC").resampled
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)


def test_training_draws_as_if_nothing_had_been_resampled() -> None:
    drawn = []
    for num_resamples in (0, 100):
        torch.manual_seed(0)
        evaluate("BinaryAUROC", num_bootstrap_resamples=num_resamples)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_paired_resamples_know_the_difference_better_than_each_metric() -> None:
    baseline, candidate = evaluate("BinaryAUROC").resampled, evaluate("BinaryAUROC", 0.3).resampled
    assert baseline is not None
    assert candidate is not None
    error = bootstrap_standard_error(baseline.numpy(), candidate.numpy())
    assert 0 < error < 0.5 * float(baseline.std())


def test_resampling_agrees_with_scores_where_both_are_known() -> None:
    baseline, candidate = evaluate("BinaryAccuracy"), evaluate("BinaryAccuracy", 0.5)
    assert baseline.scores is not None
    assert candidate.scores is not None
    expected = paired_standard_error(baseline.scores.numpy(), candidate.scores.numpy())
    # The accuracy by another way: from counts of right and wrong, which have no scores.
    many = {"num_bootstrap_resamples": 1000}
    one, other = evaluate("BinaryStatScores", **many).resampled, evaluate("BinaryStatScores", 0.5, **many).resampled
    assert one is not None
    assert other is not None
    accuracies = [(each[:, 0] + each[:, 2]) / each[:, :4].sum(1) for each in (one, other)]
    error = bootstrap_standard_error(accuracies[0].numpy(), accuracies[1].numpy())
    assert error == pytest.approx(expected, rel=0.1)


def test_resampling_can_be_left_out() -> None:
    assert evaluate("BinaryAUROC", num_bootstrap_resamples=0).resampled is None


def test_one_resample_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be 0, for none, or at least 2, but got 1"):
        evaluate("BinaryAUROC", num_bootstrap_resamples=1)

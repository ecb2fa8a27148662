"""Scores per example of a metric, for its standard error.

The accuracy budget limits the difference to the baseline, which is known much better if both models are compared
example by example. This module knows which metrics are means over examples; for others, such as AUC or IoU, see
`resampling`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_accuracy

from kedro_aat.budget import Budget
from kedro_aat.certificate import Certificate, bootstrap_standard_error, certify, paired_standard_error
from kedro_aat.training.callables import Evaluation

Scorer = Callable[[Tensor, Tensor], Tensor]

# Largest difference of the scores' mean to the metric, relative to the larger of 1 and the metric.
TOLERANCE = 1e-5


def scorer_for(metric: Any) -> Scorer | None:
    """The function from outputs (B, ...) and targets (B, ...) to the metric's scores (B,); None if unknown."""
    kind = type(metric).__name__
    if kind == "MulticlassAccuracy":
        is_mean = metric.average == "micro" and metric.top_k == 1 and metric.ignore_index is None
        return _is_right if is_mean else None
    if kind == "BinaryAccuracy" and metric.ignore_index is None and metric.multidim_average == "global":
        return partial(_is_right_binary, threshold=metric.threshold)
    if kind == "MeanAbsoluteError" and metric.num_outputs == 1:
        return lambda outputs, targets: _mean_per_example((outputs - targets).abs())
    if kind == "MeanSquaredError" and metric.num_outputs == 1 and metric.squared:
        return lambda outputs, targets: _mean_per_example((outputs - targets).square())
    return None


def agrees_with(scores: Tensor, metric: Tensor) -> bool:
    """Whether the metric is the mean of the scores."""
    difference = float((scores.double().mean() - metric.double().cpu()).abs())
    return difference <= TOLERANCE * max(1.0, float(metric.abs()))


def _is_right(outputs: Tensor, targets: Tensor) -> Tensor:
    labels = outputs if outputs.dim() == targets.dim() else outputs.argmax(1)
    return (labels == targets).flatten(1).double().mean(1) if targets.dim() > 1 else (labels == targets).double()


def _is_right_binary(outputs: Tensor, targets: Tensor, *, threshold: float) -> Tensor:
    flat = outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1)
    return binary_accuracy(*flat, threshold=threshold, multidim_average="samplewise", validate_args=False)


def _mean_per_example(errors: Tensor) -> Tensor:
    return errors.reshape(len(errors), -1).mean(1)  # (B,) from (B,) or (B, ...)


def joined(parts: list[Tensor]) -> Tensor:
    """The scores of all batches, (N,) in float64 on the CPU."""
    return torch.cat(parts).double().cpu()


def standard_error_of(baseline: Evaluation | None, evaluation: Evaluation) -> float | None:
    """Standard error of the difference of two metrics.

    Args:
        baseline: The uncompressed model; None if unknown.
        evaluation: The compressed model on the same examples.

    Returns:
        The standard error; None without scores per example or metrics on resamples.
    """
    if baseline is None:
        return None
    if baseline.scores is not None and evaluation.scores is not None:
        groups = None if evaluation.groups is None else evaluation.groups.cpu().numpy()
        return paired_standard_error(baseline.scores.cpu().numpy(), evaluation.scores.cpu().numpy(), groups)
    if baseline.resampled is not None and evaluation.resampled is not None:
        if baseline.resampled.shape != evaluation.resampled.shape:
            return None  # a bootstrap of one model, and a jackknife of the other
        return bootstrap_standard_error(baseline.resampled.cpu().numpy(), evaluation.resampled.cpu().numpy())
    return None


def certify_evaluations(
    baseline: Evaluation, candidate: Evaluation, budget: Budget, alpha: float
) -> Certificate | None:
    """Tests once whether the candidate keeps the budget; None if an evaluation has no scores.

    Args:
        baseline: The uncompressed model on the test split.
        candidate: The compressed model on it.
        budget: Its drop and direction are tested.
        alpha: Accepted probability of certifying a model that breaks its budget.
    """
    if baseline.scores is None or candidate.scores is None:
        return None
    return certify(
        baseline.scores.cpu().numpy(),
        candidate.scores.cpu().numpy(),
        tolerated_drop=budget.drop,
        higher_is_better=budget.higher_is_better,
        alpha=alpha,
    )

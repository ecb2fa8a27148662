"""Scores per example of a metric, for its standard error.

The accuracy budget limits the difference to the baseline, which is known much better if both models are compared
example by example. This module knows which metrics are means over examples; for others, such as AUC or IoU, see
`linearization`, and for the rest `resampling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import binary_accuracy
from torchmetrics.functional.segmentation import dice_score, generalized_dice_score

from kedro_aat.budget import Budget
from kedro_aat.certificate import Certificate, bootstrap_standard_error, certify, paired_standard_error
from kedro_aat.certificate.linearized import certify_linearized
from kedro_aat.errors import DataError, MetricError
from kedro_aat.training.callables import Evaluation, Linearization

# Largest difference of the scores' mean to the metric, relative to the larger of 1 and the metric.
TOLERANCE = 1e-5

# Range of scores that are shares, and of errors.
SHARES, ERRORS = (0.0, 1.0), (0.0, math.inf)


@dataclass(frozen=True)
class Scorer:
    """The scores of a metric that is a mean over examples.

    Attributes:
        function: From outputs (B, ...) and targets (B, ...) to the scores, (B,); NaN where the metric leaves an example
            out.
        score_range: Lowest and highest possible score.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    score_range: tuple[float, float]

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.function(outputs, targets)


class Scores:
    """The scores of all batches.

    Args:
        scorer: What gives the scores of a batch.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._parts: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch of outputs (B, ...) and targets (B, ...)."""
        self._parts.append(self._scorer(outputs, targets))

    def evaluation(self, metric: Any) -> Evaluation | None:
        """The metric with all scores; None if it is not their mean."""
        values = joined(self._parts)
        is_defined = ~values.isnan()
        num_defined = int(is_defined.sum())
        if not num_defined or not agrees_with(values[is_defined], metric.compute()):
            return None
        mean = float(values[is_defined].mean())
        if num_defined == len(values):
            return Evaluation(mean, values, score_range=self._scorer.score_range)
        # A mean over some of the examples, and the models may differ in which: a ratio of two sums.
        share = num_defined / len(values)
        lowest, highest = (mean + (end - mean) / share for end in self._scorer.score_range)
        return Evaluation(
            mean,
            torch.where(is_defined, mean + (values - mean) / share, mean),
            score_range=(lowest, highest),
            is_linearized=True,
            linearization=Linearization(num_defined),
        )


def scorer_for(metric: Any) -> Scorer | None:
    """What gives the metric's score of each example; None if the metric is no mean over examples, or unknown."""
    kind = type(metric).__name__
    if kind in _SAME_AS_ACCURACY:
        is_mean = metric.average == "micro" and metric.ignore_index is None and metric.multidim_average == "global"
        return Scorer(partial(_is_right, top_k=metric.top_k), SHARES) if is_mean else None
    if kind == "BinaryAccuracy" and metric.ignore_index is None and metric.multidim_average == "global":
        return Scorer(partial(_is_right_binary, threshold=metric.threshold), SHARES)
    if kind == "MeanAbsoluteError" and metric.num_outputs == 1:
        return Scorer(lambda outputs, targets: _mean_per_example((outputs - targets).abs()), ERRORS)
    if kind == "MeanSquaredError" and metric.num_outputs == 1 and metric.squared:
        return Scorer(lambda outputs, targets: _mean_per_example((outputs - targets).square()), ERRORS)
    if kind == "DiceScore" and metric.aggregation_level == "samplewise" and metric.average not in (None, "none"):
        names = ("num_classes", "include_background", "average", "input_format", "aggregation_level")
        return Scorer(_with_own(dice_score, metric, *names), SHARES)
    if kind == "GeneralizedDiceScore" and not metric.per_class:
        own = _with_own(
            generalized_dice_score, metric, "num_classes", "include_background", "weight_type", "input_format"
        )
        return Scorer(own, SHARES)
    return None


# Averaged over all labels alike, a wrong label is one false positive and one false negative.
_SAME_AS_ACCURACY = tuple(f"Multiclass{kind}" for kind in ("Accuracy", "Precision", "Recall", "F1Score", "FBetaScore"))


def _with_own(function: Callable[..., Tensor], metric: Any, *names: str) -> Callable[..., Tensor]:
    """The function with the metric's own arguments of these names."""
    return partial(function, **{name: getattr(metric, name) for name in names})


def agrees_with(scores: Tensor, metric: Tensor) -> bool:
    """Whether the metric is the mean of the scores."""
    difference = float((scores.double().mean() - metric.double().cpu()).abs())
    return difference <= TOLERANCE * max(1.0, float(metric.abs()))


def _is_right(outputs: Tensor, targets: Tensor, *, top_k: int) -> Tensor:
    if top_k > 1:
        return (outputs.topk(top_k, dim=1).indices == targets.unsqueeze(1)).any(1).double()
    labels = outputs if outputs.dim() == targets.dim() else outputs.argmax(1)
    return (labels == targets).flatten(1).double().mean(1) if targets.dim() > 1 else (labels == targets).double()


def _is_right_binary(outputs: Tensor, targets: Tensor, *, threshold: float) -> Tensor:
    flat = outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1)
    return binary_accuracy(*flat, threshold=threshold, multidim_average="samplewise", validate_args=False)


def _mean_per_example(errors: Tensor) -> Tensor:
    return errors.reshape(len(errors), -1).mean(1)  # (B,) from (B,) or (B, ...)


def require_one_number(name: str, value: Any) -> Any:
    """The value of a metric.

    Raises:
        MetricError: If it is not one number.
    """
    shape = tuple(getattr(value, "shape", ()))
    if math.prod(shape) != 1 or isinstance(value, Mapping):
        kind = f"an array of shape {shape}" if shape else f"a {type(value).__name__}"
        raise MetricError(
            f"{name} computes {kind}, but a budget needs one number. Set an average in its init_args, such as macro, "
            "or choose another metric; guards (budget.also) may have one number per class."
        )
    return value


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
        return paired_standard_error(_numbers(baseline.scores), _numbers(evaluation.scores), groups)
    if baseline.resampled is not None and evaluation.resampled is not None:
        if baseline.resampled.shape != evaluation.resampled.shape:
            return None  # a bootstrap of one model, and a jackknife of the other
        return bootstrap_standard_error(_numbers(baseline.resampled), _numbers(evaluation.resampled))
    return None


def _numbers(values: Tensor) -> NDArray[np.float64]:
    """The values as NumPy's, which has no bfloat16."""
    numbers: NDArray[np.float64] = values.cpu().double().numpy()
    return numbers


def certify_evaluations(
    baseline: Evaluation,
    candidate: Evaluation,
    budget: Budget,
    alpha: float,
    score_range: tuple[float, float] | None = None,
) -> Certificate | None:
    """Tests once whether the candidate keeps the budget; None if an evaluation has no scores.

    Args:
        baseline: The uncompressed model on the test split.
        candidate: The compressed model on it.
        budget: Its drop and direction are tested.
        alpha: Accepted probability of certifying a model that breaks its budget.
        score_range: Lowest and highest possible score of an example, of its absolute error for RMSE and R2; None takes
            what the evaluations know.

    Raises:
        DataError: As `certify` does.
    """
    if baseline.scores is None or candidate.scores is None:
        return None
    scores = [_numbers(each) for each in (baseline.scores, candidate.scores)]
    if baseline.is_linearized or candidate.is_linearized:
        known = [each.linearization.effective_examples for each in (baseline, candidate) if each.linearization]
        return certify_linearized(
            *scores,
            worst_drop=worst_drop(baseline, candidate, budget, score_range),
            effective_examples=min(known, default=0.0),
            tolerated_drop=budget.drop,
            higher_is_better=budget.higher_is_better,
            alpha=alpha,
            is_grouped=baseline.groups is not None or candidate.groups is not None,
        )
    return certify(
        *scores,
        tolerated_drop=budget.drop,
        higher_is_better=budget.higher_is_better,
        alpha=alpha,
        score_range=score_range or candidate.score_range,
        groups=None if candidate.groups is None else candidate.groups.cpu().numpy(),
    )


def worst_drop(
    baseline: Evaluation, candidate: Evaluation, budget: Budget, error_range: tuple[float, float] | None
) -> float | None:
    """The largest possible drop of one example's linearized score, which may be infinite; None if unknown.

    Args:
        baseline: The uncompressed model.
        candidate: The compressed model; the baseline itself if there is none yet.
        budget: Its direction counts.
        error_range: Lowest and highest possible absolute error of an example; None if unknown.

    Raises:
        DataError: If an error is outside of its range.
    """
    ranges = [_range_of(evaluation, error_range) for evaluation in (baseline, candidate)]
    if ranges[0] is None or ranges[1] is None:
        return None
    before, after = ranges[0], ranges[1]
    return before[1] - after[0] if budget.higher_is_better else after[1] - before[0]


def _range_of(evaluation: Evaluation, error_range: tuple[float, float] | None) -> tuple[float, float] | None:
    slope = evaluation.linearization.per_squared_error if evaluation.linearization else None
    if slope is None or evaluation.score_range is None:
        return evaluation.score_range
    if error_range is None:
        return None
    lowest, highest = (slope * max(0.0, end) ** 2 for end in error_range)
    found = evaluation.score_range[0] + min(lowest, highest), evaluation.score_range[1] + max(lowest, highest)
    room = TOLERANCE * (found[1] - found[0])
    scores = evaluation.scores
    if scores is not None and bool(((scores < found[0] - room) | (scores > found[1] + room)).any()):
        raise DataError(
            f"score_range must include the absolute errors of all examples, but one is outside of "
            f"({error_range[0]:g}, {error_range[1]:g})"
        )
    return found

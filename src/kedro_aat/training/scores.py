"""One score a validation example, for metrics that are means over examples.

The accuracy budget is judged on the difference to the baseline, and that is known much better when both models are
compared example by example. Which metrics are such means is looked up here; other metrics have no scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Scorer = Callable[[Tensor, Tensor], Tensor]

# How far the mean of the scores may be from the metric, relative to the larger of 1 and the metric.
TOLERANCE = 1e-5


def scorer_for(metric: Any) -> Scorer | None:
    """The function of outputs (B, ...) and targets (B, ...) that gives the metric's scores (B,); None if unknown."""
    kind = type(metric).__name__
    if kind == "MulticlassAccuracy":
        is_mean = metric.average == "micro" and metric.top_k == 1 and metric.ignore_index is None
        return _is_right if is_mean else None
    if kind == "MeanAbsoluteError" and metric.num_outputs == 1:
        return lambda outputs, targets: (outputs - targets).abs().flatten(1).mean(1)
    if kind == "MeanSquaredError" and metric.num_outputs == 1 and metric.squared:
        return lambda outputs, targets: (outputs - targets).square().flatten(1).mean(1)
    return None


def agrees_with(scores: Tensor, metric: Tensor) -> bool:
    """Whether the metric is the mean of the scores, as it has to be."""
    difference = float((scores.double().mean() - metric.double().cpu()).abs())
    return difference <= TOLERANCE * max(1.0, float(metric.abs()))


def _is_right(outputs: Tensor, targets: Tensor) -> Tensor:
    labels = outputs if outputs.dim() == targets.dim() else outputs.argmax(1)
    return (labels == targets).flatten(1).double().mean(1) if targets.dim() > 1 else (labels == targets).double()


def joined(parts: list[Tensor]) -> Tensor:
    """The scores of all batches, on the CPU, (N,) in double precision."""
    return torch.cat(parts).double().cpu()

"""Which metrics can be linearized, and how."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from torchmetrics import Metric

from kedro_aat.training.callables import Evaluation
from kedro_aat.training.linearization.ranks import Ranks
from kedro_aat.training.linearization.sums import Sums
from kedro_aat.training.linearization.tables import Table


class Linearizer(Protocol):
    """Sees all batches of a validation, and then gives one score per example."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch of outputs (B, ...) and targets (B, ...)."""

    def evaluation(self, metric: Metric) -> Evaluation | None:
        """The metric with a score per example; None if they do not reproduce the metric.

        Args:
            metric: The metric after the same batches.
        """


def linearizer_for(metric: Any, num_examples: int) -> Linearizer | None:
    """What linearizes a metric; None if nothing does.

    Args:
        metric: A metric; the result is None unless it is one of torchmetrics, with states of its own.
        num_examples: Number of examples, N.
    """
    if not isinstance(metric, Metric) or any(isinstance(part, Metric) for part in metric.children()):
        return None
    for kind in (Table, Ranks, Sums):
        if kind.suits(metric):
            return kind(metric, num_examples)
    return None

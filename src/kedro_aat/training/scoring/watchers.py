"""What watches a validation beside the metric, so that the metric has a standard error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor
from torchmetrics import Metric

from kedro_aat.training.callables import Evaluation
from kedro_aat.training.scoring.linearization import linearizer_for
from kedro_aat.training.scoring.resampling import Bootstrap, resampling_for
from kedro_aat.training.scoring.scores import Scores, scorer_for


class Watcher(Protocol):
    """Sees all batches of one validation, and then evaluates the model."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch of outputs (B, ...) and targets (B, ...)."""

    def evaluation(self, metric: Any) -> Evaluation | None:
        """The metric with what was seen; None if that does not reproduce the metric.

        Args:
            metric: The metric after the same batches.
        """


class NoWatcher:
    """Evaluates a model by its metric alone."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds nothing."""

    def evaluation(self, metric: Any) -> Evaluation:
        """The metric alone."""
        return Evaluation(metric.compute())


def watchers_for(
    metric: Any, number: int, num_examples: int, groups: Tensor | None = None
) -> list[Callable[[], Watcher]]:
    """What may watch validations of a metric, each a function that makes a new one; the first that works is the best.

    Scores of a mean over examples are exact. Linearized ones take hardly more time than the metric; a jackknife of
    groups takes that of 20 metrics, and a bootstrap that of as many as there are resamples. The last always works.

    Args:
        metric: A metric; None if there is none.
        number: Most groups, or number of resamples; 0 for scores of means alone.
        num_examples: Number of validation examples.
        groups: Number of the group of each example, from 0, (N,), if examples of one depend on each other.
    """
    ways: list[Callable[[], Watcher]] = []
    if (scorer := scorer_for(metric)) is not None:
        ways.append(partial(Scores, scorer))
    elif number and isinstance(metric, Metric):
        if (linearizer := linearizer_for(metric)) is not None:
            ways.append(partial(linearizer, metric, num_examples))
        ways += [
            partial(resampling_for, metric, number, num_examples, groups),
            partial(Bootstrap, metric, number, groups),
        ]
    return [*ways, NoWatcher]

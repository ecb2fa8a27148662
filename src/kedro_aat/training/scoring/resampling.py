"""A metric on variants of the validation examples, for the standard error of a metric that is no mean over examples."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.wrappers import BootStrapper

from kedro_aat.training.callables import Evaluation
from kedro_aat.training.scoring.linearization.waiting import Waiting

logger = logging.getLogger(__name__)

# Groups of the jackknife, whose standard error then has a relative uncertainty of 1 / sqrt(2 * 19), or 16%.
MAX_GROUPS = 20
# Examples per group. Fewer may by chance have logits in [0, 1] only, which torchmetrics takes for probabilities.
MIN_GROUP_SIZE = 10
# With fewer groups the standard error is too uncertain, and there are so few examples that a bootstrap takes no time.
MIN_GROUPS = 10
# Largest difference of the merged groups to the metric, relative to the larger of 1 and the metric.
TOLERANCE = 1e-4


class Jackknife:
    """A metric on the validation examples without one group, for each of G groups.

    Each example updates the state of its group, once. The states of all groups but one are merged as torchmetrics
    merges those of several processes. The groups depend on nothing but the number of examples, so they are the same for
    all models, and a split that is sorted by class has every class in every group.

    Args:
        metric: A torchmetrics metric with states of its own.
        num_groups: Number of groups, G, at least 2.
        num_examples: Number of validation examples, N, at least G.
        units: Numbers from 0 of what no group may split, such as the patient of each example, (N,); None if examples do
            not depend on each other.
    """

    def __init__(self, metric: Any, num_groups: int, num_examples: int, units: Tensor | None = None) -> None:
        self._metric = metric.clone()
        self._metric.compute_with_cache = False  # states are set behind its back
        self._states: list[dict[str, Any]] = [{} for _ in range(num_groups)]
        num_units = num_examples if units is None else int(units.max()) + 1
        assigned = torch.randperm(num_units, generator=torch.Generator().manual_seed(0)) % num_groups
        self._groups = assigned if units is None else assigned[units]
        self._waiting = Waiting(self._update_groups)
        self._num_seen = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch of outputs (B, ...) and targets (B, ...)."""
        self._waiting.add(outputs, targets)

    def _update_groups(self, outputs: Tensor, targets: Tensor) -> None:
        positions = torch.arange(self._num_seen, self._num_seen + len(outputs))
        self._num_seen += len(outputs)
        groups = self._groups[positions % len(self._groups)]  # outputs may have several rows per example
        for group, state in enumerate(self._states):
            members = (groups == group).nonzero().flatten().to(outputs.device)
            if len(members):
                self._metric.reset()
                self._set(state)
                self._metric.update(outputs[members], targets[members])
                # The next reset empties the metric's own lists.
                kept = self._metric.metric_state.items()
                self._states[group] = {name: list(value) if isinstance(value, list) else value for name, value in kept}

    def reproduces(self, metric: Tensor) -> bool:
        """Whether all groups together have this metric, which is false for a metric that depends on the batches."""
        self._waiting.flush()
        merged = self._merged(self._states)
        return merged is not None and torch.allclose(
            merged, metric.cpu().double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
        )

    def evaluation(self, metric: Metric) -> Evaluation | None:
        """The metric with its values; None if the groups do not reproduce it."""
        value = metric.compute()
        return Evaluation(value, resampled=self.compute()) if self.reproduces(torch.as_tensor(value)) else None

    def compute(self) -> Tensor | None:
        """G values whose standard deviation is the jackknife's standard error of the metric.

        They are the metrics without a group, moved away from their mean by (G - 1) / sqrt(G). The standard deviation of
        differences between two models, sqrt((G - 1) / G * sum((d - mean(d))^2)) in terms of the metrics without a
        group, is then their paired standard error (Shao and Wu 1989, Annals of Statistics 17:1176-1197).

        Returns:
            (G,) in double precision on the CPU; None if the metric is undefined without a group.
        """
        self._waiting.flush()
        num_groups = len(self._states)
        values = [self._merged(self._states[:group] + self._states[group + 1 :]) for group in range(num_groups)]
        defined = [value for value in values if value is not None and bool(value.isfinite().all())]
        if len(defined) < num_groups:
            _warn_undefined(type(self._metric).__name__)
            return None
        without_one = torch.stack(defined)
        mean = without_one.mean(0)
        return mean + (without_one - mean) * (num_groups - 1) / math.sqrt(num_groups)

    def _merged(self, states: list[dict[str, Any]]) -> Tensor | None:
        """The metric of several groups; None if it cannot be computed."""
        merged: dict[str, Any] = {}
        for name, reduction in self._metric._reductions.items():
            values = [state[name] for state in states if state]
            if isinstance(values[0], list):
                merged[name] = [tensor for value in values for tensor in value]
            else:
                stacked = torch.stack(values)
                merged[name] = stacked if reduction is None else reduction(stacked)
        self._set(merged)
        try:
            value = torch.as_tensor(self._metric.compute())  # a user's metric may return a float
        except Exception:  # of a single example, or of states that the metric's class did not expect
            return None
        return value.cpu().double()

    def _set(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self._metric, name, value)


class Bootstrap:
    """A metric on resamples of the validation examples.

    Each resample contains an example a Poisson-distributed number of times, so that batches can be resampled one by
    one. The draw depends only on the order of the examples and the batch size, so it is the same for all models.

    Args:
        metric: A torchmetrics metric.
        num_resamples: Number of resamples, R.
        units: Numbers from 0 of what is drawn as a whole, such as the patient of each example, (N,); None draws
            examples.
    """

    def __init__(self, metric: Any, num_resamples: int, units: Tensor | None = None) -> None:
        self._bootstrap = BootStrapper(metric, num_bootstraps=num_resamples, mean=False, std=False, raw=True)
        self._bootstrap.reset()  # `metric` may have been used before
        self._generator = torch.Generator().manual_seed(0)
        self._units = units
        self._num_seen = 0
        if units is not None:
            drawn = torch.ones(num_resamples, int(units.max()) + 1)
            self._times = torch.poisson(drawn, self._generator).long()  # (R, units)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch of outputs (B, ...) and targets (B, ...)."""
        if self._units is not None:
            positions = torch.arange(self._num_seen, self._num_seen + len(outputs)) % len(self._units)
            self._num_seen += len(outputs)
            metrics: Any = self._bootstrap.metrics
            for metric, times in zip(metrics, self._times, strict=True):
                rows = torch.arange(len(outputs)).repeat_interleave(times[self._units[positions]])
                if len(rows):
                    metric.update(outputs[rows.to(outputs.device)], targets[rows.to(targets.device)])
            return
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generator.get_state())
            self._bootstrap.update(outputs, targets)
            self._generator.set_state(torch.get_rng_state())

    def evaluation(self, metric: Metric) -> Evaluation:
        """The metric with its values on the resamples."""
        return Evaluation(metric.compute(), resampled=self.compute())

    def compute(self) -> Tensor:
        """The metric on each resample, (R,) in double precision on the CPU."""
        nothing = torch.tensor(torch.nan)  # a resample of very few examples may have none
        metrics: list[Any] = [*self._bootstrap.metrics]
        values = [each.compute() if each.update_called else nothing for each in metrics]
        return torch.stack([torch.as_tensor(value).double().cpu() for value in values])


Resampling = Jackknife | Bootstrap


def resampling_for(metric: Metric, number: int, num_examples: int, units: Tensor | None = None) -> Resampling:
    """What gives the standard error of a metric that cannot be linearized.

    Args:
        metric: A metric of torchmetrics.
        number: Most groups, or number of resamples; at least 2.
        num_examples: Number of validation examples.
        units: Numbers from 0 of the groups of examples that depend on each other, (N,); None if none do.
    """
    num_groups = min(num_examples // MIN_GROUP_SIZE, MAX_GROUPS)
    if units is not None:
        num_groups = min(num_groups, int(units.max()) + 1)
    # A metric made of others has no states of its own.
    has_parts = any(isinstance(part, Metric) for part in metric.children())
    if num_groups < MIN_GROUPS or has_parts or not metric.metric_state:
        return Bootstrap(metric, number, units)
    return Jackknife(metric, min(number, num_groups), num_examples, units)


@functools.cache
def _warn_undefined(metric: str) -> None:
    """Warns once for each kind of metric."""
    logger.warning(
        "%s is undefined without some of the validation examples, so its standard error is unknown. Are there too few "
        "examples of one class?",
        metric,
    )

"""Scores per example of metrics whose state is a sum over examples: RMSE, R2, mean IoU, and most others."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, R2Score
from torchmetrics.segmentation import MeanIoU
from torchmetrics.utilities.data import dim_zero_sum

from kedro_aat.training.callables import Evaluation, Linearization
from kedro_aat.training.scoring.linearization.gradient import value_and_gradients
from kedro_aat.training.scoring.linearization.labels import classes_of, counts_of_pairs
from kedro_aat.training.scoring.linearization.reproduction import agrees, effective_number
from kedro_aat.training.scoring.linearization.waiting import Waiting

logger = logging.getLogger(__name__)

# Numbers in a metric's state that are kept for each example.
MAX_STATE = 64
# Largest difference of the examples' sum to the metric's state, relative to the sum of their sizes; it is summed in
# single precision.
TOLERANCE = 1e-4

# Metrics that are a mean over all numbers of something without an upper limit, and their number of numbers.
_MEANS = {
    "LogCoshError": "total",
    "MeanAbsolutePercentageError": "total",
    "MeanSquaredLogError": "total",
    "SymmetricMeanAbsolutePercentageError": "total",
    "TweedieDevianceScore": "num_observations",
}
# States that are sums of squared errors.
_SQUARED_ERRORS = {"MeanSquaredError": "sum_squared_error", "R2Score": "residual"}


class Sums:
    """A metric whose state is a sum over examples, each of which is what `update` makes of that example alone.

    Args:
        metric: A metric that `suits` accepts.
        num_examples: Number of examples, N.
    """

    def __init__(self, metric: Any, num_examples: int) -> None:
        self._num_examples = num_examples
        self._metric = metric.clone()
        self._metric.reset()
        self._parts: list[dict[str, Tensor]] | None = []
        self._waiting = Waiting(self._compute)

    @staticmethod
    def suits(metric: Any) -> bool:
        """Whether all states are sums of few numbers."""
        defaults, reductions = metric._defaults.values(), metric._reductions.values()
        return (
            len(defaults) > 0
            and all(isinstance(default, Tensor) for default in defaults)
            and all(reduction is dim_zero_sum for reduction in reductions)
            and sum(default.numel() for default in defaults) <= MAX_STATE
            and not (isinstance(metric, MeanIoU) and metric.num_classes is None)
        )

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch of outputs (B, ...) and targets (B, ...)."""
        self._waiting.add(outputs, targets)

    def _compute(self, outputs: Tensor, targets: Tensor) -> None:
        """Computes what each example adds to the states."""
        if self._parts is None:
            return
        if isinstance(self._metric, MeanIoU):
            self._parts.append(self._intersections(outputs, targets))
            return
        zeros = {
            name: torch.zeros(len(outputs), *default.shape, dtype=default.dtype, device=outputs.device)
            for name, default in self._metric._defaults.items()
        }
        try:
            self._parts.append(torch.func.vmap(self._states_of_one)(zeros, outputs, targets))
        except Exception as error:  # whatever an `update` raises that depends on the data, or on its own attributes
            logger.debug("%s cannot be computed example by example: %s", type(self._metric).__name__, error)
            self._parts = None

    def _intersections(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What `update` of mean IoU makes of each image; one-hot tensors take more time."""
        predicted, labels = classes_of(self._metric, outputs, targets)
        counts = counts_of_pairs(predicted, labels, self._metric.num_classes)
        both = counts.diagonal(dim1=1, dim2=2)  # (B, C)
        union = counts.sum(1) + counts.sum(2) - both
        if not self._metric.include_background:
            both, union = both[:, 1:], union[:, 1:]
        is_present = (union > 0).double()
        scores = both / union.clamp(min=1)
        if not self._metric.per_class:
            scores = scores.sum(1, keepdim=True)
            is_present = is_present.sum(1, keepdim=True).expand(is_present.shape)
        return {"score": scores, "num_batches": is_present}

    def _states_of_one(self, zeros: dict[str, Tensor], outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        for name, zero in zeros.items():
            setattr(self._metric, name, zero)
        self._metric.update(outputs.unsqueeze(0), targets.unsqueeze(0))
        return {name: getattr(self._metric, name) for name in zeros}

    def evaluation(self, metric: Metric) -> Evaluation | None:
        """The metric with a score per example; None if they do not reproduce the metric."""
        self._waiting.flush()
        if not self._parts:
            return None
        states = {
            name: torch.cat([part[name] for part in self._parts]).double().cpu().reshape(self._num_examples, -1)
            if sum(len(part[name]) for part in self._parts) == self._num_examples
            else None
            for name in self._parts[0]
        }
        values = {name: state for name, state in states.items() if state is not None}  # (N, S) each
        if len(values) < len(states) or not all(_adds_up(values[name], getattr(metric, name)) for name in values):
            return None
        totals = {name: state.sum(0) for name, state in values.items()}
        self._metric.cpu()
        found = value_and_gradients(self._metric, totals, self._reshaped)
        if found is None or found[2]:
            return None
        value, gradients, _ = found
        influences = {name: self._num_examples * (values[name] @ gradients[name]) for name in values}
        scores = value + torch.stack(list(influences.values())).sum(0)
        if not agrees(scores, metric):
            return None
        kind = type(metric).__name__
        if kind in _MEANS and bool((values[_MEANS[kind]] == values[_MEANS[kind]][0]).all()):
            return Evaluation(float(scores.mean()), scores, score_range=(0.0, torch.inf))
        score_range, slope = None, None
        name = _SQUARED_ERRORS.get(kind)
        if name is not None and totals[name].numel() == 1 and bool((values["total"] == 1).all()):
            slope = self._num_examples * float(gradients[name])
            rest = scores - influences[name]
            score_range = float(rest.min()), float(rest.max())
        elif isinstance(metric, MeanIoU) and not metric.per_class:
            # At best all classes of an image are right, at worst all are wrong.
            per_image = totals["num_batches"][0] / self._num_examples
            most = values["num_batches"].shape[1] / float(per_image)
            score_range = value - value * most, value + (1 - value) * most
        return Evaluation(
            float(scores.mean()),
            scores,
            score_range=score_range,
            is_linearized=True,
            linearization=Linearization(self._effective_examples(values), slope),
        )

    def _effective_examples(self, values: dict[str, Tensor]) -> float:
        """The smallest effective number of examples behind a sum that no example makes smaller."""
        columns = torch.cat(list(values.values()), dim=1)
        if isinstance(self._metric, R2Score):  # which depends on the spread of the targets, wherever they are
            targets = values["sum_error"]
            columns = torch.cat([columns, (targets - targets.mean(0)).square()], dim=1)
        columns = columns[:, (columns >= 0).all(0) & (columns > 0).any(0)]
        return effective_number(columns.sum(0), columns.square().sum(0))

    def _reshaped(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        # The state of a metric such as R2 has a number per target, though it begins as a single 0.
        assert self._parts  # the caller made sure of it
        return {name: each.reshape(self._parts[0][name].shape[1:]) for name, each in sums.items()}


def _adds_up(values: Tensor, state: Tensor) -> bool:
    size = float(values.abs().sum(0).max()) if values.numel() else 0.0
    return float((values.sum(0) - state.double().cpu().flatten()).abs().max()) <= TOLERANCE * max(size, 1e-30)

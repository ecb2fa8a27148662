"""Guard metrics: computed on the outputs of each validation, and required of each evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from kedro_aat.budget import Budget, GuardSettings
from kedro_aat.training.callables import Evaluation
from kedro_aat.training.target_forms import TargetForm


class GuardMetrics:
    """The guards' metrics during a validation.

    Args:
        guards: Settings of the guards; those without a metric are left to the user's function.
        device: Device of outputs and targets.
    """

    def __init__(self, guards: Sequence[GuardSettings], device: torch.device) -> None:
        self._metrics: dict[str, Any] = {
            guard.label: on_its_own(guard.metric.make()).to(device) for guard in guards if guard.metric is not None
        }
        self._forms = {name: TargetForm(metric) for name, metric in self._metrics.items()}

    def reset(self) -> None:
        """Begins a validation."""
        for metric in self._metrics.values():
            metric.reset()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch of outputs (B, ...) and targets (B, ...)."""
        for name, metric in self._metrics.items():
            metric.update(*self._forms[name](outputs, targets))

    def added_to(self, validate: Callable[..., Evaluation]) -> Callable[..., Evaluation]:
        """The validation function with the guards' values in `also`; itself if there are no guards."""
        if not self._metrics:
            return validate

        @wraps(validate)
        def with_guards(model: nn.Module, epoch: int | None = None) -> Evaluation:
            evaluation = validate(model, epoch)
            return replace(evaluation, also={name: metric.compute() for name, metric in self._metrics.items()})

        return with_guards


def guarded(evaluation: Evaluation, budget: Budget, what: str) -> Evaluation:
    """The evaluation with the values of the budget's guards alone.

    Args:
        evaluation: What a validation function returned.
        budget: The budget with its guards.
        what: What was validated, for errors.

    Raises:
        MetricError: If a guard's value is missing; `DivergedError` if it is NaN or infinite.
    """
    return replace(evaluation, also=budget.guard_values(evaluation.also, what))


def on_its_own(metric: Any) -> Any:
    """A metric that computes from what this process has seen, though others train beside it; changed in place."""
    for part in metric.modules() if isinstance(metric, nn.Module) else ():
        if isinstance(part, Metric):
            part.distributed_available_fn = _never
    return metric


def _never() -> bool:
    return False

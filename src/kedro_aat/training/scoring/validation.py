"""One validation: the metric of a split, what watches it for a standard error, and the guards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kedro_aat.budget import GuardSettings
from kedro_aat.training.callables import Evaluation
from kedro_aat.training.scoring.guard_metrics import GuardMetrics, on_its_own
from kedro_aat.training.scoring.scores import require_one_number
from kedro_aat.training.scoring.watchers import NoWatcher, Watcher, watchers_for
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.training.target_forms import TargetForm

See = Callable[[Tensor, Any], None]  # takes outputs (B, ...) and targets (B, ...) of a batch


class Validation:
    """Judges models by the outputs for the examples of a split.

    Args:
        settings: Settings of the training, with the metric.
        num_examples: Number of examples of the split.
        groups: The group of each example, (N,), if examples of one depend on each other.
        guards: Further metrics.
        device: Device of outputs and targets.

    Attributes:
        guards: The guards' metrics.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        num_examples: int,
        groups: Tensor | None,
        guards: Sequence[GuardSettings],
        device: torch.device,
    ) -> None:
        self._name = settings.metric_name
        self._metric = on_its_own(settings.metric.make()).to(device) if settings.metric else None
        self._form = TargetForm(self._metric)
        self.guards = GuardMetrics(guards, device)
        self._watchers = watchers_for(self._metric, settings.num_bootstrap_resamples, num_examples, groups)
        self._is_reproduced = False  # whether the first of these has reproduced the metric

    def leave_out_standard_errors(self) -> None:
        """Computes the metric alone from now on."""
        self._watchers = [NoWatcher]

    def evaluate(self, run: Callable[[See], None]) -> Evaluation:
        """The metric over a split, with what its standard error comes from.

        Args:
            run: Runs the model on the split, and shows outputs and targets of each batch; perhaps called again.
        """
        while True:
            watcher = self._watchers[0]()
            metric = self._measure(run, watcher)
            value = require_one_number(self._name, metric.compute())
            if (evaluation := watcher.evaluation(metric)) is not None:
                self._is_reproduced = True
                return evaluation
            # A model that has diverged says nothing about the next ones, which are compared with the baseline's scores.
            if self._is_reproduced or not torch.as_tensor(value).isfinite().all():
                return Evaluation(value)
            self._watchers.pop(0)  # it does not reproduce this metric

    def _measure(self, run: Callable[[See], None], watcher: Watcher) -> Any:
        """The metric of all batches, which `watcher` sees too."""
        metric = self._metric
        assert metric is not None  # the settings require a metric, or a function instead of this one
        metric.reset()
        self.guards.reset()

        def see(outputs: Tensor, targets: Any) -> None:
            read = self._form(outputs, targets)
            metric.update(*read)
            self.guards.update(outputs, targets)
            watcher.update(*read)

        run(see)
        return metric

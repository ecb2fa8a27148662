"""Watches the validation of the baseline, and questions what cannot be worth compressing.

A search keeps what the metric measures. If the baseline is no better than an answer that ignores its input, there is
nothing to keep, and any model, however small, is within budget.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from kedro_aat.errors import AatError, DataError, MetricError
from kedro_aat.training.callables import Evaluation
from kedro_aat.training.checks.chance import best_chance, is_better
from kedro_aat.training.checks.targets import label_mistakes, takers_of_labels, target_mistakes
from kedro_aat.training.data import Data, as_dataset
from kedro_aat.training.loading.settings import BatchSettings
from kedro_aat.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

# Targets of a dataset of the user's are kept to judge constant answers by; above this, they would not fit into memory.
MAX_TARGET_BYTES = 2**29


class BaselineCheck:
    """Questions a baseline, from the one pass over the validation split that its evaluation takes.

    Args:
        settings: Settings of the training; `baseline_check` says whether a question is an error or a warning.
        validation_data: Validation split.
    """

    def __init__(self, settings: TrainingSettings, validation_data: Data) -> None:
        self._settings = settings
        dataset = as_dataset(validation_data, "validation", settings.batch)
        self._num_examples, self._num_seen = len(dataset), 0
        is_pair = type(dataset) is TensorDataset and settings.batch == BatchSettings() and len(dataset.tensors) == 2
        self._targets: Tensor | None = dataset.tensors[1] if is_pair else None
        self._kept: list[Tensor] = []
        self._num_bytes = 0
        self._takers: dict[str, object] = {}
        self._first: Tensor | None = None  # output of the first example, (1, ...)
        self._sum: Tensor | None = None  # of all outputs, (...); None if their shapes differ
        self._varies = torch.tensor(False)
        self._num_nan = torch.tensor(0)

    def see(self, outputs: Tensor, targets: Tensor) -> None:
        """Looks at one batch: outputs (B, ...) and targets (B, ...).

        Raises:
            DataError: If metric or loss misread the targets.
        """
        if self._num_seen >= self._num_examples:  # a validation may read the split a second time
            return
        if self._num_seen == 0:
            self._takers = takers_of_labels(self._settings)
            self._report(DataError, target_mistakes(outputs, targets, self._settings))
        if mistakes := label_mistakes(outputs, targets, self._takers):
            self._takers = {}  # one report is enough
            self._report(DataError, mistakes)
        self._num_seen += len(outputs)
        self._num_nan = self._num_nan.to(outputs.device) + outputs.isnan().reshape(len(outputs), -1).any(1).sum()
        if self._first is None:
            self._first, self._sum = outputs[:1].clone(), torch.zeros_like(outputs[0])
        if outputs.shape[1:] != self._first.shape[1:]:
            self._sum, self._varies = None, torch.tensor(True)
        else:
            # In other batches, the same numbers may be rounded in another way.
            differs = (outputs - self._first).abs() > 2 * torch.finfo(outputs.dtype).eps * self._first.abs()
            self._varies = self._varies.to(outputs.device) | differs.any()
            self._sum = None if self._sum is None else self._sum + outputs.sum(0)
        if self._targets is None:
            self._keep(targets)

    def _keep(self, targets: Tensor) -> None:
        self._num_bytes += targets.nbytes
        if self._num_bytes <= MAX_TARGET_BYTES:
            self._kept.append(targets.cpu())
        else:
            self._kept.clear()

    def judge(self, baseline: Evaluation, *, higher_is_better: bool) -> None:
        """Questions the metric.

        Raises:
            MetricError: If the baseline is no better than an answer that ignores its input.
        """
        if self._settings.baseline_check == "off":
            return
        if questions := [*self._questions(baseline, higher_is_better)]:
            advice = (
                "A search would keep what this metric measures, which is nothing. Were the weights loaded, are the "
                "inputs prepared as in the training, and do metric and targets fit?"
            )
            self._report(MetricError, [*questions, advice])

    def _questions(self, baseline: Evaluation, higher_is_better: bool) -> Iterator[str]:
        number = f"{self._num_examples:,} validation examples"
        name = self._settings.metric_name
        if num_nan := int(self._num_nan):
            yield f"The baseline answers {num_nan:,} of {number} with NaN."
        if self._num_seen > 1 and not self._varies:
            yield f"The baseline answers all {number} with the same output."
        if higher_is_better and baseline.metric == 0:
            yield f"The baseline's {name} is 0 on {number}, where higher is better."
            return
        if self._sum is None or (targets := self._all_targets()) is None:
            return
        mean_output = self._sum / self._num_seen
        chance = best_chance(self._settings, targets, mean_output, higher_is_better=higher_is_better)
        if chance is None:
            return
        error = chance.standard_error(baseline, self._settings, targets)
        if not is_better(baseline.metric, chance.evaluation.metric, error, higher_is_better=higher_is_better):
            by_luck = f", with a standard error of {error:.2g} between them" if error else ""
            yield (
                f"The baseline's {name} is {baseline.metric:.4g} on {number}; {chance.answer} has "
                f"{_without_noise(chance.evaluation.metric, baseline.metric):.4g}{by_luck}."
            )

    def _all_targets(self) -> Tensor | None:
        """All targets, (N, ...); None if they are too large, or of several shapes."""
        if self._targets is not None or self._num_seen == 0:
            return self._targets if self._num_seen else None
        if not self._kept:
            logger.info("The baseline is not compared with constant answers: the targets take too much memory.")
        is_same = len({targets.shape[1:] for targets in self._kept}) == 1
        return torch.cat(self._kept) if is_same else None

    def _report(self, kind: type[AatError], texts: list[str]) -> None:
        if not texts:
            return
        if self._settings.baseline_check == "error":
            raise kind(" ".join([*texts, "Set training.baseline_check to warn to go on all the same."]))
        logger.warning("%s", " ".join(texts))


def _without_noise(value: float, other: float) -> float:
    """The value, or 0 where only rounding keeps it from that."""
    return 0.0 if abs(value) < 1e-5 * abs(other) else value

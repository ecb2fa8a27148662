"""The teacher of distillation: the compressed model also learns the outputs of the baseline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.distillation import softened_divergence
from kedro_aat.model_inputs import ModelInputs, call_model, tensors_in
from kedro_aat.training.loading.datasets import Rows, plain_tensors
from kedro_aat.training.outputs import Loss, Outputs
from kedro_aat.training.settings import Distillation


class Answered(NamedTuple):
    """Examples with the teacher's outputs for them, (N, ...)."""

    examples: Any
    answers: Tensor


class AnsweredRows(Rows):
    """A dataset of tensors with the teacher's outputs.

    Args:
        dataset: The dataset, which takes many indices at once.
        answers: The outputs for its N examples, (N, ...).
    """

    def __init__(self, dataset: Any, answers: Tensor) -> None:
        super().__init__(Answered(dataset.tensors, answers))
        self._dataset, self._answers = dataset, answers

    def __getitem__(self, index: Any) -> Answered:
        return Answered(self._dataset[index], self._answers[index])


class Teacher:
    """The baseline as a teacher.

    Args:
        model: The baseline; put into evaluation mode and never trained.
        settings: Kind, temperature and weight of the distillation loss.
        task_loss: Loss on the targets.
        autocast: Makes the autocast context in which models are called.
        outputs: Chooses the output that is learned.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Distillation,
        task_loss: Loss,
        autocast: Callable[[], AbstractContextManager[object]],
        outputs: Outputs | None = None,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._settings = settings
        self._outputs = outputs or Outputs(None)
        kind = settings.kind
        if kind == "auto":
            kind = "softmax" if isinstance(task_loss, nn.CrossEntropyLoss) else "mse"
        self._loss: Loss = self._softmax_loss if kind == "softmax" else F.mse_loss
        self._autocast = autocast

    @torch.no_grad()
    def answer(self, inputs: ModelInputs) -> Tensor:
        """Its outputs for a batch, (B, ...)."""
        with self._autocast():
            return self._outputs.main(call_model(self._model, inputs))

    def with_answers(self, dataset: Any, inputs_of: Callable[[Any], ModelInputs], batch_size: int) -> Any:
        """The dataset with its outputs beside each example, if examples never change and the outputs are small.

        Args:
            dataset: The training split.
            inputs_of: The inputs of a batch, on the device of the model.
            batch_size: Examples that it answers at a time.
        """
        if not plain_tensors(dataset):
            return dataset
        first = inputs_of(dataset[:1])
        if self.answer(first).numel() > sum(tensor.numel() for tensor in tensors_in(first)):
            return dataset
        starts = range(0, len(dataset), batch_size)
        answers = [self.answer(inputs_of(dataset[start : start + batch_size])).float().cpu() for start in starts]
        return AnsweredRows(dataset, torch.cat(answers))

    def loss(self, task_loss: Tensor, outputs: Tensor, answers: Tensor) -> Tensor:
        """The weighted sum of the losses on targets and teacher, a scalar.

        Args:
            task_loss: Loss on the targets, a scalar.
            outputs: Outputs of the compressed model, (B, ...).
            answers: Outputs of the teacher for the same inputs, (B, ...).
        """
        weight = self._settings.weight
        return (1 - weight) * task_loss + weight * self._loss(outputs, answers)

    def _softmax_loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        return softened_divergence(outputs, answers, self._settings.temperature)

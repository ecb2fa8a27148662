"""The teacher of distillation: the compressed model also learns the outputs of the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from kedro_aat.compression.distillation import softened_divergence
from kedro_aat.training.data import Examples
from kedro_aat.training.settings import Distillation

Loss = Callable[[Tensor, Tensor], Tensor]


class Teacher:
    """The baseline as a teacher.

    Args:
        model: The baseline; put into evaluation mode and never trained.
        settings: Kind, temperature and weight of the distillation loss.
        task_loss: Loss on the targets.
        autocast: Makes the autocast context in which models are called.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Distillation,
        task_loss: Loss,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._settings = settings
        self._task_loss = task_loss
        kind = settings.kind
        if kind == "auto":
            kind = "softmax" if isinstance(task_loss, nn.CrossEntropyLoss) else "mse"
        self._loss: Loss = self._softmax_loss if kind == "softmax" else F.mse_loss
        self._autocast = autocast

    @torch.no_grad()
    def answer(self, inputs: Tensor) -> Tensor:
        """Its outputs for a batch, (B, ...)."""
        with self._autocast():
            outputs: Tensor = self._model(inputs)
        return outputs

    def answers(self, batches: Iterable[Tensor]) -> Tensor:
        """Its outputs for all batches, (N, ...), on the CPU in float32."""
        return torch.cat([self.answer(inputs).float().cpu() for inputs in batches])

    def with_answers(self, dataset: Examples, to_device: Callable[[Tensor], Tensor], batch_size: int) -> Examples:
        """The dataset with its outputs as a third tensor, if examples never change and the outputs are small.

        Args:
            dataset: Pairs of input and target.
            to_device: Moves inputs to the model.
            batch_size: Examples that it answers at a time.
        """
        if type(dataset) is not TensorDataset:
            return dataset
        inputs, _ = dataset.tensors
        first = self.answer(to_device(inputs[:1]))
        if first.numel() > inputs[:1].numel():
            return dataset
        return TensorDataset(*dataset.tensors, self.answers(map(to_device, inputs.split(batch_size))))

    def loss(self, outputs: Tensor, targets: Tensor, answers: Tensor) -> Tensor:
        """The weighted sum of the losses on targets and teacher, a scalar.

        Args:
            outputs: Outputs of the compressed model, (B, ...).
            targets: Targets of the batch.
            answers: Outputs of the teacher for the same inputs, (B, ...).
        """
        weight = self._settings.weight
        return (1 - weight) * self._task_loss(outputs, targets) + weight * self._loss(outputs, answers)

    def _softmax_loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        return softened_divergence(outputs, answers, self._settings.temperature)

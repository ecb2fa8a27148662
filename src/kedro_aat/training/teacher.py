"""Distillation: the baseline says how sure it is of each answer, and the compressed model learns that too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.distillation import softened_divergence
from kedro_aat.training.settings import Distillation

Loss = Callable[[Tensor, Tensor], Tensor]


class Teacher:
    """A baseline that only answers.

    Args:
        model: Put into evaluation mode, and no longer to be trained.
        settings: How it teaches.
        task_loss: The loss on the targets, which the teacher's joins.
        autocast: Makes the context in which models are called.
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
        """Its outputs for a batch."""
        with self._autocast():
            outputs: Tensor = self._model(inputs)
        return outputs

    def answers(self, batches: Iterable[Tensor]) -> Tensor:
        """Its outputs for all batches, (N, ...), on the CPU in single precision."""
        return torch.cat([self.answer(inputs).float().cpu() for inputs in batches])

    def loss(self, outputs: Tensor, targets: Tensor, taught: Tensor) -> Tensor:
        """Both losses, weighted; a scalar.

        Args:
            outputs: Of the model that learns, (B, ...).
            targets: Of the data.
            taught: The teacher's outputs for the same inputs, (B, ...).
        """
        weight = self._settings.weight
        return (1 - weight) * self._task_loss(outputs, targets) + weight * self._loss(outputs, taught)

    def _softmax_loss(self, outputs: Tensor, taught: Tensor) -> Tensor:
        return softened_divergence(outputs, taught, self._settings.temperature)

"""The optimizer of the default training, and its steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.frozen import trainable_parameters
from kedro_aat.training.learning_rates import build_scheduler
from kedro_aat.training.settings import TrainingSettings


class Optimizing:
    """Makes optimizers, and steps them with loss scaling and clipping.

    Args:
        settings: Settings of the training.
        device: Device of the model.

    Attributes:
        scaler: Scales losses in `fp16`.
    """

    def __init__(self, settings: TrainingSettings, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self.scaler = self._new_scaler()

    def configure(self, model: nn.Module) -> tuple[Any, Any]:
        """A new optimizer of all parameters of a model that are not frozen, its scheduler, and a loss scaler."""
        settings, self.scaler = self._settings, self._new_scaler()
        optimizer = settings.optimizer.make(trainable_parameters(model))
        scheduler = build_scheduler(settings.scheduler, optimizer) if settings.scheduler else None
        return optimizer, scheduler

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss."""
        self.scaler.scale(loss).backward()

    def step(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Steps the optimizers after the gradients are clipped together, if the settings say so."""
        if self._settings.gradient_clip_norm is not None:
            for optimizer in optimizers:
                self.scaler.unscale_(optimizer)
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            parameters = [parameter for group in groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self._settings.gradient_clip_norm)
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self._device.type, enabled=self._settings.precision == "fp16")

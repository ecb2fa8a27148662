"""The optimizer of the default training, and its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.frozen import trainable_parameters
from kedro_aat.imports import Imported
from kedro_aat.training.learning_rates import build_scheduler
from kedro_aat.training.settings import TrainingSettings

# Those of torch that have a fused form; no subclass of the user's.
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
# Where one of these is given, the user has chosen the form, or torch has none that is fused.
_CHOICES = {"fused", "foreach", "differentiable"}


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
        parameters = trainable_parameters(model)
        optimizer = settings.optimizer.make(parameters, **_fastest(settings.optimizer, model, parameters))
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


def _fastest(optimizer: Imported, model: nn.Module, parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """Arguments with which an optimizer is fused, if it has that form for these parameters.

    On a CPU too: a step takes .20 to .25 of the time with Adam and AdamW, .30 to .47 with SGD and momentum, and .76 to
    .97 without momentum (`benchmarks/optimizers.py`).
    """
    if optimizer.load() not in _FUSED or _CHOICES & {*optimizer.init_args}:
        return {}
    has_sparse_gradients = any(getattr(module, "sparse", False) is True for module in model.modules())
    # A tensor of another class, such as one of several ranks, may have other kernels.
    are_usual = all(
        type(each.data) is Tensor and each.is_floating_point() and each.device.type in ("cpu", "cuda")
        for each in parameters
    )
    return {"fused": True} if are_usual and not has_sparse_gradients else {}

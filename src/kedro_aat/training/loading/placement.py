"""Moves models, inputs and targets to the device of the training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.model_inputs import ModelInputs, map_tensors
from kedro_aat.ranks.shards import is_divided


class Placement:
    """A device and the memory format of images on it.

    Args:
        device: The device.
        channels_last: Whether images, and the weights of a model, have the channels-last memory format.
        precision: Type of inputs in double precision, which NumPy and Python give; None leaves them.
    """

    def __init__(self, device: torch.device, *, channels_last: bool, precision: torch.dtype | None = None) -> None:
        self._device, self._precision = device, precision
        self._image_format = torch.channels_last if channels_last else torch.preserve_format

    def model(self, model: nn.Module) -> nn.Module:
        """Moves a model in place, unless its weights are divided among devices already."""
        if is_divided(model):
            return model
        model = model.to(self._device)
        if self._image_format is torch.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares no such call
        return model

    def inputs(self, inputs: ModelInputs) -> ModelInputs:
        """Inputs on the device."""
        return map_tensors(self._input, inputs)

    def _input(self, tensor: Tensor) -> Tensor:
        memory_format = self._image_format if tensor.dim() == 4 else torch.preserve_format
        dtype = self._precision if tensor.dtype is torch.float64 else None
        return tensor.to(self._device, dtype, non_blocking=True, memory_format=memory_format)

    def targets(self, targets: Any) -> Any:
        """Targets, or answers of a teacher, on the device."""
        return map_tensors(lambda tensor: tensor.to(self._device, non_blocking=True), targets)

"""Unstructured sparsity: the weights of least importance are zero, and stay zero while the others train.

Masks are applied to the weights in place before every forward pass, which costs one fused multiplication and
works with any optimizer, whatever its momentum or weight decay did to a masked weight. What a weight was when
it was masked is kept beside it, so that the rate can fall again. Both are buffers of the layer.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.controller import CompressionStatistics, LayerStatistics
from kedro_aat.compression.layers import PrunableWeight, count_zeros, prunable_weights
from kedro_aat.compression.ranking import importance, keep_most_important
from kedro_aat.compression.scheduled import ScheduledController
from kedro_aat.compression.settings import Importance, MagnitudeSparsity
from kedro_aat.errors import ModelError

logger = logging.getLogger(__name__)

MASK, SHADOW = "_mask", "_shadow"


class WeightMasks:
    """The masks of a model's weights; holds on to the layers, so that deep copies stay whole."""

    def __init__(self, weights: Sequence[PrunableWeight]) -> None:
        self.weights = weights
        self.is_active = False
        for weight in weights:
            parameter = weight.parameter.detach()
            weight.module.register_buffer(weight.parameter_name + MASK, torch.ones_like(parameter))
            weight.module.register_buffer(weight.parameter_name + SHADOW, parameter.clone())

    def attach(self, model: nn.Module) -> None:
        """From now on the masks hold whenever `model` is called or its state is read."""
        model.register_forward_pre_hook(self._before_forward)
        model.register_state_dict_pre_hook(self._before_state_dict)

    def detach(self, model: nn.Module) -> None:
        """Takes hooks and buffers out of `model` again; its weights stay as they are."""
        for hooks in (model._forward_pre_hooks, model._state_dict_pre_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
        self.is_active = False
        for weight in self.weights:
            delattr(weight.module, weight.parameter_name + MASK)
            delattr(weight.module, weight.parameter_name + SHADOW)

    def _before_forward(self, model: nn.Module, args: Any) -> None:
        self.apply()

    def _before_state_dict(self, model: nn.Module, prefix: str, keep_vars: bool) -> None:
        self.apply()

    def apply(self) -> None:
        """Sets the masked weights to zero, in place."""
        if not self.is_active:  # at rate 0 every mask is one
            return
        # `.data` leaves autograd's version counter alone: masked weights are zero already when a model is
        # called twice before one backward pass, so what the first call saved stays right.
        torch._foreach_mul_([weight.parameter.data for weight in self.weights], self._buffers(MASK))

    @torch.no_grad()
    def remove(self, num_removed: int | None, kind: Importance, rate: float) -> None:
        """Masks the least important weights, and brings back those that are no longer among them.

        Args:
            num_removed: Of the whole model; None removes the share `rate` of each layer.
            kind: How weights are ranked.
            rate: In [0, 1).
        """
        masks, shadows = self._buffers(MASK), self._buffers(SHADOW)
        for weight, mask, shadow in zip(self.weights, masks, shadows, strict=True):
            shadow.copy_(torch.where(mask.bool(), weight.parameter, shadow))
        scores = [importance(shadow, kind) for shadow in shadows]
        if num_removed is None:
            keep = [keep_most_important([score], round(rate * score.numel()))[0] for score in scores]
        else:
            keep = keep_most_important(scores, num_removed)
        for weight, mask, shadow, kept in zip(self.weights, masks, shadows, keep, strict=True):
            mask.copy_(kept.view_as(mask))
            weight.parameter.copy_(shadow * mask)
        self.is_active = rate > 0

    def _buffers(self, suffix: str) -> list[Tensor]:
        buffers = [weight.module._buffers[weight.parameter_name + suffix] for weight in self.weights]
        return [buffer for buffer in buffers if buffer is not None]


class MagnitudeSparsityController(ScheduledController):
    """Keeps a share of a model's weights at zero: its prunable layers carry masks from now on."""

    name = "magnitude_sparsity"
    settings: MagnitudeSparsity

    def __init__(
        self,
        model: nn.Module,
        settings: MagnitudeSparsity | None = None,
        *,
        steps_per_epoch: int | None = None,
        example_input: Tensor | None = None,
    ) -> None:
        settings = settings or MagnitudeSparsity()
        weights = prunable_weights(model, ignored_scopes=settings.ignored_scopes, target_scopes=settings.target_scopes)
        if any(hasattr(weight.module, weight.parameter_name + MASK) for weight in weights):
            raise ModelError(
                f"{type(model).__name__} carries masks already: give the controller's strip() or a new model."
            )
        self._masks = WeightMasks(weights)
        self._masks.attach(model)
        super().__init__(model, settings, steps_per_epoch=steps_per_epoch, example_input=example_input)
        self._set_rate(settings.schedule.initial_rate)

    def _compress(self, rate: float) -> None:
        num_weights = sum(weight.parameter.numel() for weight in self._masks.weights)
        num_removed = round(rate * num_weights) if self.settings.ranking == "global" else None
        self._masks.remove(num_removed, self.settings.importance, rate)

    @property
    def achieved_rate(self) -> float:
        """Zeros over the weights of all layers that are not ignored, in [0, 1]."""
        self._masks.apply()
        zeros, total = count_zeros(self._masks.weights)
        return zeros / total

    def statistics(self) -> CompressionStatistics:
        """Zeros of every layer."""
        self._masks.apply()
        layers = [
            LayerStatistics(weight.name, tuple(weight.parameter.shape), total, zeros)
            for weight in self._masks.weights
            for zeros, total in [count_zeros([weight])]
        ]
        return CompressionStatistics(self.name, layers)

    @property
    def weight_names(self) -> list[str]:
        """Names of the compressed parameters, as in `model.named_parameters()`."""
        return [weight.name for weight in self._masks.weights]

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state`; the masks come with the model's `state_dict`. A search is never undone."""
        super().load_state(state)
        self._masks.is_active = self._requested_rate > 0

    def strip(self, do_copy: bool = True) -> nn.Module:
        """The model without masks and hooks, its zeros in place.

        Args:
            do_copy: Whether to leave the model under training as it is.
        """
        controller = copy.deepcopy(self) if do_copy else self
        masks = controller._masks
        masks.apply()
        masks.detach(controller.model)
        with torch.no_grad():
            for weight in masks.weights:
                weight.parameter.add_(0.0)  # a mask leaves -0.0, which compresses badly
        return controller.model

"""Unstructured sparsity: the weights of least importance are zero, and stay zero while the others train.

Masks are applied to the weights in place before every forward pass, which costs one fused multiplication and
works with any optimizer, whatever its momentum or weight decay did to a masked weight. What a weight was when
it was masked is kept beside it, so that the rate can fall again. Both are buffers of the layer.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.controller import (
    CompressionLoss,
    CompressionReport,
    CompressionStage,
    CompressionStatistics,
    LayerStatistics,
)
from kedro_aat.compression.layers import PrunableWeight, count_zeros, prunable_weights
from kedro_aat.compression.ranking import importance, keep_most_important
from kedro_aat.compression.schedule import EpochScheduler, PathScheduler
from kedro_aat.compression.settings import Importance, MagnitudeSparsity
from kedro_aat.errors import ModelError
from kedro_aat.export.onnx_file import to_onnx

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


class MagnitudeSparsityController:
    """Keeps a share of a model's weights at zero.

    Attributes:
        model: The model, changed in place: its prunable layers carry masks from now on.
        loss: Adds nothing; there for training functions that add a compression loss.
        scheduler: Steps the schedule until `disable_scheduler`, then follows the search.
        example_input: A batch for `export_model`, (N, ...), None if unknown.
    """

    name = "magnitude_sparsity"
    maximal_compression_rate = 1.0

    def __init__(
        self,
        model: nn.Module,
        settings: MagnitudeSparsity | None = None,
        *,
        steps_per_epoch: int | None = None,
        example_input: Tensor | None = None,
    ) -> None:
        self.model = model
        self.settings = settings or MagnitudeSparsity()
        self.loss = CompressionLoss()
        self.example_input = example_input
        weights = prunable_weights(
            model, ignored_scopes=self.settings.ignored_scopes, target_scopes=self.settings.target_scopes
        )
        if any(hasattr(weight.module, weight.parameter_name + MASK) for weight in weights):
            raise ModelError(
                f"{type(model).__name__} carries masks already: give the controller's strip() or a new model."
            )
        self._masks = WeightMasks(weights)
        self._masks.attach(model)
        self._requested_rate = 0.0
        self.scheduler: EpochScheduler | PathScheduler = EpochScheduler(self.settings.schedule, self._set_rate)
        if steps_per_epoch is not None:
            self.steps_per_epoch = steps_per_epoch
        self._set_rate(self.settings.schedule.initial_rate)

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch, for rates that move within one; None if unknown."""
        return self.scheduler.steps_per_epoch

    @steps_per_epoch.setter
    def steps_per_epoch(self, number: int) -> None:
        self.scheduler.steps_per_epoch = number

    @property
    def compression_rate(self) -> float:
        """Zeros over the weights of all layers that are not ignored, in [0, 1].

        Setting it masks that share of least importance; it must be in [0, 1), else ValueError.
        """
        return self.report().achieved_rate

    @compression_rate.setter
    def compression_rate(self, rate: float) -> None:
        self._set_rate(rate)

    def _set_rate(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"compression_rate must be in [0, 1), but got {rate}")
        num_weights = sum(weight.parameter.numel() for weight in self._masks.weights)
        num_removed = round(rate * num_weights) if self.settings.ranking == "global" else None
        self._masks.remove(num_removed, self.settings.importance, rate)
        self._requested_rate = float(rate)

    def report(self) -> CompressionReport:
        """The rate asked for, and the rate counted on the weights."""
        self._masks.apply()
        zeros, total = count_zeros(self._masks.weights)
        return CompressionReport(requested_rate=self._requested_rate, achieved_rate=zeros / total)

    def compression_stage(self) -> CompressionStage:
        """FULLY_COMPRESSED at the end of the schedule, and always once a search sets the rate."""
        if isinstance(self.scheduler, PathScheduler):
            return CompressionStage.FULLY_COMPRESSED
        if self._requested_rate >= self.settings.schedule.final_rate:
            return CompressionStage.FULLY_COMPRESSED
        return CompressionStage.PARTIALLY_COMPRESSED if self._requested_rate else CompressionStage.UNCOMPRESSED

    def disable_scheduler(self) -> None:
        """Ends the schedule; the rate stays what it is until it is set."""
        if not isinstance(self.scheduler, PathScheduler):
            self.scheduler = PathScheduler(self._set_rate, self.steps_per_epoch)

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

    def get_state(self) -> dict[str, Any]:
        """What changes during training and is not in the model's `state_dict`."""
        return {
            "requested_rate": self._requested_rate,
            "searching": isinstance(self.scheduler, PathScheduler),
            "scheduler": self.scheduler.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state`; the masks come with the model's `state_dict`. A search is never undone."""
        if state["searching"]:
            self.disable_scheduler()
        self.scheduler.load_state(state["scheduler"])
        self._requested_rate = state["requested_rate"]
        self._masks.is_active = self._requested_rate > 0

    def get_compression_state(self) -> dict[str, Any]:
        """Settings and state: with the model's `state_dict` all that is needed to build this again."""
        return {"settings": self.settings.model_dump(mode="json"), "state": self.get_state()}

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

    def export_model(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Writes the stripped model as ONNX.

        Args:
            path: The file.
            *args: Accepted for NNCF's sake (`save_format`, names of inputs) and without effect.
            **kwargs: Likewise.

        Raises:
            ModelError: If no example input is known.
        """
        if self.example_input is None:
            raise ModelError(
                "export_model needs an example input: give create_compressed_model a config with "
                "input_info.sample_size, or an example_input."
            )
        Path(path).write_bytes(to_onnx(self.strip().cpu(), self.example_input.cpu()).SerializeToString())

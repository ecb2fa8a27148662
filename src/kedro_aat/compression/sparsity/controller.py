"""Unstructured sparsity: the weights of least importance are zero, and stay zero while the others train."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.layer_table import LayerTable, shape_text
from kedro_aat.compression.masks import SPARSITY_MASK, WeightMasks
from kedro_aat.compression.scheduled import ScheduledController
from kedro_aat.compression.scopes import PrunableWeight, count_zeros, prunable_weights
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.compression.sparsity.importance import importance, keep_most_important
from kedro_aat.compression.sparsity.patterns import Pattern, keep_in_pattern
from kedro_aat.errors import ModelError

logger = logging.getLogger(__name__)


class MagnitudeSparsityController(ScheduledController):
    """Keeps a share of a model's weights at zero: its prunable layers carry masks from now on.

    With `settings.pattern` the zeros lie in a pattern, and the rate reaches `maximal_compression_rate` at most.

    Args:
        model: The model, changed in place.
        settings: Of the algorithm.
        steps_per_epoch: Optimizer steps in an epoch, for rates that move within one; counted if None.
        example_input: A batch for `export_model`, (N, ...).
        is_part: Whether it belongs to a composite, whose other algorithms may mask the model too.
    """

    name = "magnitude_sparsity"
    settings: MagnitudeSparsity

    def __init__(
        self,
        model: nn.Module,
        settings: MagnitudeSparsity | None = None,
        *,
        steps_per_epoch: int | None = None,
        example_input: Tensor | None = None,
        is_part: bool = False,
    ) -> None:
        settings = settings or MagnitudeSparsity()
        super().__init__(model, settings, steps_per_epoch=steps_per_epoch, example_input=example_input, is_part=is_part)
        weights = prunable_weights(model, ignored_scopes=settings.ignored_scopes, target_scopes=settings.target_scopes)
        self._pattern = Pattern.parse(settings.pattern) if settings.pattern else None
        if self._pattern:
            self.maximal_compression_rate = _most_zeros(model, self._pattern, weights)
        self._masks = WeightMasks(weights, suffix=SPARSITY_MASK)
        self._masks.attach(model)
        self._set_rate(settings.schedule.initial_rate)

    def _compress(self, rate: float) -> None:
        num_weights = sum(weight.parameter.numel() for weight in self._masks.weights)
        values = self._masks.unmasked()
        if self._pattern:
            keep = keep_in_pattern(self._pattern, self._masks.weights, values, rate * num_weights)
        elif self.settings.ranking == "global":
            keep = keep_most_important(self._scores(values), round(rate * num_weights))
        else:
            keep = [keep_most_important([score], round(rate * score.numel()))[0] for score in self._scores(values)]
        self._masks.put(keep, is_active=rate > 0)

    def _scores(self, values: Sequence[Tensor]) -> list[Tensor]:
        return [importance(value, self.settings.importance) for value in values]

    def apply_masks(self) -> None:
        """Sets masked weights to zero where an optimizer step has moved them since the last forward pass."""
        self._masks.apply()

    @property
    def achieved_rate(self) -> float:
        """Zeros over the weights of all layers that are not ignored, in [0, 1]."""
        self._masks.apply()
        zeros, total = count_zeros(self._masks.weights)
        return zeros / total

    def statistics(self) -> LayerTable:
        """Zeros of every layer, and the layers that cannot have the pattern."""
        self._masks.apply()
        weights, pattern = self._masks.weights, self._pattern
        zeros, sizes = zip(*(count_zeros([weight]) for weight in weights), strict=True)
        notes = {}
        if pattern is not None:
            reason = f"its input dimension is not divisible by {pattern.of}, as the pattern {pattern} asks"
            notes = {weight.name: reason for weight in weights if not pattern.fits(weight)}
        rate = sum(zeros) / sum(sizes)
        return LayerTable(
            algorithm=self.name,
            rate=rate,
            headline=f"{rate:.4f} of the weights are zero",
            columns={
                "layer": [weight.name for weight in weights],
                "shape": [shape_text(weight.parameter.shape) for weight in weights],
                "weights": sizes,
                "zeros": zeros,
                "rate": [num_zeros / size for num_zeros, size in zip(zeros, sizes, strict=True)],
            },
            notes=notes,
            note_format="{layer} stays dense: {reason}",
        )

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
        masks.detach()
        with torch.no_grad():
            for weight in masks.weights:
                weight.parameter.add_(0.0)  # a mask leaves -0.0, which compresses badly
        return controller.model


def _most_zeros(model: nn.Module, pattern: Pattern, weights: Sequence[PrunableWeight]) -> float:
    """Share of zeros where every layer that a pattern fits has it."""
    num_fitting = sum(weight.parameter.numel() for weight in weights if pattern.fits(weight))
    if not num_fitting:
        raise ModelError(
            f"{type(model).__name__} has no layer that can have the pattern {pattern}: no layer that the scopes leave "
            f"has an input dimension divisible by {pattern.of}."
        )
    return pattern.rate * num_fitting / sum(weight.parameter.numel() for weight in weights)

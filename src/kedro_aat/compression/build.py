"""From settings to a controller."""

from __future__ import annotations

from torch import Tensor, nn

from kedro_aat.compression.composite import CompositeController, build_single
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import Composite, CompressionSettings


def build_controller(
    model: nn.Module,
    settings: CompressionSettings,
    *,
    steps_per_epoch: int | None = None,
    example_input: Tensor | None = None,
) -> ModelController:
    """Puts a model under compression, in place.

    Args:
        model: The trained model.
        settings: Which algorithm or algorithms, and how.
        steps_per_epoch: Optimizer steps in an epoch, for rates that move within one; counted if None.
        example_input: A batch for the export, (N, ...); filter pruning needs it to trace the model.

    Raises:
        ConfigurationError: For scopes that match no layer.
        ModelError: For a model without layers that the algorithm can compress, or that it cannot trace.
    """
    if isinstance(settings, Composite):
        return CompositeController(model, settings, steps_per_epoch=steps_per_epoch, example_input=example_input)
    return build_single(model, settings, steps_per_epoch=steps_per_epoch, example_input=example_input)

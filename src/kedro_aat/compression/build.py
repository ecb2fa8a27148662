"""Builds the controller that settings describe."""

from __future__ import annotations

from torch import nn

from kedro_aat.compression.composite import CONTROLLERS, CompositeController
from kedro_aat.compression.compressible import compressible
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.frozen import trainable_parameters
from kedro_aat.compression.settings import Composite, CompressionSettings
from kedro_aat.model_inputs import ModelInputs


def build_controller(
    model: nn.Module,
    settings: CompressionSettings,
    *,
    steps_per_epoch: int | None = None,
    example_input: ModelInputs | None = None,
) -> ModelController:
    """Puts a model under compression, in place.

    Args:
        model: The trained model; what is only put around it (`DataParallel`, `torch.compile`) is removed.
        settings: Settings of one algorithm or of a composite.
        steps_per_epoch: Optimizer steps per epoch, for rates that change within an epoch; counted if None.
        example_input: What the model is called with, in any structure, for `export_model`; filter pruning needs it to
            trace the model.

    Raises:
        ConfigurationError: If a scope matches no layer.
        ModelError: If the model has no layer that the algorithm can compress, or cannot be traced.
    """
    model = compressible(model)
    if settings.algorithm != "quantization":  # which is useful without training, too
        trainable_parameters(model)
    if isinstance(settings, Composite):
        return CompositeController(model, settings, steps_per_epoch=steps_per_epoch, example_input=example_input)
    kind = CONTROLLERS[settings.algorithm]
    return kind(model, settings, steps_per_epoch=steps_per_epoch, example_input=example_input)

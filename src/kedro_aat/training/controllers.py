"""Puts the model of each stage under compression, with the ranges of its activations: in a run and in its rehearsal."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import CompressionSettings, keeping_zeros

NUM_CALIBRATION_BATCHES = 10  # training batches that give the ranges of activations


def stage_controller(
    model: nn.Module, compression: CompressionSettings, inputs: Any, algorithms_before: Collection[str] = ()
) -> ModelController:
    """Puts a model under the compression of a stage, in place.

    Args:
        model: The uncompressed model, or what the stage before returned, as it would be exported.
        compression: The compression.
        inputs: Made-up inputs of the model.
        algorithms_before: Algorithms of the stages before; after `magnitude_sparsity`, zeros stay zero.
    """
    if "magnitude_sparsity" in algorithms_before:
        compression = keeping_zeros(compression)
    return build_controller(model, compression, example_input=inputs)

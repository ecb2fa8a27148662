"""Validation batches that are computed in pieces where they do not fit into memory as a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from kedro_aat.model_inputs import ModelInputs, num_examples, take_examples
from kedro_aat.training.guards.user_functions import is_out_of_memory

logger = logging.getLogger(__name__)


class InPieces:
    """Computes outputs of a whole batch, or of pieces of it that are joined, once a whole one was too large.

    Args:
        size: Examples of a piece: those of a training batch, which needs more memory for each.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._is_needed = False

    def __call__(self, outputs_of: Callable[[ModelInputs], Tensor], inputs: ModelInputs) -> Tensor:
        """Outputs (B, ...) for the inputs of a batch.

        Args:
            outputs_of: Returns those of a batch of any size.
            inputs: The inputs.
        """
        number = num_examples(inputs)
        if number <= self._size:
            return outputs_of(inputs)
        if not self._is_needed:
            try:
                return outputs_of(inputs)
            except Exception as error:  # each kind of device has its own
                if not is_out_of_memory(error):
                    raise
            # Here the error no longer holds what was computed before it.
            self._is_needed = True
            logger.warning(
                "Out of memory: validation batches of %d are computed in pieces of %d from now on. "
                "training.validation_batch_size: %d does the same.",
                number,
                self._size,
                self._size,
            )
        starts = range(0, number, self._size)
        return torch.cat([outputs_of(take_examples(inputs, slice(each, each + self._size))) for each in starts])

"""The statistics of BatchNorms, computed anew after weights were removed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kedro_aat.model_inputs import ModelInputs, call_model


@torch.no_grad()
def adapt_batch_norms(model: nn.Module, batches: Iterable[ModelInputs]) -> None:
    """Replaces the statistics of a model's BatchNorms by the means over batches.

    A BatchNorm that `model.train()` leaves in evaluation mode is frozen, and keeps its statistics; this is the
    difference to `torch.optim.swa_utils.update_bn`, which would reset them.

    Args:
        model: The model, on the device of the batches; its mode is restored afterwards.
        batches: Its inputs.
    """
    was_training = model.training
    model.train()
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm) and each.training]
    norms = [norm for norm in norms if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        for batch in batches if norms else ():
            call_model(model, batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(was_training)

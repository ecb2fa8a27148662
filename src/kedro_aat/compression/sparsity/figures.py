"""What NNCF's scripts read of zeros in weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kedro_aat.compression.nncf_statistics import LayerThreshold, SparseLayer, SparseModel
from kedro_aat.compression.operations import nncf_operation
from kedro_aat.compression.scopes import PrunableWeight
from kedro_aat.compression.settings import Importance
from kedro_aat.ranks.shards import is_sharded, local, total


def count_zeros(parameters: Sequence[Tensor]) -> list[int]:
    """Counts the zeros of each parameter; where these are divided, all ranks must call it."""
    return total(parameters, [int((local(each) == 0).sum()) for each in parameters])


def sparse_model(model: nn.Module, weights: Sequence[PrunableWeight], zeros: Sequence[int]) -> SparseModel:
    """Returns the figures of a model with zeros.

    Args:
        model: The model, with its masks applied.
        weights: Its weights that can be zero.
        zeros: Number of zeros in each of these.
    """
    num_weights = sum(weight.parameter.numel() for weight in weights)
    parameters = list(model.parameters())
    num_parameters = sum(parameter.numel() for parameter in parameters)
    return SparseModel(
        sparsity_level=sum(count_zeros(parameters)) / num_parameters,
        sparsity_level_for_layers=sum(zeros) / num_weights,
        sparsified_layers_summary=[
            SparseLayer(
                name=nncf_operation(weight.scope),
                weight_shape=list(weight.parameter.shape),
                sparsity_level=number / weight.parameter.numel(),
                weight_percentage=100 * weight.parameter.numel() / num_weights,
            )
            for weight, number in zip(weights, zeros, strict=True)
        ],
    )


@torch.no_grad()
def layer_thresholds(
    weights: Sequence[PrunableWeight],
    masks: Sequence[Tensor],
    unmasked: Sequence[Tensor],
    kind: Importance,
    *,
    is_global: bool,
) -> list[LayerThreshold]:
    """Returns the importance of the least important weight that is kept, of each layer or of all together.

    Args:
        weights: The weights.
        masks: One mask per weight, true where it is kept.
        unmasked: The weights as they would be without masks, as far as that is known; empty where it is not.
        kind: How the importance of weights is measured.
        is_global: Whether one threshold decides about all layers.
    """
    if any(is_sharded(weight.parameter) for weight in weights):
        return []
    found = [
        _lowest_kept(weight.parameter, mask, values if values.numel() else weight.parameter, kind)
        for weight, mask, values in zip(weights, masks, unmasked, strict=True)
    ]
    if is_global:
        found = [min(found)] * len(found)
    return [
        LayerThreshold(nncf_operation(weight.scope), threshold)
        for weight, threshold in zip(weights, found, strict=True)
    ]


def _lowest_kept(parameter: Tensor, mask: Tensor, values: Tensor, kind: Importance) -> float:
    kept = parameter.detach()[mask].abs().float()
    if not kept.numel():
        return math.inf
    lowest = float(kept.min())
    if kind == "abs":
        return lowest
    if kind == "normed_abs":
        return lowest / max(float(values.float().norm()), torch.finfo(torch.float32).tiny)
    squares = float(kept.double().square().sum()) if kind == "lamp" else 1.0
    return lowest**2 / max(squares, torch.finfo(torch.float64).tiny)

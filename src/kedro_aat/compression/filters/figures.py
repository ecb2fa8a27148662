"""What NNCF's scripts read of filter pruning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from kedro_aat.compression.filters.axes import num_channels
from kedro_aat.compression.filters.costs import CutCosts
from kedro_aat.compression.filters.groups import ChannelGroup, is_produced
from kedro_aat.compression.nncf_statistics import FilterPruningFigures, PrunedLayer, PrunedModel
from kedro_aat.compression.operations import nncf_layer, nncf_scope
from kedro_aat.compression.settings import FilterPruning


def pruning_figures(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    costs: CutCosts,
    removed: NDArray[np.int64],
    rate: float,
    settings: FilterPruning,
) -> FilterPruningFigures:
    """Returns the figures of a model after a cut.

    Args:
        model: The model before the cut.
        groups: Its groups of channels.
        costs: What the model costs.
        removed: (groups,) - units removed from each group.
        rate: The achieved rate, in [0, 1].
        settings: Settings of the algorithm.
    """
    return FilterPruningFigures(
        model_statistics=PrunedModel(
            full_flops=2 * costs.total("macs"),
            current_flops=2 * costs.left("macs", removed),
            full_params_num=costs.total("parameters"),
            current_params_num=costs.left("parameters", removed),
            full_filters_num=costs.total("filters"),
            current_filters_num=costs.left("filters", removed),
            pruned_layers_summary=_pruned_layers(model, groups, removed),
        ),
        current_pruning_level=rate,
        target_pruning_level=settings.schedule.final_rate,
        prune_flops=settings.rate_of == "macs",
    )


def _pruned_layers(model: nn.Module, groups: Sequence[ChannelGroup], removed: NDArray[np.int64]) -> list[PrunedLayer]:
    lost: dict[tuple[str, str], int] = {}
    for group, number in zip(groups, removed, strict=True):
        for member in group.producers:
            place = member.layer, member.kind
            lost[place] = lost.get(place, 0) + int(number) * member.indices.shape[1]
    found = []
    for name, module in model.named_modules():
        kinds = [kind for layer, kind in lost if layer == name and is_produced(kind)]
        weights = [parameter for parameter in module.parameters(recurse=False) if parameter.dim() > 1]
        if not kinds or not weights:
            continue
        number = sum(num_channels(module, kind) for kind in kinds)
        found.append(
            PrunedLayer(
                name=nncf_layer(nncf_scope(model, name)),
                weight_shape=list(weights[0].shape),
                mask_shape=[number],
                filter_pruning_level=sum(lost[name, kind] for kind in kinds) / number,
            )
        )
    return found

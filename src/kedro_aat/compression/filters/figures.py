"""What NNCF's scripts read of filter pruning."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kedro_aat.compression.filters.costs import CutCosts
from kedro_aat.compression.nncf_statistics import FilterPruningFigures, PrunedModel
from kedro_aat.compression.settings import FilterPruning


def pruning_figures(
    costs: CutCosts, removed: NDArray[np.int64], rate: float, settings: FilterPruning
) -> FilterPruningFigures:
    """Returns the figures of a model after a cut.

    Args:
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
        ),
        current_pruning_level=rate,
        target_pruning_level=settings.schedule.final_rate,
        prune_flops=settings.rate_of == "macs",
    )

"""Settings of the compression algorithms; no torch here, so that a configuration is checked quickly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.validated import Settings

Importance = Literal["lamp", "abs", "squared_abs", "normed_abs"]
FilterImportance = Literal["l1", "l2", "geometric_median", "batch_norm_scale", "taylor"]
RateOf = Literal["filters", "parameters", "macs"]


class AlgorithmSettings(Settings):
    """What the settings of every algorithm have.

    Attributes:
        algorithm: Tells algorithms apart.
        ignored_scopes: Layers to leave as they are; see `layers.prunable_weights`.
        target_scopes: The only layers to compress; None for all.
        schedule: The rate before a search takes over.
    """

    algorithm: str
    ignored_scopes: tuple[str, ...] = ()
    target_scopes: tuple[str, ...] | None = None
    schedule: ScheduleSettings = ScheduleSettings()


class MagnitudeSparsity(AlgorithmSettings):
    """Settings of magnitude sparsity.

    Attributes:
        importance: How weights are ranked; see `ranking.importance`.
        ranking: One threshold for the whole model, or the same rate in every layer.
    """

    algorithm: Literal["magnitude_sparsity"] = "magnitude_sparsity"
    importance: Importance = "lamp"
    ranking: Literal["global", "local"] = "global"


class FilterPruning(AlgorithmSettings):
    """Settings of filter pruning: whole channels and attention heads are cut, with all that hangs on them.

    Attributes:
        importance: How units of channels are ranked; see `filter_importance.unit_scores`.
        ranking: The same share of every group of channels, or the least important ones of the whole model, in
            proportion to the mean importance of their group.
        round_to: The channels left of a group are a multiple of this; odd numbers can be slow on a GPU.
        rate_of: What the rate is the removed share of: output channels of convolutions and linear layers,
            parameters, or multiply-accumulate operations, each of the whole model.
        minimal_channels: Fewest channels left of a group.
        ignored_scopes: Layers whose outputs are all kept; their inputs follow the layers before them.
        target_scopes: The only layers whose outputs are cut; None for all.
    """

    algorithm: Literal["filter_pruning"] = "filter_pruning"
    importance: FilterImportance = "l2"
    ranking: Literal["local", "global"] = "local"
    round_to: Annotated[int, Field(ge=1)] = 1
    rate_of: RateOf = "parameters"
    minimal_channels: Annotated[int, Field(ge=1)] = 1


def _with_algorithm(data: Any) -> Any:
    """Settings that name no algorithm are those of the one there was first."""
    return {"algorithm": "magnitude_sparsity", **data} if isinstance(data, Mapping) else data


CompressionSettings = Annotated[
    MagnitudeSparsity | FilterPruning, Field(discriminator="algorithm"), BeforeValidator(_with_algorithm)
]

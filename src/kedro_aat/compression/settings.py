"""Settings of the compression algorithms; no torch here, so that a configuration is checked quickly."""

from __future__ import annotations

from typing import Literal

from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.validated import Settings

Importance = Literal["lamp", "abs", "squared_abs", "normed_abs"]


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


# Grows into a union told apart by `algorithm` as algorithms are added.
CompressionSettings = MagnitudeSparsity

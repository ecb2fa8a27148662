"""What cannot be done with weights that are divided among devices; nothing here imports torch."""

from __future__ import annotations

from kedro_aat.compression.settings import Composite, CompressionSettings, FilterPruning, MagnitudeSparsity

_SHARDED = "with training.sharding: fully_shard"


def refused(compression: CompressionSettings) -> list[str]:
    """Mistakes in the settings of a compression for a model whose weights are divided among devices.

    Args:
        compression: The settings.

    Returns:
        Each with the key, what it must be, and what it is.
    """
    if isinstance(compression, Composite):
        return [f"compression: must be a single algorithm {_SHARDED}, but got several; set sharding: none"]
    if not isinstance(compression, FilterPruning | MagnitudeSparsity):
        return [
            f"compression.algorithm: must be magnitude_sparsity or filter_pruning {_SHARDED}, but got "
            f"{compression.algorithm}; set sharding: none"
        ]
    mistakes = []
    if compression.importance == "taylor":
        mistakes.append(f"compression.importance: must not be taylor {_SHARDED}; l2 is usual")
    if isinstance(compression, MagnitudeSparsity) and compression.pattern is not None:
        mistakes.append(f"compression.pattern: must be null {_SHARDED}, but got {compression.pattern}")
    if compression.shadow_on_host:
        mistakes.append(f"compression.shadow_on_host: must be false {_SHARDED}, since each device holds a part only")
    return mistakes

"""What compression makes of each layer, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LayerStatistics:
    """What became of one layer's weight."""

    name: str
    shape: tuple[int, ...]
    num_weights: int
    num_zeros: int

    @property
    def rate(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.num_zeros / self.num_weights


@dataclass(frozen=True)
class CompressionStatistics:
    """What became of every compressed layer, and of all together.

    Attributes:
        algorithm: Its name.
        layers: All that are not ignored.
        left_dense: Name of a layer's weight -> why it cannot be compressed.
    """

    algorithm: str
    layers: Sequence[LayerStatistics]
    left_dense: Mapping[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Zeros over the weights of all layers that are not ignored, in [0, 1]; 0 where there are none."""
        num_weights = sum(layer.num_weights for layer in self.layers)
        return sum(layer.num_zeros for layer in self.layers) / num_weights if num_weights else 0.0

    def as_frame(self) -> pd.DataFrame:
        """One row a layer: name, shape, weights, zeros, rate."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": [layer.name for layer in self.layers],
                "shape": ["x".join(map(str, layer.shape)) for layer in self.layers],
                "weights": [layer.num_weights for layer in self.layers],
                "zeros": [layer.num_zeros for layer in self.layers],
                "rate": [layer.rate for layer in self.layers],
            }
        )

    def to_str(self) -> str:
        """A table for a terminal."""
        table = self.as_frame().to_string(index=False, float_format=lambda rate: f"{rate:.4f}")
        dense = "".join(f"\n{name} stays dense: {reason}" for name, reason in self.left_dense.items())
        return f"{self.algorithm}: {self.rate:.4f} of the weights are zero\n{table}{dense}"

"""What quantization did to each layer, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class QuantizedLayerStatistics:
    """One layer's weight.

    Attributes:
        name: Of the weight, as in `named_parameters()`.
        shape: Of the weight.
        num_weights: Numbers in it.
        bits: 8 if it is quantized, else 32.
        sensitivity: Energy of its rounding error over its own, at least 0, whether it is quantized or not.
    """

    name: str
    shape: tuple[int, ...]
    num_weights: int
    bits: int
    sensitivity: float


@dataclass(frozen=True)
class QuantizationStatistics:
    """Every layer that can be quantized."""

    layers: Sequence[QuantizedLayerStatistics]

    @property
    def rate(self) -> float:
        """Weights held in 8 bits over all of them, in [0, 1]."""
        quantized = sum(layer.num_weights for layer in self.layers if layer.bits == 8)
        return quantized / sum(layer.num_weights for layer in self.layers)

    @property
    def num_bytes(self) -> int:
        """What all these weights take."""
        return sum(layer.num_weights * layer.bits // 8 for layer in self.layers)

    def as_frame(self) -> pd.DataFrame:
        """One row a layer: name, shape, bits, weights, sensitivity, rate."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": [layer.name for layer in self.layers],
                "shape": ["x".join(map(str, layer.shape)) for layer in self.layers],
                "bits": [layer.bits for layer in self.layers],
                "weights": [layer.num_weights for layer in self.layers],
                "sensitivity": [layer.sensitivity for layer in self.layers],
                "rate": [1.0 if layer.bits == 8 else 0.0 for layer in self.layers],
            }
        )

    def to_str(self) -> str:
        """A table for a terminal."""
        table = self.as_frame().to_string(
            index=False, formatters={"sensitivity": "{:.2e}".format, "rate": "{:.0f}".format}
        )
        quantized = sum(layer.bits == 8 for layer in self.layers)
        return (
            f"quantization: {self.rate:.4f} of the weights are int8, in {quantized} of {len(self.layers)} layers; "
            f"all weights take {self.num_bytes} bytes\n{table}"
        )

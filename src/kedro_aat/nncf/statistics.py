"""The closing figures of a training loop, under the names NNCF 2.x users know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingLoopStatistics:
    """What a loop ended with.

    Attributes:
        uncompressed_accuracy: Metric of the uncompressed model.
        compression_rate: Rate of the returned model, in [0, 1).
        compressed_accuracy: Metric of the returned model.
        absolute_accuracy_degradation: How much worse it is, in metric units; negative where it is better.
        relative_accuracy_degradation: The same in percent of the uncompressed metric.
        accuracy_budget: Distance to the lowest tolerated metric; at least 0 is within budget.
    """

    uncompressed_accuracy: float
    compression_rate: float
    compressed_accuracy: float
    absolute_accuracy_degradation: float
    relative_accuracy_degradation: float
    accuracy_budget: float

    def to_str(self) -> str:
        """A table for a terminal."""
        rows = {
            "Uncompressed accuracy": f"{self.uncompressed_accuracy:.4f}",
            "Compressed accuracy": f"{self.compressed_accuracy:.4f}",
            "Compression rate": f"{self.compression_rate:.4f}",
            "Absolute accuracy degradation": f"{self.absolute_accuracy_degradation:.4f}",
            "Relative accuracy degradation": f"{self.relative_accuracy_degradation:.2f} %",
            "Accuracy budget left": f"{self.accuracy_budget:.4f}",
        }
        return "\n".join(f"{name:<32}{value:>12}" for name, value in rows.items())

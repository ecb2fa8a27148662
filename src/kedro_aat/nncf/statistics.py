"""The final metrics and rate of a training loop, under the names that users of NNCF 2.x know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kedro_aat.compression.nncf_statistics import ByAlgorithm, ConstSparsityFigures, MagnitudeSparsityFigures

if TYPE_CHECKING:
    from kedro_aat.budget import Budget
    from kedro_aat.training.records import FineTuned


@dataclass(frozen=True)
class TrainingLoopStatistics:
    """Final metrics and rate of a training loop.

    Attributes:
        uncompressed_accuracy: Metric of the uncompressed model.
        compression_rate: Rate of the returned model, in [0, 1).
        compressed_accuracy: Metric of the returned model.
        absolute_accuracy_degradation: Drop of the metric in metric units; negative if the returned model is better.
        relative_accuracy_degradation: Drop of the metric in percent of the uncompressed metric's magnitude.
        accuracy_budget: Distance to the lowest tolerated metric; at least 0 if the model is within budget.
    """

    uncompressed_accuracy: float
    compression_rate: float
    compressed_accuracy: float
    absolute_accuracy_degradation: float
    relative_accuracy_degradation: float
    accuracy_budget: float

    @classmethod
    def of(cls, result: FineTuned, budget: Budget) -> TrainingLoopStatistics:
        """Computes the statistics of a search that ended with `result`."""
        degradation = budget.degradation(result.metric)
        return cls(
            uncompressed_accuracy=budget.baseline,
            compression_rate=result.achieved_rate,
            compressed_accuracy=result.metric,
            absolute_accuracy_degradation=degradation,
            relative_accuracy_degradation=(
                100 * degradation / abs(budget.baseline) if budget.baseline else float("nan")
            ),
            accuracy_budget=budget.margin(result.metric),
        )

    def to_str(self) -> str:
        """Formats the statistics as a table for a terminal."""
        rows = {
            "Uncompressed accuracy": f"{self.uncompressed_accuracy:.4f}",
            "Compressed accuracy": f"{self.compressed_accuracy:.4f}",
            "Compression rate": f"{self.compression_rate:.4f}",
            "Absolute accuracy degradation": f"{self.absolute_accuracy_degradation:.4f}",
            "Relative accuracy degradation": f"{self.relative_accuracy_degradation:.2f} %",
            "Accuracy budget left": f"{self.accuracy_budget:.4f}",
        }
        return "\n".join(f"{name:<32}{value:>12}" for name, value in rows.items())


def prepare_for_tensorboard(statistics: ByAlgorithm) -> dict[str, float]:
    """Returns the figures of `controller.statistics()` under the tags that NNCF's scripts write to TensorBoard."""
    found: dict[str, float] = {}
    if (pruned := statistics.filter_pruning) is not None:
        model = pruned.model_statistics
        found |= {
            "filter_pruning/algo_current_pruning_level": pruned.current_pruning_level,
            "filter_pruning/model_FLOPS_pruning_level": model.flops_pruning_level,
            "filter_pruning/model_params_pruning_level": model.params_pruning_level,
            "filter_pruning/model_filters_pruning_level": model.filter_pruning_level,
        }
    for name, figures in statistics:
        if isinstance(figures, ConstSparsityFigures | MagnitudeSparsityFigures):
            found |= {
                f"{name}/sparsity_level_for_model": figures.model_statistics.sparsity_level,
                f"{name}/sparsity_level_for_sparsified_layers": figures.model_statistics.sparsity_level_for_layers,
            }
        if isinstance(figures, MagnitudeSparsityFigures):
            found[f"{name}/target_sparsity_level"] = figures.target_sparsity_level
    return found

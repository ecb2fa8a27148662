"""What NNCF 2.x's `statistics()` tells of each algorithm, under its names; scripts read single figures of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class SparseLayer:
    """One layer with zeros.

    Attributes:
        name: The layer's name as NNCF prints it.
        weight_shape: Shape of the weight.
        sparsity_level: Share of zeros in the weight, in [0, 1].
        weight_percentage: Share of the weight in all weights that can be zero, in percent.
    """

    name: str
    weight_shape: list[int]
    sparsity_level: float
    weight_percentage: float


@dataclass(frozen=True)
class SparseModel:
    """The zeros of a model.

    Attributes:
        sparsity_level: Share of zeros in all parameters of the model, in [0, 1].
        sparsity_level_for_layers: Share of zeros in the weights that can be zero, in [0, 1].
        sparsified_layers_summary: The layers with these weights.
    """

    sparsity_level: float
    sparsity_level_for_layers: float
    sparsified_layers_summary: list[SparseLayer]


@dataclass(frozen=True)
class MagnitudeSparsityFigures:
    """What `statistics().magnitude_sparsity` holds.

    Attributes:
        model_statistics: The zeros of the model.
        target_sparsity_level: The rate that was set, in [0, 1).
    """

    model_statistics: SparseModel
    target_sparsity_level: float


@dataclass(frozen=True)
class PrunedModel:
    """What a model costs before the cut and after it; a multiply-accumulate operation is two FLOPs.

    Attributes:
        full_flops: FLOPs of the model for one example.
        current_flops: FLOPs that are left.
        full_params_num: Parameters of the model.
        current_params_num: Parameters that are left.
        full_filters_num: Output channels of its convolutions, linear and recurrent layers.
        current_filters_num: Output channels that are left.
    """

    full_flops: int
    current_flops: int
    full_params_num: int
    current_params_num: int
    full_filters_num: int
    current_filters_num: int

    @property
    def flops_pruning_level(self) -> float:
        """Share of the FLOPs that is removed, in [0, 1]."""
        return 1 - self.current_flops / self.full_flops if self.full_flops else 0.0

    @property
    def params_pruning_level(self) -> float:
        """Share of the parameters that is removed, in [0, 1]."""
        return 1 - self.current_params_num / self.full_params_num

    @property
    def filter_pruning_level(self) -> float:
        """Share of the filters that is removed, in [0, 1]."""
        return 1 - self.current_filters_num / self.full_filters_num


@dataclass(frozen=True)
class FilterPruningFigures:
    """What `statistics().filter_pruning` holds.

    Attributes:
        model_statistics: What the model costs.
        current_pruning_level: The achieved rate, in [0, 1].
        target_pruning_level: The rate at the end of the schedule, in [0, 1).
        prune_flops: Whether the rate is a share of the FLOPs.
    """

    model_statistics: PrunedModel
    current_pruning_level: float
    target_pruning_level: float
    prune_flops: bool


@dataclass(frozen=True)
class QuantizationFigures:
    """What `statistics().quantization` holds.

    Attributes:
        ratio_of_enabled_quantizations: Share of the weights' quantizers that are in use, in percent.
        num_wq_per_bitwidth: Bits -> number of weights that are quantized to them.
    """

    ratio_of_enabled_quantizations: float
    num_wq_per_bitwidth: Mapping[int, int]


F = TypeVar("F")
Figures = MagnitudeSparsityFigures | FilterPruningFigures | QuantizationFigures


class ByAlgorithm(ABC):
    """Gives the figures of each algorithm under its name, and None for an algorithm that is not in use."""

    @abstractmethod
    def _all_figures(self) -> Iterable[Figures | None]:
        """The figures of all tables."""

    def _first(self, kind: type[F]) -> F | None:
        return next((each for each in self._all_figures() if isinstance(each, kind)), None)

    @property
    def magnitude_sparsity(self) -> MagnitudeSparsityFigures | None:
        """Figures of magnitude sparsity."""
        return self._first(MagnitudeSparsityFigures)

    @property
    def filter_pruning(self) -> FilterPruningFigures | None:
        """Figures of filter pruning."""
        return self._first(FilterPruningFigures)

    @property
    def quantization(self) -> QuantizationFigures | None:
        """Figures of quantization."""
        return self._first(QuantizationFigures)

    def __iter__(self) -> Iterator[tuple[str, Figures]]:
        """Yields the name and the figures of each algorithm, in the order of NNCF."""
        for name in ("filter_pruning", "magnitude_sparsity", "quantization"):
            if (figures := getattr(self, name)) is not None:
                yield name, figures

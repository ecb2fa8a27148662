"""What NNCF 2.x's `statistics()` tells of each algorithm, under its names; scripts read single figures of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar


class Printed:
    """Figures that a script can print."""

    def to_str(self) -> str:
        """One line for each figure, for a terminal; lists with one line for each element."""
        return "\n".join(_lines(self))


def _lines(figures: Any, indent: str = "") -> Iterator[str]:
    for each in fields(figures):
        value = getattr(figures, each.name)
        if isinstance(value, list | Printed):
            yield f"{indent}{each.name}:"
            parts = value if isinstance(value, list) else [value]
            for part in parts:
                if isinstance(part, Printed):
                    yield from _lines(part, f"{indent}  ")
                else:
                    yield f"{indent}  {', '.join(str(getattr(part, field.name)) for field in fields(part))}"
        else:
            yield f"{indent}{each.name}: {value}"


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
class SparseModel(Printed):
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
class LayerThreshold:
    """Which weights of a layer are zero.

    Attributes:
        name: The layer's name as NNCF prints it.
        threshold: Importance of the least important weight that is kept, in the units of `weight_importance`: the
            weights below it are zero. Infinite if none is kept.
    """

    name: str
    threshold: float


@dataclass(frozen=True)
class MagnitudeSparsityFigures(Printed):
    """What `statistics().magnitude_sparsity` holds.

    Attributes:
        model_statistics: The zeros of the model.
        thresholds: One for each layer, all the same if one threshold decides about all layers. Empty with a pattern,
            and where several processes hold parts of the weights.
        target_sparsity_level: The rate that was set, in [0, 1).
    """

    model_statistics: SparseModel
    thresholds: list[LayerThreshold]
    target_sparsity_level: float


@dataclass(frozen=True)
class ConstSparsityFigures(Printed):
    """What `statistics().const_sparsity` holds.

    Attributes:
        model_statistics: The zeros of the model, of which those that it began with stay.
    """

    model_statistics: SparseModel


@dataclass(frozen=True)
class PrunedLayer:
    """One layer that can lose filters.

    Attributes:
        name: The layer's name as NNCF prints it.
        weight_shape: Shape of its weight before the cut.
        mask_shape: Number of its filters, in a list.
        filter_pruning_level: Share of its filters that is removed, in [0, 1).
    """

    name: str
    weight_shape: list[int]
    mask_shape: list[int]
    filter_pruning_level: float


@dataclass(frozen=True)
class PrunedModel(Printed):
    """What a model costs before the cut and after it; a multiply-accumulate operation is two FLOPs.

    Attributes:
        full_flops: FLOPs of the model for one example.
        current_flops: FLOPs that are left.
        full_params_num: Parameters of the model.
        current_params_num: Parameters that are left.
        full_filters_num: Output channels of its convolutions, linear and recurrent layers.
        current_filters_num: Output channels that are left.
        pruned_layers_summary: The layers that can lose filters.
    """

    full_flops: int
    current_flops: int
    full_params_num: int
    current_params_num: int
    full_filters_num: int
    current_filters_num: int
    pruned_layers_summary: list[PrunedLayer]

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
class FilterPruningFigures(Printed):
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
class QuantizersCounter(Printed):
    """How many tensors are quantized, and how.

    Attributes:
        num_symmetric: Those without a zero point.
        num_asymmetric: Those with a zero point.
        num_signed: Those held as signed integers.
        num_unsigned: Those held as unsigned integers.
        num_per_tensor: Those with one scale.
        num_per_channel: Those with a scale for each channel.
        total_count: All of them.
        potential_count: How many tensors could be quantized.
    """

    num_symmetric: int
    num_asymmetric: int
    num_signed: int
    num_unsigned: int
    num_per_tensor: int
    num_per_channel: int
    total_count: int
    potential_count: int

    @classmethod
    def of_weights(cls, number: int, potential: int) -> QuantizersCounter:
        """Counts weights: symmetric and signed, with a scale for each channel."""
        return cls(number, 0, number, 0, 0, number, number, potential)

    @classmethod
    def of_activations(cls, number: int, potential: int) -> QuantizersCounter:
        """Counts activations: with a zero point, unsigned, with one scale."""
        return cls(0, number, 0, number, number, 0, number, potential)


@dataclass(frozen=True)
class QuantizationFigures(Printed):
    """What `statistics().quantization` holds.

    Which activations are quantized is known once the model was calibrated or called; until then they count as none.

    Attributes:
        wq_counter: Weights that are quantized.
        aq_counter: Activations that are quantized.
        num_wq_per_bitwidth: Bits -> number of weights that are quantized to them.
        num_aq_per_bitwidth: Bits -> number of activations that are quantized to them.
        ratio_of_enabled_quantizations: Share of the weights and activations that could be quantized and are, in
            percent.
    """

    wq_counter: QuantizersCounter
    aq_counter: QuantizersCounter
    num_wq_per_bitwidth: Mapping[int, int]
    num_aq_per_bitwidth: Mapping[int, int]
    ratio_of_enabled_quantizations: float

    @classmethod
    def of(cls, weights: QuantizersCounter, activations: QuantizersCounter) -> QuantizationFigures:
        """Returns the figures of a model whose quantized tensors all have 8 bits."""
        potential = weights.potential_count + activations.potential_count
        return cls(
            wq_counter=weights,
            aq_counter=activations,
            num_wq_per_bitwidth={8: weights.total_count} if weights.total_count else {},
            num_aq_per_bitwidth={8: activations.total_count} if activations.total_count else {},
            ratio_of_enabled_quantizations=100 * (weights.total_count + activations.total_count) / max(potential, 1),
        )


Figures = ConstSparsityFigures | FilterPruningFigures | MagnitudeSparsityFigures | QuantizationFigures
F = TypeVar("F", bound=Figures)


class ByAlgorithm(ABC):
    """Gives the figures of each algorithm under its name, and None for an algorithm that is not in use.

    Attributes:
        movement_sparsity: None, since there is no such algorithm here.
        rb_sparsity: None, too.
    """

    movement_sparsity: None = None
    rb_sparsity: None = None

    @abstractmethod
    def _all_figures(self) -> Iterable[Figures]:
        """The figures of all tables."""

    def _first(self, kind: type[F]) -> F | None:
        return next((each for each in self._all_figures() if isinstance(each, kind)), None)

    @property
    def const_sparsity(self) -> ConstSparsityFigures | None:
        """Figures of zeros that the model began with, and that stay."""
        return self._first(ConstSparsityFigures)

    @property
    def filter_pruning(self) -> FilterPruningFigures | None:
        """Figures of filter pruning."""
        return self._first(FilterPruningFigures)

    @property
    def magnitude_sparsity(self) -> MagnitudeSparsityFigures | None:
        """Figures of magnitude sparsity."""
        return self._first(MagnitudeSparsityFigures)

    @property
    def quantization(self) -> QuantizationFigures | None:
        """Figures of quantization."""
        return self._first(QuantizationFigures)

    def __iter__(self) -> Iterator[tuple[str, Figures]]:
        """Yields the name and the figures of each algorithm, in the order of NNCF."""
        for name in ("const_sparsity", "filter_pruning", "magnitude_sparsity", "quantization"):
            if (figures := getattr(self, name)) is not None:
                yield name, figures

"""Settings of the compression algorithms; no torch here, so that a configuration is checked quickly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.validated import Settings, parse

Importance = Literal["lamp", "abs", "squared_abs", "normed_abs"]
FilterImportance = Literal["l1", "l2", "geometric_median", "batch_norm_scale", "taylor"]
RateOf = Literal["filters", "parameters", "macs"]


def numbers_of_pattern(text: str) -> tuple[int, int]:
    """N and M of an "N:M" pattern, N from 1 to M - 1; raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    kept, of = map(int, match.groups()) if match else (0, 0)
    if not 0 < kept < of:
        raise ValueError(
            f'a pattern is written "N:M": of every M weights at most N are not zero, N from 1 to M - 1, as in "2:4"; '
            f"but got {text!r}"
        )
    return kept, of


def _checked_pattern(text: str) -> str:
    numbers_of_pattern(text)
    return text


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
        pattern: "N:M", as in "2:4": of every M consecutive weights along the input dimension the N largest are
            kept. Layers have the pattern or are dense, those that lose least of their energy first, until the share
            of zeros is nearest to the rate; so it moves in steps of a layer, up to `maximal_compression_rate`.
            Layers whose input dimension is not divisible by M stay dense. None for zeros anywhere. With a pattern
            `importance` and `ranking` do not matter: within a layer every importance ranks by magnitude.
    """

    algorithm: Literal["magnitude_sparsity"] = "magnitude_sparsity"
    importance: Importance = "lamp"
    ranking: Literal["global", "local"] = "global"
    pattern: Annotated[str, AfterValidator(_checked_pattern)] | None = None


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


class Quantization(AlgorithmSettings):
    """Settings of quantization to 8 bits; its rate is the share of the weights that are int8.

    Attributes:
        quantize_inputs: Whether the model's own input is rounded to 8 bits as well; without it the layers that
            read it are not computed in integers.
        calibration_only: Whether training is left as it is and only the ranges of activations are watched, so that
            the model is quantized whenever it is evaluated (post-training quantization).
        range_momentum: Weight of a new batch in the moving averages of the ranges, in (0, 1].
        observed_steps: Training steps after which the ranges stay what they are; None for never.
        overflow_fix: Whether weights use 7 of their 8 bits, so that pairs of products fit the 16 bits in which
            onnxruntime adds them up on x86 processors without VNNI; there the file is wrong without it.
        schedule: All layers at once, unless told otherwise.
    """

    algorithm: Literal["quantization"] = "quantization"
    quantize_inputs: bool = True
    calibration_only: bool = False
    range_momentum: Annotated[float, Field(gt=0, le=1)] = 0.05
    observed_steps: Annotated[int, Field(ge=0)] | None = None
    overflow_fix: bool = True
    schedule: ScheduleSettings = ScheduleSettings(initial_rate=0.998)


class KnowledgeDistillation(Settings):
    """Settings of a loss that holds the model to what it said before it was compressed; it has no rate.

    Attributes:
        type: `softmax` compares probabilities, `mse` outputs; see `distillation_loss`.
        scale: Factor of the loss.
        temperature: By which logits are divided before the softmax; the higher, the more the smaller ones count.
    """

    algorithm: Literal["knowledge_distillation"] = "knowledge_distillation"
    type: Literal["softmax", "mse"]
    scale: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0


SingleAlgorithm = MagnitudeSparsity | FilterPruning | Quantization
_PartOfComposite = Annotated[SingleAlgorithm | KnowledgeDistillation, Field(discriminator="algorithm")]

# The search moves the rate of the first of these that a composite has.
ADAPTIVE_FIRST = ("filter_pruning", "magnitude_sparsity", "quantization")


class Composite(Settings):
    """Several algorithms on one model.

    The search moves the rate of one of them, `adaptive`; the others follow their own schedules.

    Attributes:
        algorithms: At least two, each of another kind, at least one with a rate; their order does not matter.
    """

    algorithm: Literal["composite"] = "composite"
    algorithms: tuple[_PartOfComposite, ...]

    @model_validator(mode="after")
    def _can_work_together(self) -> Composite:
        names = [part.algorithm for part in self.algorithms]
        if len(names) < 2:
            raise ValueError(f"algorithms must be at least two, but got {len(names)}; one alone needs no composite")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"algorithms must be of different kinds, but {', '.join(twice)} is there more than once")
        return self

    @property
    def compressing(self) -> tuple[SingleAlgorithm, ...]:
        """Those that have a rate; first the one whose rate the search moves."""
        found = [part for part in self.algorithms if not isinstance(part, KnowledgeDistillation)]
        return tuple(sorted(found, key=lambda part: ADAPTIVE_FIRST.index(part.algorithm)))

    @property
    def adaptive(self) -> SingleAlgorithm:
        """The one whose rate the search moves: filter pruning, else magnitude sparsity, else quantization."""
        return self.compressing[0]

    @property
    def distillation(self) -> KnowledgeDistillation | None:
        """The loss beside them, if there is one."""
        return next((part for part in self.algorithms if isinstance(part, KnowledgeDistillation)), None)


def _named(data: Any) -> Any:
    """Settings that name no algorithm are those of magnitude sparsity; a list of several is a composite."""
    if isinstance(data, list | tuple):
        return _named(data[0]) if len(data) == 1 else {"algorithm": "composite", "algorithms": data}
    is_nameless = isinstance(data, Mapping) and "algorithm" not in data
    return {"algorithm": "magnitude_sparsity", **data} if is_nameless else data


CompressionSettings = Annotated[
    SingleAlgorithm | Composite,
    Field(discriminator="algorithm"),
    BeforeValidator(_named),
]


def algorithms_of(compression: CompressionSettings) -> list[str]:
    """The names of the algorithms with a rate; the first one's rate is the whole's."""
    parts = compression.compressing if isinstance(compression, Composite) else (compression,)
    return [part.algorithm for part in parts]


def distillation_of(compression: CompressionSettings) -> KnowledgeDistillation | None:
    """The loss that comes with the compression, if it is a composite with one."""
    return compression.distillation if isinstance(compression, Composite) else None


class _Chosen(Settings):
    compression: CompressionSettings


def parse_compression(data: Any) -> CompressionSettings:
    """Reads the settings of any algorithm from plain data.

    Raises:
        ConfigurationError: Lists every mistake.
    """
    return parse(_Chosen, {"compression": data}).compression

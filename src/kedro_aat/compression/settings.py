"""Settings of the compression algorithms. This module does not import torch, so that checking them is quick."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.search.policy import Count
from kedro_aat.validated import Settings, parse

Importance = Literal["lamp", "abs", "squared_abs", "normed_abs"]
FilterImportance = Literal["l1", "l2", "geometric_median", "batch_norm_scale", "taylor"]
RateOf = Literal["filters", "parameters", "macs"]
RateMeaning = Literal["model", "nncf"]
P = TypeVar("P", bound=Settings)


def numbers_of_pattern(text: str) -> tuple[int, int]:
    """Returns N and M of an "N:M" pattern.

    Raises:
        ValueError: If the text is not a pattern with N from 1 to M - 1.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    num_kept, size = map(int, match.groups()) if match else (0, 0)
    if not 0 < num_kept < size:
        raise ValueError(
            'a pattern must be "N:M", for at most N nonzero weights out of every M, with N from 1 to M - 1, as in '
            f'"2:4", but got {text!r}'
        )
    return num_kept, size


def _checked_pattern(text: str) -> str:
    numbers_of_pattern(text)
    return text


class AlgorithmSettings(Settings):
    """Settings that every algorithm has.

    Attributes:
        algorithm: Name of the algorithm.
        ignored_scopes: Layers that are not compressed, each by a scope: a name, a pattern with `*`, or `{re}` and a
            regular expression.
        target_scopes: The only layers to compress; None for all.
        schedule: The rate until a search takes over.
    """

    algorithm: str
    ignored_scopes: tuple[str, ...] = ()
    target_scopes: tuple[str, ...] | None = None
    schedule: ScheduleSettings = ScheduleSettings()


class MagnitudeSparsity(AlgorithmSettings):
    """Settings of magnitude sparsity, whose rate is the share of zeros in a model's matrices.

    These are the weights of all kinds of layers, embeddings included, and other parameters with two dimensions or more.
    Biases, normalizations, position embeddings and frozen parameters stay dense.

    Attributes:
        importance: How weights are ranked: by magnitude (`abs`), its square (`squared_abs`), the magnitude as a share
            of the layer's norm (`normed_abs`), or the squared weight as a share of the layer's squares that are at
            least as large (`lamp`), which keeps some weights in every layer. With embeddings, keep `lamp`.
        ranking: `global` sets one threshold for the whole model, `local` sets the same rate in every layer.
        pattern: "N:M", as in "2:4": the N largest of every M consecutive weights along the input dimension are kept.
            A layer either has the pattern or is dense. The layers that lose the smallest share of their energy get
            the pattern first, until the share of zeros is nearest to the rate; so the rate changes by whole layers,
            up to `maximal_compression_rate`. Layers whose input dimension is not divisible by M stay dense. With a
            pattern, `importance` and `ranking` have no effect: within a layer, every importance ranks by magnitude.
            None for zeros anywhere.
        shadow_on_host: Whether values that weights get back when the rate falls wait in the memory of the host, instead
            of the device's. A search that chooses the ranking keeps none.
    """

    algorithm: Literal["magnitude_sparsity"] = "magnitude_sparsity"
    importance: Importance = "lamp"
    ranking: Literal["global", "local"] = "global"
    pattern: Annotated[str, AfterValidator(_checked_pattern)] | None = None
    shadow_on_host: bool = False


class FilterPruning(AlgorithmSettings):
    """Settings of filter pruning, which cuts whole channels and attention heads with everything that depends on them.

    Attributes:
        importance: How units of channels are ranked: by the norm of their weights (`l1`, `l2`), by their distance from
            all other units (`geometric_median`), by the scales of the normalization that follows
            (`batch_norm_scale`), or by what the loss would change without them, measured while training (`taylor`).
        ranking: `local` removes the same share of every group of channels, `global` the least important units of the
            whole model, where a unit's importance is relative to the mean of its group.
        round_to: The number of remaining channels of a group is a multiple of this; odd numbers can be slow on a GPU.
            If `export.objective` names LiteRT or ExecuTorch, 4 or 8 is the default.
        rate_of: What the rate is the removed share of, in the whole model: `filters` (output channels of
            convolutions and linear layers), `parameters`, or `macs` (multiply-accumulate operations).
        rate_meaning: `model` is the share of the whole model. `nncf` is what NNCF 2.x means by a rate of `filters` or
            `macs`, whatever its layers weigh: with `ranking: local`, every group of layers that depend on each other
            loses this share of its filters, or the share that removes these MACs; with `global`, the least important
            filters of all these layers go. It ignores `minimal_channels`, and `global` also `round_to`.
        minimal_channels: Smallest number of remaining channels of a group.
        ignored_scopes: Layers whose outputs are all kept; their inputs are cut if the preceding layers' outputs are.
        target_scopes: The only layers whose outputs are cut; None for all.
        shadow_on_host: As for `magnitude_sparsity`.
    """

    algorithm: Literal["filter_pruning"] = "filter_pruning"
    importance: FilterImportance = "l2"
    ranking: Literal["local", "global"] = "local"
    round_to: Annotated[int, Field(ge=1, le=65_536)] = 1
    rate_of: RateOf = "parameters"
    rate_meaning: RateMeaning = "model"
    minimal_channels: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    shadow_on_host: bool = False

    @model_validator(mode="after")
    def _check_meaning(self) -> FilterPruning:
        if self.rate_meaning == "nncf" and self.rate_of == "parameters":
            raise ValueError("rate_meaning: nncf needs rate_of: filters or macs, since NNCF counts no parameters")
        return self


class Quantization(AlgorithmSettings):
    """Settings of quantization to 8 bits; its rate is the share of all weights of the model that are int8.

    Convolutions and linear layers are computed in integers. Embeddings, transposed convolutions, recurrent, bilinear
    and attention layers, layers with a `forward` of their own and weights that layers share are stored in int8, and
    computed in floating point. Biases and normalizations are no weights. The rate also counts weights that stay in
    float32, because a scope excludes them, or because they are parametrized or no layer's: `statistics` names them.

    Attributes:
        quantize_inputs: Whether the model's own input is rounded to 8 bits, too; otherwise the layers that read it
            are not computed in integers. An input that 8 bits would damage, because the scales of its columns are far
            apart, is never rounded.
        calibration_only: Whether training stays in full precision and only observes the ranges of activations, so
            that the model is quantized only when it is evaluated (post-training quantization).
        range_momentum: Weight of a new batch in the moving averages of the ranges, in (0, 1].
        observed_steps: Number of training steps after which the ranges stay the same; None for no limit.
        overflow_fix: Whether weights use only 7 of their 8 bits, so that the sum of two products fits into the 16 bits
            that onnxruntime uses for it on x86 CPUs without VNNI. On these CPUs the exported model is wrong without it.
        keep_zeros: Whether weights that are zero at the beginning stay zero. The pipeline switches it on in a stage
            that follows `magnitude_sparsity`.
        schedule: The rate until a search takes over; by default, all layers are quantized from the start.
    """

    algorithm: Literal["quantization"] = "quantization"
    quantize_inputs: bool = True
    calibration_only: bool = False
    range_momentum: Annotated[float, Field(gt=0, le=1)] = 0.05
    observed_steps: Count | None = None
    overflow_fix: bool = True
    keep_zeros: bool = False
    schedule: ScheduleSettings = ScheduleSettings(initial_rate=0.998)


class KnowledgeDistillation(Settings):
    """Settings of a loss that keeps the model's outputs close to those before compression; it has no rate.

    Attributes:
        algorithm: Name of the algorithm.
        type: `softmax` compares probabilities, `mse` compares outputs.
        scale: Factor of the loss, at least 0.
        temperature: Divisor of the logits before the softmax, above 0; the higher, the more small logits count.
        nncf_loss: Whether the loss is NNCF 2.x's: `softmax` is the cross-entropy with the teacher's probabilities,
            whose gradient is the same, and outputs with fewer than two dimensions, such as a loss, are not compared.
    """

    algorithm: Literal["knowledge_distillation"] = "knowledge_distillation"
    type: Literal["softmax", "mse"]
    scale: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    nncf_loss: bool = False


SingleAlgorithm = MagnitudeSparsity | FilterPruning | Quantization
_PartOfComposite = Annotated[SingleAlgorithm | KnowledgeDistillation, Field(discriminator="algorithm")]

# The search sets the rate of the first of these algorithms that a composite contains.
ADAPTIVE_FIRST = ("filter_pruning", "magnitude_sparsity", "quantization")


class Composite(Settings):
    """Several algorithms on one model; a list of their settings is the short form.

    The search sets the rate of one of them, the first of `filter_pruning`, `magnitude_sparsity` and `quantization` that
    is there; the others follow their own schedules.

    Attributes:
        algorithm: `composite`.
        algorithms: Settings of at least two different algorithms, at least one of them with a rate, in any order.
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
        """Settings of the algorithms that have a rate; the first is the one whose rate the search sets."""
        parts = [part for part in self.algorithms if not isinstance(part, KnowledgeDistillation)]
        return tuple(sorted(parts, key=lambda part: ADAPTIVE_FIRST.index(part.algorithm)))

    @property
    def distillation(self) -> KnowledgeDistillation | None:
        """Settings of the distillation loss, if there is one."""
        return next((part for part in self.algorithms if isinstance(part, KnowledgeDistillation)), None)


def _named(data: Any) -> Any:
    """Adds the name of the algorithm: `magnitude_sparsity` if there is none, `composite` for a list of several."""
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
    """Returns the names of the algorithms with a rate; the first one's rate is the controller's."""
    parts = compression.compressing if isinstance(compression, Composite) else (compression,)
    return [part.algorithm for part in parts]


def distillation_of(compression: CompressionSettings) -> KnowledgeDistillation | None:
    """Returns the settings of the distillation loss, if the compression is a composite that has one."""
    return compression.distillation if isinstance(compression, Composite) else None


def keeping_zeros(compression: CompressionSettings) -> CompressionSettings:
    """Returns the settings with `keep_zeros` of quantization switched on."""
    if isinstance(compression, Composite):
        return Composite(algorithms=tuple(map(_keeping_zeros, compression.algorithms)))
    return _keeping_zeros(compression)


def _keeping_zeros(part: P) -> P:
    return part.model_copy(update={"keep_zeros": True}) if isinstance(part, Quantization) else part


class _Chosen(Settings):
    compression: CompressionSettings


def parse_compression(data: Any) -> CompressionSettings:
    """Reads the settings of any algorithm from plain data.

    Raises:
        ConfigurationError: If there are mistakes; the message lists all of them.
    """
    return parse(_Chosen, {"compression": data}).compression

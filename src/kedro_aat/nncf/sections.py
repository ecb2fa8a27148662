"""The `compression` section of an NNCF 2.x file: the keys of each algorithm, and their translation to our settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from kedro_aat.compression.schedule import ScheduleSettings, require_steps
from kedro_aat.compression.settings import (
    FilterImportance,
    FilterPruning,
    Importance,
    KnowledgeDistillation,
    MagnitudeSparsity,
    Quantization,
)
from kedro_aat.search.policy import Count, Rate
from kedro_aat.validated import Settings

_FILTER_IMPORTANCES: dict[str, FilterImportance] = {"L1": "l1", "L2": "l2", "geometric_median": "geometric_median"}
# Rate that stands for "quantize all layers": the maximal rate of the `aat` pipeline, since a rate of 1 is not allowed.
_RATE_OF_ALL_LAYERS = 0.998
# NNCF leaves a multiple of this number of filters in each layer.
_ROUND_TO = 8


def wrap_in_list(value: Any) -> Any:
    """Puts a value that a file may write without its list into one; leaves lists and None as they are."""
    return value if isinstance(value, list | tuple) or value is None else [value]


Scopes = Annotated[tuple[str, ...], BeforeValidator(wrap_in_list)]


class BatchnormAdaptation(Settings):
    """`initializer.batchnorm_adaptation`."""

    num_bn_adaptation_samples: Count = 2000
    num_bn_forget_samples: int | None = None


class RangeInitializer(Settings):
    """`initializer.range`; in a list, each item is for some of the layers."""

    num_init_samples: Count = 256
    type: str | None = None
    params: Any = None
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    target_quantizer_group: str | None = None


class Initializer(Settings):
    """`initializer`; only quantization uses `range` and `precision`."""

    batchnorm_adaptation: BatchnormAdaptation | None = None
    range: Annotated[tuple[RangeInitializer, ...], BeforeValidator(wrap_in_list)] | None = None
    precision: Any = None


class AlgorithmSection(Settings):
    """The keys that every algorithm has."""

    algorithm: str
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    initializer: Initializer | None = None
    compression_lr_multiplier: float | None = None

    def explain_differences(self) -> Iterator[str]:
        """Explains each key in use that has no effect here, or a different one than in NNCF."""
        if self.compression_lr_multiplier is not None:
            yield f"{self.algorithm}.compression_lr_multiplier has no effect: no algorithm adds parameters"

    def _merge_scopes(self, ignored: Sequence[str], targets: Sequence[str] | None) -> dict[str, Any]:
        """The section's own scopes followed by those at the root of the file."""
        all_targets = (*(self.target_scopes or ()), *(targets or ()))
        return {"ignored_scopes": (*self.ignored_scopes, *ignored), "target_scopes": all_targets or None}

    def _explain_unused_initializers(self) -> Iterator[str]:
        """For algorithms whose only initialization is the adaptation of BatchNorms."""
        if self.initializer is not None:
            for key in sorted(self.initializer.model_fields_set - {"batchnorm_adaptation"}):
                yield f"{self.algorithm}.initializer.{key} has no effect: this algorithm does not quantize"


class MagnitudeSparsityParams(Settings):
    """`params` of `magnitude_sparsity`."""

    weight_importance: Importance = "normed_abs"
    sparsity_level_setting_mode: Literal["global", "local"] = "global"
    schedule: Literal["polynomial", "exponential", "multistep", "adaptive"] = "polynomial"
    sparsity_target: Rate = 0.5
    sparsity_target_epoch: Count = 90
    sparsity_freeze_epoch: Count = 100
    update_per_optimizer_step: bool = False
    steps_per_epoch: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    multistep_steps: tuple[Count, ...] = (90,)
    multistep_sparsity_levels: tuple[Rate, ...] = (0.1, 0.5)
    patience: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    power: Annotated[float, Field(gt=0, le=100)] = 0.9
    concave: bool = True

    @model_validator(mode="after")
    def _check_steps(self) -> MagnitudeSparsityParams:
        if self.schedule == "multistep":
            require_steps(sorted(self.multistep_steps), self.multistep_sparsity_levels)  # NNCF sorts them, too
        return self


class MagnitudeSparsityAlgorithm(AlgorithmSection):
    """`magnitude_sparsity`."""

    algorithm: Literal["magnitude_sparsity"]
    sparsity_init: Rate = 0.0
    params: MagnitudeSparsityParams = MagnitudeSparsityParams()

    def explain_differences(self) -> Iterator[str]:
        yield from super().explain_differences()
        yield from self._explain_unused_initializers()

    def to_settings(self, ignored: Sequence[str] = (), targets: Sequence[str] | None = None) -> MagnitudeSparsity:
        """Translates the section; `ignored` and `targets` are the scopes at the root of the file."""
        params = self.params
        return MagnitudeSparsity(
            importance=params.weight_importance,
            ranking=params.sparsity_level_setting_mode,
            **self._merge_scopes(ignored, targets),
            schedule=ScheduleSettings(
                kind=params.schedule,
                initial_rate=self.sparsity_init,
                target_rate=params.sparsity_target,
                target_epoch=params.sparsity_target_epoch,
                freeze_epoch=params.sparsity_freeze_epoch,
                power=params.power,
                concave=params.concave,
                multistep_epochs=tuple(sorted(params.multistep_steps)),
                multistep_rates=params.multistep_sparsity_levels,
                patience=params.patience,
                # The other schedules of NNCF change the level once per epoch, whatever this key says.
                update_per_optimizer_step=params.update_per_optimizer_step and params.schedule == "polynomial",
                steps_per_epoch=params.steps_per_epoch,
                begins_after_counting=params.update_per_optimizer_step and params.schedule == "polynomial",
            ),
        )


class FilterPruningParams(Settings):
    """`params` of `filter_pruning`."""

    filter_importance: Literal["L1", "L2", "geometric_median"] = "L2"
    weight_importance: Literal["L1", "L2", "geometric_median"] | None = None
    pruning_target: Rate = 0.5
    pruning_flops_target: Rate | None = None
    pruning_steps: Count = 100
    num_init_steps: Count = 0
    schedule: Literal["baseline", "exponential", "exponential_with_bias"] = "exponential"
    interlayer_ranking_type: Literal["unweighted_ranking", "learned_ranking"] = "unweighted_ranking"
    all_weights: bool = False
    prune_first_conv: bool = False
    prune_downsample_convs: bool = False
    prune_batch_norms: bool = True
    legr_params: Any = None

    @model_validator(mode="before")
    @classmethod
    def _add_defaults_of_learned_ranking(cls, data: Any) -> Any:
        learns = isinstance(data, Mapping) and data.get("interlayer_ranking_type") == "learned_ranking"
        keys = ("all_weights", "prune_first_conv", "prune_downsample_convs")
        return {**dict.fromkeys(keys, True), **data} if learns else data

    @model_validator(mode="after")
    def _check_single_target(self) -> FilterPruningParams:
        if "pruning_target" in self.model_fields_set and self.pruning_flops_target is not None:
            raise ValueError("only one of pruning_target and pruning_flops_target is allowed, but got both")
        return self

    @property
    def target(self) -> float:
        """The rate at the end of the schedule, of MACs or of filters."""
        return self.pruning_target if self.pruning_flops_target is None else self.pruning_flops_target


class FilterPruningAlgorithm(AlgorithmSection):
    """`filter_pruning`. Rates are shares of the filters of each layer, or of the MACs with `pruning_flops_target`.

    `create_compressed_model` makes them shares of the whole model's parameters or MACs if the search is `frontier`.
    """

    algorithm: Literal["filter_pruning"]
    pruning_init: Rate = 0.0
    params: FilterPruningParams = FilterPruningParams()

    @model_validator(mode="after")
    def _check_schedule(self) -> FilterPruningAlgorithm:
        if self.params.schedule == "exponential_with_bias":
            self._schedule()
        return self

    def explain_differences(self) -> Iterator[str]:
        yield from super().explain_differences()
        yield from self._explain_unused_initializers()
        if self.params.legr_params is not None:
            yield "filter_pruning.params.legr_params is no longer supported"
        if self.params.interlayer_ranking_type == "learned_ranking":
            yield (
                "filter_pruning.params.interlayer_ranking_type: learned_ranking is no longer supported; filters are "
                "ranked by their importance alone"
            )
        if not self.params.prune_batch_norms:
            yield (
                "filter_pruning.params.prune_batch_norms has no effect: a filter is removed together with everything "
                "that depends on it, including its BatchNorm"
            )

    def to_settings(self, ignored: Sequence[str] = (), targets: Sequence[str] | None = None) -> FilterPruning:
        """Translates the section; `ignored` and `targets` are the scopes at the root of the file.

        Which layers `prune_first_conv` and `prune_downsample_convs` exclude depends on the model: the caller names
        them in `ignored`.
        """
        params = self.params
        return FilterPruning(
            importance=_FILTER_IMPORTANCES[params.weight_importance or params.filter_importance],
            ranking="global" if params.all_weights else "local",
            rate_of="filters" if params.pruning_flops_target is None else "macs",
            rate_meaning="nncf",
            round_to=_ROUND_TO,
            **self._merge_scopes(ignored, targets),
            schedule=self._schedule(),
        )

    def _schedule(self) -> ScheduleSettings:
        params, start = self.params, self.params.num_init_steps
        if params.schedule != "baseline":
            return ScheduleSettings(
                kind=params.schedule,
                initial_rate=self.pruning_init,
                target_rate=params.target,
                start_epoch=start,
                start_rate=0.0,
                target_epoch=max(params.pruning_steps - 1, 0),
                freeze_epoch=start + params.pruning_steps + 1,  # the last masks are those of the epoch before
            )
        return ScheduleSettings(
            kind="multistep",
            initial_rate=self.pruning_init,
            multistep_epochs=(start,) if start else (),
            multistep_rates=(0.0, params.target) if start else (params.target,),
            freeze_epoch=start,
        )


class QuantizerParams(Settings):
    """`weights` and `activations` of `quantization`."""

    mode: Literal["symmetric", "asymmetric"] | None = None
    bits: int = 8
    per_channel: bool | None = None
    signed: bool | None = None
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    logarithm_scale: bool | None = None
    unified_scale_ops: Any = None

    @field_validator("bits")
    @classmethod
    def _check_bits(cls, bits: int) -> int:
        if bits != 8:
            raise ValueError(f"must be 8, the only width that every runtime computes in, but got {bits}")
        return bits


class QuantizationParams(Settings):
    """`params` of `quantization`."""

    activations_quant_start_epoch: Count | None = None
    weights_quant_start_epoch: Count | None = None
    batch_multiplier: float | None = None
    lr_poly_drop_start_epoch: float | None = None
    lr_poly_drop_duration_epochs: float | None = None
    disable_wd_start_epoch: float | None = None
    base_lr: float | None = None
    base_wd: float | None = None

    @property
    def start_epochs(self) -> set[int]:
        """The epochs in which the quantization of weights or activations starts."""
        epochs = {self.activations_quant_start_epoch, self.weights_quant_start_epoch}
        return {epoch for epoch in epochs if epoch is not None}

    def explain_differences(self) -> Iterator[str]:
        """Explains each key in use that has no effect here, or a different one than in NNCF."""
        if len(self.start_epochs) > 1:
            yield f"params: weights and activations are quantized together, from epoch {max(self.start_epochs)} on"
        for key in sorted(self.model_fields_set - {"activations_quant_start_epoch", "weights_quant_start_epoch"}):
            yield f"params.{key} has no effect: the training function sets the learning rate and the weight decay"


class QuantizationAlgorithm(AlgorithmSection):
    """`quantization`."""

    algorithm: Literal["quantization"]
    preset: Literal["performance", "mixed"] | None = None
    weights: QuantizerParams | None = None
    activations: QuantizerParams | None = None
    quantize_inputs: bool = True
    quantize_outputs: bool = False
    overflow_fix: Literal["enable", "disable", "first_layer_only"] | None = None
    scope_overrides: Any = None
    export_to_onnx_standard_ops: bool | None = None
    params: QuantizationParams | None = None

    @property
    def num_init_samples(self) -> int:
        """Examples from which the ranges of activations are taken: the most that any range initializer names."""
        ranges = (self.initializer.range if self.initializer else None) or (RangeInitializer(),)
        return max(each.num_init_samples for each in ranges)

    def explain_differences(self) -> Iterator[str]:
        yield from super().explain_differences()
        yield from (f"quantization.{text}" for text in self._explain_own_differences())

    def _explain_own_differences(self) -> Iterator[str]:
        weights, activations = self.weights or QuantizerParams(), self.activations or QuantizerParams()
        differences = {
            "preset: performance quantizes like mixed here, activations with a zero point": (
                self.preset == "performance"
            ),
            "weights.mode: weights are always symmetric": weights.mode == "asymmetric",
            "weights.per_channel: weights always have one scale per output channel": weights.per_channel is False,
            "weights.signed: weights are always signed": weights.signed is False,
            "activations.mode: activations always have a zero point": activations.mode == "symmetric",
            "activations.per_channel: activations always have one scale per tensor": activations.per_channel,
            "activations.signed: activations are always unsigned, with a zero point for negative numbers": (
                activations.signed
            ),
            "quantize_outputs: the model's own outputs stay in full precision": self.quantize_outputs,
            "overflow_fix: first_layer_only applies to every layer": self.overflow_fix == "first_layer_only",
            "scope_overrides has no effect": self.scope_overrides is not None,
            "export_to_onnx_standard_ops has no effect": self.export_to_onnx_standard_ops is not None,
        }
        yield from (text for text, is_in_use in differences.items() if is_in_use)
        for side, quantizer in (("weights", weights), ("activations", activations)):
            for key in ("ignored_scopes", "target_scopes", "logarithm_scale", "unified_scale_ops"):
                if getattr(quantizer, key):
                    yield f"{side}.{key} has no effect: a layer is quantized together with its input, or not at all"
        if self.initializer is not None:
            yield from self._explain_initializer(self.initializer)
        if self.params is not None:
            yield from self.params.explain_differences()

    def _explain_initializer(self, initializer: Initializer) -> Iterator[str]:
        if initializer.precision is not None:
            yield "initializer.precision has no effect: every quantized layer has 8 bits"
        for each in initializer.range or ():
            if each.type not in (None, "mean_min_max") or each.params is not None:
                yield "initializer.range: ranges always are the batches' mean minimum and maximum (mean_min_max)"
            if each.ignored_scopes or each.target_scopes or each.target_quantizer_group:
                yield "initializer.range: all ranges come from the same samples, as many as the largest number given"

    def to_settings(self, ignored: Sequence[str] = (), targets: Sequence[str] | None = None) -> Quantization:
        """Translates the section; `ignored` and `targets` are the scopes at the root of the file."""
        schedule = ScheduleSettings(initial_rate=_RATE_OF_ALL_LAYERS)
        if self.params is not None and (start := max(self.params.start_epochs, default=0)):
            rates = (0.0, _RATE_OF_ALL_LAYERS)
            schedule = ScheduleSettings(kind="multistep", multistep_epochs=(start,), multistep_rates=rates)
        return Quantization(
            quantize_inputs=self.quantize_inputs,
            overflow_fix=self.overflow_fix != "disable",
            **self._merge_scopes(ignored, targets),
            schedule=schedule,
        )


class KnowledgeDistillationAlgorithm(AlgorithmSection):
    """`knowledge_distillation`."""

    algorithm: Literal["knowledge_distillation"]
    type: Literal["softmax", "mse"]
    scale: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0

    def explain_differences(self) -> Iterator[str]:
        yield from super().explain_differences()
        for key in ("ignored_scopes", "target_scopes", "initializer"):
            if getattr(self, key):
                yield f"knowledge_distillation.{key} has no effect: outputs are compared, not layers"
        if self.type == "mse" and "temperature" in self.model_fields_set:
            yield "knowledge_distillation.temperature has no effect with type mse"

    def to_settings(self, ignored: Sequence[str] = (), targets: Sequence[str] | None = None) -> KnowledgeDistillation:
        """Translates the section; scopes have no effect."""
        return KnowledgeDistillation(type=self.type, scale=self.scale, temperature=self.temperature, nncf_loss=True)


CompressingAlgorithm = MagnitudeSparsityAlgorithm | FilterPruningAlgorithm | QuantizationAlgorithm
Algorithm = Annotated[CompressingAlgorithm | KnowledgeDistillationAlgorithm, Field(discriminator="algorithm")]

"""The section `quantization` of an NNCF 2.x file, and its translation to our settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import Quantization
from kedro_aat.nncf.section import AlgorithmSection, Initializer, RangeInitializer, Scopes
from kedro_aat.search.policy import Count
from kedro_aat.validated import Settings

# Rate that stands for "quantize all layers": the maximal rate of the `aat` pipeline, since a rate of 1 is not allowed.
_RATE_OF_ALL_LAYERS = 0.998
# Keys of `activations` that let several of them share a scale; NNCF 2.0 had the second one.
_SCALES = ("unified_scale_ops", "linked_quantizer_scopes")


class QuantizerParams(Settings):
    """`weights` and `activations` of `quantization`."""

    mode: Literal["symmetric", "asymmetric"] | None = None
    bits: Annotated[int, Field(ge=1, le=32)] = 8
    per_channel: bool | None = None
    signed: bool | None = None
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    validate_scopes: bool = True
    logarithm_scale: bool | None = None
    unified_scale_ops: Any = None
    linked_quantizer_scopes: Any = None


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

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("disable_saturation_fix"), bool):  # of NNCF 2.0
            is_disabled = data["disable_saturation_fix"]
            data = {key: value for key, value in data.items() if key != "disable_saturation_fix"}
            return {"overflow_fix": "disable" if is_disabled else "enable", **data}
        return data

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
            if quantizer.bits != 8:
                yield f"{side}.bits: {quantizer.bits} bits are 8 here, the only width that every runtime computes in"
            for key in ("ignored_scopes", "target_scopes", "logarithm_scale", *_SCALES):
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
            **self.merge_scopes(ignored, targets),
            schedule=schedule,
        )

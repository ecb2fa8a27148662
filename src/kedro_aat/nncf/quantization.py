"""`quantization` in an NNCF 2.x file, and what of it means something else here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import field_validator

from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import Quantization
from kedro_aat.nncf.sections import AlgorithmSection, Count, Initializer, RangeInitializer, Scopes
from kedro_aat.validated import Settings

# What of a rate is asked for where all layers are meant; the search ends there, too.
_ALL_LAYERS = 0.998


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
    def _eight(cls, bits: int) -> int:
        if bits != 8:
            raise ValueError(f"only 8 bits are available, which every runtime computes in, but got {bits}")
        return bits


class StagedQuantization(Settings):
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
    def starts(self) -> set[int]:
        """Epochs in which weights or activations begin to be rounded."""
        found = {self.activations_quant_start_epoch, self.weights_quant_start_epoch}
        return {epoch for epoch in found if epoch is not None}

    def without_meaning(self) -> Iterator[str]:
        """Keys that do nothing here, or something else, each in words."""
        if len(self.starts) > 1:
            yield f"params: weights and activations are rounded together, from epoch {max(self.starts)} on"
        starts = {"activations_quant_start_epoch", "weights_quant_start_epoch"}
        for key in sorted(self.model_fields_set - starts):
            yield f"params.{key} has no meaning here: the learning rate is the training function's own"


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
    params: StagedQuantization | None = None

    def without_meaning(self) -> Iterator[str]:
        yield from super().without_meaning()
        yield from (f"quantization.{words}" for words in self._differences())

    def _differences(self) -> Iterator[str]:
        weights, activations = self.weights or QuantizerParams(), self.activations or QuantizerParams()
        differences = {
            "preset: performance is quantized like mixed, activations with a zero point": self.preset == "performance",
            "weights.mode: weights are symmetric here": weights.mode == "asymmetric",
            "weights.per_channel: weights have a scale for each output channel here": weights.per_channel is False,
            "weights.signed: weights are signed here": weights.signed is False,
            "activations.mode: activations have a zero point here": activations.mode == "symmetric",
            "activations.per_channel: activations have one scale a tensor here": activations.per_channel,
            "activations.signed: activations are unsigned here, with a zero point for negative numbers": (
                activations.signed
            ),
            "quantize_outputs: the model's own outputs stay in full precision": self.quantize_outputs,
            "overflow_fix: first_layer_only holds for every layer": self.overflow_fix == "first_layer_only",
            "scope_overrides has no meaning here": self.scope_overrides is not None,
            "export_to_onnx_standard_ops has no meaning here": self.export_to_onnx_standard_ops is not None,
        }
        yield from (words for words, is_there in differences.items() if is_there)
        for side, given in (("weights", weights), ("activations", activations)):
            for key in ("ignored_scopes", "target_scopes", "logarithm_scale", "unified_scale_ops"):
                if getattr(given, key):
                    yield f"{side}.{key} has no meaning here: a layer is quantized with what it reads, or not at all"
        if self.initializer is not None:
            yield from self._unknown_ranges(self.initializer)
        if self.params is not None:
            yield from self.params.without_meaning()

    def _unknown_ranges(self, initializer: Initializer) -> Iterator[str]:
        if initializer.precision is not None:
            yield "initializer.precision has no meaning here: every quantized layer has 8 bits"
        for given in initializer.range or ():
            if given.type not in (None, "mean_min_max") or given.params is not None:
                yield "initializer.range: a range is the mean of the batches' lowest and highest numbers (mean_min_max)"
            if given.ignored_scopes or given.target_scopes or given.target_quantizer_group:
                yield "initializer.range: all ranges come from the same samples, the most that are named"

    @property
    def num_init_samples(self) -> int:
        """Examples from which the ranges of activations are taken."""
        given = (self.initializer.range if self.initializer else None) or (RangeInitializer(),)
        return max(each.num_init_samples for each in given)

    def settings(self, ignored: Sequence[str] = (), targets: Sequence[str] | None = None) -> Quantization:
        """The same in this project's own terms, with the scopes at the root of the file it stands in."""
        starts = self.params.starts if self.params is not None else set()
        schedule = ScheduleSettings(initial_rate=_ALL_LAYERS)
        if start := max(starts, default=0):
            schedule = ScheduleSettings(kind="multistep", multistep_epochs=(start,), multistep_rates=(0.0, _ALL_LAYERS))
        return Quantization(
            quantize_inputs=self.quantize_inputs,
            overflow_fix=self.overflow_fix != "disable",
            **self._scopes(ignored, targets),
            schedule=schedule,
        )

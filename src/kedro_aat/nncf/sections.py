"""The `compression` section of an NNCF 2.x file: the keys of each algorithm, and their translation to our settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from kedro_aat.compression.schedule import ScheduleSettings, require_steps
from kedro_aat.compression.settings import (
    FilterImportance,
    FilterPruning,
    Importance,
    KnowledgeDistillation,
    MagnitudeSparsity,
)
from kedro_aat.nncf.quantization_section import QuantizationAlgorithm
from kedro_aat.nncf.replaced import refuse_replaced
from kedro_aat.nncf.section import AlgorithmSection
from kedro_aat.search.policy import Count, Rate
from kedro_aat.validated import Settings

_FILTER_IMPORTANCES: dict[str, FilterImportance] = {"L1": "l1", "L2": "l2", "geometric_median": "geometric_median"}
# NNCF leaves a multiple of this number of filters in each layer.
_ROUND_TO = 8


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
            **self.merge_scopes(ignored, targets),
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
    save_ranking_coeffs_path: str | None = None
    load_ranking_coeffs_path: str | None = None

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
        for key in ("save_ranking_coeffs_path", "load_ranking_coeffs_path"):
            if getattr(self.params, key) is not None:
                yield f"filter_pruning.params.{key} has no effect: only learned_ranking has coefficients"
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
            **self.merge_scopes(ignored, targets),
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


class ConstSparsityAlgorithm(AlgorithmSection):
    """`const_sparsity`: weights that are zero when the model is compressed stay zero."""

    algorithm: Literal["const_sparsity"]

    def explain_differences(self) -> Iterator[str]:
        yield from super().explain_differences()
        yield from self._explain_unused_initializers()

    def to_settings(self, ignored: Sequence[str] = (), targets: Sequence[str] | None = None) -> MagnitudeSparsity:
        """Translates the section, with a rate of 0: the share of zeros depends on the model."""
        return MagnitudeSparsity(importance="abs", ranking="global", **self.merge_scopes(ignored, targets))


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
Algorithm = Annotated[
    CompressingAlgorithm | ConstSparsityAlgorithm | KnowledgeDistillationAlgorithm,
    Field(discriminator="algorithm"),
    BeforeValidator(refuse_replaced),
]

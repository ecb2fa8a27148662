"""The algorithms of an NNCF 2.x file: what their sections may say, and what that means here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kedro_aat.compression.schedule import ScheduleSettings, require_steps
from kedro_aat.compression.settings import FilterImportance, FilterPruning, KnowledgeDistillation, MagnitudeSparsity
from kedro_aat.nncf.quantization import QuantizationAlgorithm
from kedro_aat.nncf.sections import AlgorithmSection, Count
from kedro_aat.search.policy import Rate
from kedro_aat.validated import Settings

_IMPORTANCES: dict[str, FilterImportance] = {"L1": "l1", "L2": "l2", "geometric_median": "geometric_median"}


class MagnitudeSparsityParams(Settings):
    """`params` of `magnitude_sparsity`."""

    weight_importance: Literal["abs", "normed_abs", "squared_abs"] = "normed_abs"
    sparsity_level_setting_mode: Literal["global", "local"] = "global"
    schedule: Literal["polynomial", "exponential", "multistep", "adaptive"] = "polynomial"
    sparsity_target: Rate = 0.5
    sparsity_target_epoch: Count = 90
    sparsity_freeze_epoch: Count = 100
    update_per_optimizer_step: bool = False
    steps_per_epoch: Annotated[int, Field(ge=1)] | None = None
    multistep_steps: tuple[Count, ...] = (90,)
    multistep_sparsity_levels: tuple[Rate, ...] = (0.1, 0.5)
    patience: Annotated[int, Field(ge=1)] = 1
    power: Annotated[float, Field(gt=0)] = 0.9
    concave: bool = True

    @model_validator(mode="after")
    def _sound_steps(self) -> MagnitudeSparsityParams:
        if self.schedule == "multistep":
            require_steps(sorted(self.multistep_steps), self.multistep_sparsity_levels)  # NNCF sorts them, too
        return self


class MagnitudeSparsityAlgorithm(AlgorithmSection):
    """`magnitude_sparsity`."""

    algorithm: Literal["magnitude_sparsity"]
    sparsity_init: Rate = 0.0
    params: MagnitudeSparsityParams = MagnitudeSparsityParams()

    def without_meaning(self) -> Iterator[str]:
        yield from super().without_meaning()
        yield from self._unused_initializers()

    def settings(self, ignored: Sequence[str] = (), targets: Sequence[str] | None = None) -> MagnitudeSparsity:
        """The same in this project's own terms, with the scopes at the root of the file it stands in."""
        params = self.params
        return MagnitudeSparsity(
            importance=params.weight_importance,
            ranking=params.sparsity_level_setting_mode,
            **self._scopes(ignored, targets),
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
                update_per_optimizer_step=params.update_per_optimizer_step,
                steps_per_epoch=params.steps_per_epoch,
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

    @model_validator(mode="after")
    def _one_target(self) -> FilterPruningParams:
        if {
            "pruning_target",
            "pruning_flops_target",
        } <= self.model_fields_set and self.pruning_flops_target is not None:
            raise ValueError("pruning_target and pruning_flops_target exclude each other, but got both")
        return self

    @property
    def target(self) -> float:
        """The rate at the end, of MACs or of filters."""
        return self.pruning_target if self.pruning_flops_target is None else self.pruning_flops_target


class FilterPruningAlgorithm(AlgorithmSection):
    """`filter_pruning`. Rates are shares of the whole model's filters, or of its MACs for `pruning_flops_target`."""

    algorithm: Literal["filter_pruning"]
    pruning_init: Rate = 0.0
    params: FilterPruningParams = FilterPruningParams()

    @model_validator(mode="after")
    def _sound_schedule(self) -> FilterPruningAlgorithm:
        if self.params.schedule == "exponential_with_bias":
            self._schedule()
        return self

    def without_meaning(self) -> Iterator[str]:
        yield from super().without_meaning()
        yield from self._unused_initializers()
        params = self.params
        if params.legr_params is not None:
            yield "filter_pruning.params.legr_params is no longer supported"
        if params.interlayer_ranking_type == "learned_ranking":
            yield (
                "filter_pruning.params.interlayer_ranking_type: learned_ranking is no longer supported; filters are "
                "ranked by their importance alone"
            )
        if not params.prune_batch_norms:
            yield (
                "filter_pruning.params.prune_batch_norms has no meaning here: a filter is cut with all that hangs on "
                "it, its BatchNorm included"
            )

    def settings(self, ignored: Sequence[str] = (), targets: Sequence[str] | None = None) -> FilterPruning:
        """The same in this project's own terms, with the scopes at the root of the file it stands in.

        What `prune_first_conv` and `prune_downsample_convs` leave out depends on the model: name it in `ignored`.
        """
        params = self.params
        return FilterPruning(
            importance=_IMPORTANCES[params.weight_importance or params.filter_importance],
            ranking="global" if params.all_weights else "local",
            rate_of="filters" if params.pruning_flops_target is None else "macs",
            **self._scopes(ignored, targets),
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
                target_epoch=params.pruning_steps,
                freeze_epoch=start + params.pruning_steps,
            )
        if start == 0:
            return ScheduleSettings(initial_rate=params.target, freeze_epoch=0)
        return ScheduleSettings(
            kind="multistep",
            initial_rate=self.pruning_init,
            multistep_epochs=(start,),
            multistep_rates=(self.pruning_init, params.target),
            freeze_epoch=start,
        )


class KnowledgeDistillationAlgorithm(AlgorithmSection):
    """`knowledge_distillation`."""

    algorithm: Literal["knowledge_distillation"]
    type: Literal["softmax", "mse"]
    scale: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0

    def without_meaning(self) -> Iterator[str]:
        yield from super().without_meaning()
        for key in ("ignored_scopes", "target_scopes", "initializer"):
            if getattr(self, key):
                yield f"knowledge_distillation.{key} has no meaning: outputs are compared, not layers"
        if self.type == "mse" and "temperature" in self.model_fields_set:
            yield "knowledge_distillation.temperature has no meaning for type mse"

    def settings(self, ignored: Sequence[str] = (), targets: Sequence[str] | None = None) -> KnowledgeDistillation:
        """The same in this project's own terms."""
        return KnowledgeDistillation(type=self.type, scale=self.scale, temperature=self.temperature)


Algorithm = Annotated[
    MagnitudeSparsityAlgorithm | FilterPruningAlgorithm | QuantizationAlgorithm | KnowledgeDistillationAlgorithm,
    Field(discriminator="algorithm"),
]

"""Reads the configuration files of NNCF 2.x.

The classes spell out what such a file may say; `NNCFConfig` is the dict that its users hold. Keys at the root
of the file other than ours are the user's own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kedro_aat.budget import BudgetSettings
from kedro_aat.compression.schedule import ScheduleSettings, require_steps
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.errors import ConfigurationError
from kedro_aat.search.choice import AdaptivePolicy
from kedro_aat.search.policy import Rate
from kedro_aat.search.stepping import EarlyExit, SteppingSettings, UniformDecrease
from kedro_aat.validated import Settings, parse

logger = logging.getLogger(__name__)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) or value is None else [value]


Scopes = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Percent = Annotated[float, Field(ge=0, le=100)]


class AccuracyAwareParams(SteppingSettings):
    """`accuracy_aware_training.params`; `search` and `higher_is_better` are this project's own keys."""

    maximal_relative_accuracy_degradation: Percent | None = None
    maximal_absolute_accuracy_degradation: Annotated[float, Field(ge=0)] | None = None
    higher_is_better: bool = True
    search: AdaptivePolicy | None = None

    @model_validator(mode="after")
    def _exactly_one_drop(self) -> AccuracyAwareParams:
        drops = (self.maximal_relative_accuracy_degradation, self.maximal_absolute_accuracy_degradation)
        given = sum(drop is not None for drop in drops)
        if given != 1:
            raise ValueError(
                "exactly one of maximal_relative_accuracy_degradation and maximal_absolute_accuracy_degradation is "
                f"required, but got {'both' if given else 'neither'}"
            )
        return self


class AccuracyAwareSection(Settings):
    """`accuracy_aware_training`."""

    mode: Literal["early_exit", "adaptive_compression_level"]
    params: AccuracyAwareParams


class _Algorithm(Settings):
    """Keys that every algorithm has."""

    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    initializer: Initializer | None = None
    compression_lr_multiplier: float | None = None


class BatchnormAdaptation(Settings):
    """`initializer.batchnorm_adaptation`."""

    num_bn_adaptation_samples: Annotated[int, Field(ge=0)] = 2000
    num_bn_forget_samples: int | None = None


class Initializer(Settings):
    """`initializer`: range samples serve the quantizer alone."""

    batchnorm_adaptation: BatchnormAdaptation | None = None
    range: Any = None
    precision: Any = None


class MagnitudeSparsityParams(Settings):
    """`params` of `magnitude_sparsity`."""

    weight_importance: Literal["abs", "normed_abs", "squared_abs"] = "normed_abs"
    sparsity_level_setting_mode: Literal["global", "local"] = "global"
    schedule: Literal["polynomial", "exponential", "multistep", "adaptive"] = "polynomial"
    sparsity_target: Rate = 0.5
    sparsity_target_epoch: Annotated[int, Field(ge=0)] = 90
    sparsity_freeze_epoch: Annotated[int, Field(ge=0)] = 100
    update_per_optimizer_step: bool = False
    steps_per_epoch: Annotated[int, Field(ge=1)] | None = None
    multistep_steps: tuple[Annotated[int, Field(ge=0)], ...] = (90,)
    multistep_sparsity_levels: tuple[Rate, ...] = (0.1, 0.5)
    patience: Annotated[int, Field(ge=1)] = 1
    power: Annotated[float, Field(gt=0)] = 0.9
    concave: bool = True

    @model_validator(mode="after")
    def _sound_steps(self) -> MagnitudeSparsityParams:
        if self.schedule == "multistep":
            require_steps(sorted(self.multistep_steps), self.multistep_sparsity_levels)  # NNCF sorts them, too
        return self


class MagnitudeSparsityAlgorithm(_Algorithm):
    """`magnitude_sparsity`."""

    algorithm: Literal["magnitude_sparsity"]
    sparsity_init: Rate = 0.0
    params: MagnitudeSparsityParams = MagnitudeSparsityParams()

    def settings(self, file: NNCFFile | None = None) -> MagnitudeSparsity:
        """The same in this project's own terms, with the scopes at the root of the file it stands in."""
        params = self.params
        ignored, targets = self.ignored_scopes, self.target_scopes or ()
        if file is not None:
            ignored, targets = (*ignored, *file.ignored_scopes), (*targets, *(file.target_scopes or ()))
        return MagnitudeSparsity(
            importance=params.weight_importance,
            ranking=params.sparsity_level_setting_mode,
            ignored_scopes=ignored,
            target_scopes=targets or None,
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
    pruning_steps: Annotated[int, Field(ge=0)] = 100
    num_init_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["baseline", "exponential", "exponential_with_bias"] = "exponential"
    interlayer_ranking_type: str = "unweighted_ranking"
    all_weights: bool = False
    prune_first_conv: bool = False
    prune_downsample_convs: bool = False
    prune_batch_norms: bool = True
    legr_params: Any = None


class FilterPruningAlgorithm(_Algorithm):
    """`filter_pruning`."""

    algorithm: Literal["filter_pruning"]
    pruning_init: Rate = 0.0
    params: FilterPruningParams = FilterPruningParams()


class QuantizerParams(Settings):
    """`weights` and `activations` of `quantization`."""

    mode: Literal["symmetric", "asymmetric"] | None = None
    bits: Annotated[int, Field(ge=1)] = 8
    per_channel: bool | None = None
    signed: bool | None = None
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    logarithm_scale: bool | None = None
    unified_scale_ops: Any = None


class QuantizationAlgorithm(_Algorithm):
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
    params: dict[str, Any] | None = None


class KnowledgeDistillationAlgorithm(_Algorithm):
    """`knowledge_distillation`."""

    algorithm: Literal["knowledge_distillation"]
    type: Literal["softmax", "mse"]
    scale: float = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0


Algorithm = Annotated[
    MagnitudeSparsityAlgorithm | FilterPruningAlgorithm | QuantizationAlgorithm | KnowledgeDistillationAlgorithm,
    Field(discriminator="algorithm"),
]


class InputInfo(BaseModel):
    """`input_info`: of its keys only the shape of a batch is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    sample_size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class NNCFFile(BaseModel):
    """The whole file. Scopes at its root hold for every algorithm, beside the algorithm's own."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    input_info: Annotated[tuple[InputInfo, ...], BeforeValidator(_as_list)] | None = None
    accuracy_aware_training: AccuracyAwareSection | None = None
    compression: Annotated[tuple[Algorithm, ...], BeforeValidator(_as_list)] = ()


class NNCFConfig(dict[str, Any]):
    """A configuration as NNCF 2.x users hold it: a dict that knows how it was read.

    Attributes:
        train_loader: Batches for initialisation, set by `register_default_init_args`; None until then.
        device: Where to initialise, likewise.
    """

    train_loader: Any = None
    device: Any = None

    @classmethod
    def from_json(cls, path: str | Path) -> NNCFConfig:
        """Reads a file.

        Raises:
            ConfigurationError: If the file is missing or no JSON, and for every mistake in it, in one error.
        """
        try:
            contents = json.loads(Path(path).read_text())
        except OSError as error:
            raise ConfigurationError(str(path), [f"cannot be read: {error.strerror}"]) from None
        except ValueError as error:  # of JSON's grammar, or of the text's encoding
            raise ConfigurationError(str(path), [f"is not valid JSON: {error}"]) from None
        if not isinstance(contents, dict):
            raise ConfigurationError(str(path), [f"must hold a JSON object, but holds {contents!r}"])
        return cls.from_dict(contents, where=str(path))

    @classmethod
    def from_dict(cls, nncf_dict: dict[str, Any], *, where: str = "the NNCF configuration") -> NNCFConfig:
        """Takes a dict, checked; an `NNCFConfig` is handed back as it is, since it may have been updated."""
        if isinstance(nncf_dict, NNCFConfig):
            return nncf_dict
        config = cls(nncf_dict)
        file = parse(NNCFFile, dict(config), where=where)
        for warning in _without_meaning(file):
            logger.warning("%s: %s", where, warning)
        return config

    @property
    def parsed(self) -> NNCFFile:
        """The contents, checked as they are now."""
        return parse(NNCFFile, dict(self), where="the NNCF configuration")


class AccuracyAwareSettings(Settings):
    """What a loop takes from the file, in this project's own terms."""

    mode: Literal["early_exit", "adaptive_compression_level"]
    budget: BudgetSettings
    higher_is_better: bool
    search: AdaptivePolicy
    early_exit: EarlyExit

    @classmethod
    def from_config(cls, config: NNCFConfig) -> AccuracyAwareSettings:
        """Reads the section `accuracy_aware_training`.

        Raises:
            ConfigurationError: If it is missing or mistaken.
        """
        where = "accuracy_aware_training"
        section = config.parsed.accuracy_aware_training
        if section is None:
            raise ConfigurationError(where, ["this section is required for an accuracy-aware training loop"])
        params = section.params
        relative = params.maximal_relative_accuracy_degradation
        budget = {
            "max_drop": params.maximal_absolute_accuracy_degradation,
            "max_relative_drop": None if relative is None else relative / 100,
        }
        return cls(
            mode=section.mode,
            budget=parse(BudgetSettings, budget, where=where),
            higher_is_better=params.higher_is_better,
            search=_policy(params),
            early_exit=EarlyExit(maximal_total_epochs=params.maximal_total_epochs),
        )


def _policy(params: AccuracyAwareParams) -> AdaptivePolicy:
    """The search that `params.search` names; what it leaves out stands in `params` itself."""
    chosen = params.search or UniformDecrease()
    kind = type(chosen)
    stepping = params.model_dump(include=set(SteppingSettings.model_fields) & params.model_fields_set)
    return kind(**{**stepping, **chosen.model_dump(include=chosen.model_fields_set)})


def _without_meaning(file: NNCFFile) -> Iterator[str]:
    """Keys that NNCF knows and that do nothing here."""
    section = file.accuracy_aware_training
    if section is not None and section.mode == "early_exit":
        adaptive = set(SteppingSettings.model_fields) - {"maximal_total_epochs"} | {"search"}
        given = section.params.model_fields_set & adaptive
        for key in sorted(given):
            yield f"accuracy_aware_training.params.{key} has no meaning in mode early_exit"
    for algorithm in file.compression:
        if algorithm.compression_lr_multiplier is not None:
            yield f"{algorithm.algorithm}.compression_lr_multiplier has no meaning here: no algorithm adds parameters"
        if isinstance(algorithm, MagnitudeSparsityAlgorithm) and algorithm.initializer is not None:
            for key in sorted(algorithm.initializer.model_fields_set - {"batchnorm_adaptation"}):
                yield f"magnitude_sparsity.initializer.{key} has no meaning for sparsity"
        if isinstance(algorithm, FilterPruningAlgorithm) and algorithm.params.legr_params is not None:
            yield "filter_pruning.params.legr_params is no longer supported"

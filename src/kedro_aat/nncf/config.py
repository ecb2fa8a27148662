"""Reads the configuration files of NNCF 2.x.

The pydantic classes list the keys that a file may have; `NNCFConfig` is the dict that users hold. Keys at the root of
the file that are not listed here are the user's own. The algorithms' sections are in `sections.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonc
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from kedro_aat.budget import BudgetSettings, GuardSettings
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import (
    ADAPTIVE_FIRST,
    FilterPruning,
    KnowledgeDistillation,
    MagnitudeSparsity,
    Quantization,
)
from kedro_aat.errors import ConfigurationError
from kedro_aat.nncf.quantization_section import QuantizationAlgorithm
from kedro_aat.nncf.section import BatchnormAdaptation, Scopes, renamed, wrap_in_list
from kedro_aat.nncf.sections import (
    Algorithm,
    CompressingAlgorithm,
    ConstSparsityAlgorithm,
    MagnitudeSparsityParams,
)
from kedro_aat.search import AdaptivePolicy, Frontier
from kedro_aat.search.stepping import EarlyExit, SteppingSettings, UniformDecrease
from kedro_aat.validated import Settings, parse

logger = logging.getLogger(__name__)

Part = MagnitudeSparsity | FilterPruning | Quantization | KnowledgeDistillation
Mode = Literal["early_exit", "adaptive_compression_level"]
# The default of the loops' `maximal_compression_rate`, fraction removed. With `frontier`, this very object stands for a
# higher rate; any other number of the same value, such as 0.95 in a script, does not.
NNCF_MAXIMAL_RATE = float("0.95")
FRONTIER_MAXIMAL_RATE = 0.998
# Keys of the algorithms that only say how a rate changes by itself.
_SCHEDULE_KEYS = {
    *("sparsity_init", *MagnitudeSparsityParams.model_fields),
    *("pruning_init", "pruning_target", "pruning_steps", "num_init_steps"),
    *("activations_quant_start_epoch", "weights_quant_start_epoch"),
} - {"weight_importance", "sparsity_level_setting_mode"}
# Types of an input; any other name stands for float32, as in NNCF.
KNOWN_TYPES = (None, "float", "long")
Percent = Annotated[float, Field(ge=0, le=100)]
# Names in NNCF 2.0.
_FORMER_NAMES = {
    "maximal_accuracy_degradation": "maximal_relative_accuracy_degradation",
    "compression_rate_step": "initial_compression_rate_step",
    "step_reduction_factor": "compression_rate_step_reduction_factor",
}


class AccuracyAwareParams(SteppingSettings):
    """`accuracy_aware_training.params`; NNCF has no keys `search`, `higher_is_better` and `also`."""

    maximal_relative_accuracy_degradation: Percent | None = None
    maximal_absolute_accuracy_degradation: Annotated[float, Field(ge=0)] | None = None
    higher_is_better: bool = True
    search: AdaptivePolicy | None = None
    also: tuple[GuardSettings, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, data: Any) -> Any:
        return renamed(data, _FORMER_NAMES)

    @field_validator("also")
    @classmethod
    def _check_guards(cls, guards: tuple[GuardSettings, ...]) -> tuple[GuardSettings, ...]:
        if any(guard.metric is not None or guard.higher_is_better is None for guard in guards):
            raise ValueError(
                "a guard of a training loop has a name and higher_is_better, but no metric: validate_fn returns its "
                "value, as Evaluation(metric, also={name: value})"
            )
        return guards

    @model_validator(mode="after")
    def _check_single_drop(self) -> AccuracyAwareParams:
        drops = (self.maximal_relative_accuracy_degradation, self.maximal_absolute_accuracy_degradation)
        num_drops = sum(drop is not None for drop in drops)
        if num_drops != 1:
            raise ValueError(
                "exactly one of maximal_relative_accuracy_degradation and maximal_absolute_accuracy_degradation is "
                f"required, but got {'both' if num_drops else 'neither'}"
            )
        return self


class AccuracyAwareSection(Settings):
    """`accuracy_aware_training`."""

    mode: Mode
    params: AccuracyAwareParams


class InputInfo(BaseModel):
    """One entry of `input_info`: shape and type of a tensor, and how it is made; `keyword` names its parameter."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    sample_size: Annotated[tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...], Field(min_length=1, max_length=8)]
    type: str | None = None
    filler: str | None = None
    keyword: str | None = None


class NNCFFile(BaseModel):
    """The whole file. Scopes at its root apply to every algorithm, in addition to the algorithm's own."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    input_info: Annotated[tuple[InputInfo, ...], BeforeValidator(wrap_in_list)] | None = None
    accuracy_aware_training: AccuracyAwareSection | None = None
    compression_lr_multiplier: float | None = None
    disable_shape_matching: bool | None = None
    target_device: str | None = None
    bootstrapNAS: Any = None  # noqa: N815 - NNCF's spelling
    compression: Annotated[tuple[Algorithm, ...], BeforeValidator(wrap_in_list)] = ()

    @property
    def uses_frontier(self) -> bool:
        """Whether the search is `frontier`, which NNCF does not have."""
        section = self.accuracy_aware_training
        is_adaptive = section is not None and section.mode == "adaptive_compression_level"
        return section is not None and is_adaptive and isinstance(section.params.search, Frontier)

    @property
    def adaptive(self) -> CompressingAlgorithm | None:
        """The algorithm whose rate a search sets; None if no algorithm has a rate."""
        with_rate = (each for each in self.compression if isinstance(each, CompressingAlgorithm))
        return min(with_rate, key=lambda each: ADAPTIVE_FIRST.index(each.algorithm), default=None)

    @property
    def keeps_zeros(self) -> bool:
        """Whether weights that are zero at the beginning stay zero (`const_sparsity`)."""
        return any(isinstance(each, ConstSparsityAlgorithm) for each in self.compression)

    @property
    def quantizes(self) -> bool:
        """Whether `quantization` is among the algorithms."""
        return any(isinstance(each, QuantizationAlgorithm) for each in self.compression)

    def adapted(self, part: Part, algorithm: Algorithm) -> Part:
        """Adapts the settings of an algorithm to the rest of the file.

        Args:
            part: The settings that its section stands for.
            algorithm: Its section.
        """
        if isinstance(part, Quantization) and self.keeps_zeros:
            part = part.model_copy(update={"keep_zeros": True})
        if not self.uses_frontier or algorithm is not self.adaptive:
            return part
        # The search begins at rate 0, which no masks and no statistics of a schedule's first rate shall disturb.
        part = part.model_copy(update={"schedule": ScheduleSettings()})
        if isinstance(part, FilterPruning):
            rate_of = "parameters" if part.rate_of == "filters" else part.rate_of
            part = part.model_copy(update={"rate_of": rate_of, "rate_meaning": "model", "round_to": 1})
        return part

    @property
    def num_bn_adaptation_samples(self) -> int:
        """Examples from which BatchNorms are adapted: the most that any algorithm names."""
        sections = [each for each in self.compression if not isinstance(each, ConstSparsityAlgorithm)]
        adaptations = (each.initializer and each.initializer.batchnorm_adaptation for each in sections)
        return max(((each or BatchnormAdaptation()).num_bn_adaptation_samples for each in adaptations), default=0)

    def _keys_without_use(self) -> Iterator[str]:
        """Keys in use that only have a meaning for the searches of NNCF."""
        section = self.accuracy_aware_training
        if section is None or not self.uses_frontier:
            return
        for key in section.params.model_fields_set & (set(SteppingSettings.model_fields) - set(Frontier.model_fields)):
            yield f"accuracy_aware_training.params.{key}"
        if self.adaptive is not None:
            for prefix, part in (("", self.adaptive), ("params.", self.adaptive.params)):
                for key in (part.model_fields_set if part else set()) & _SCHEDULE_KEYS:
                    yield f"{self.adaptive.algorithm}.{prefix}{key}"

    def explain_differences(self) -> Iterator[str]:
        """Explains each key in use that has no effect here, or a different one than in NNCF."""
        section = self.accuracy_aware_training
        if section is not None and section.mode == "early_exit":
            adaptive_keys = set(SteppingSettings.model_fields) - {"maximal_total_epochs"} | {"search"}
            for key in sorted(section.params.model_fields_set & adaptive_keys):
                yield f"accuracy_aware_training.params.{key} has no effect in mode early_exit"
        if keys := sorted(self._keys_without_use()):
            yield f"the search frontier chooses every rate itself and has no use for {', '.join(keys)}"
        yield from self._explain_root()
        for algorithm in self.compression:
            yield from algorithm.explain_differences()

    def _explain_root(self) -> Iterator[str]:
        """Explains keys at the root, and the types of the inputs."""
        if self.compression_lr_multiplier is not None:
            yield "compression_lr_multiplier has no effect: no algorithm adds parameters"
        if self.disable_shape_matching is not None:
            yield "disable_shape_matching has no effect: operations are found whatever the shapes of their inputs"
        if self.quantizes and self.target_device not in (None, "ANY", "CPU"):
            yield f"target_device: layers are quantized for CPUs, also with {self.target_device}"
        if self.bootstrapNAS is not None:
            yield "bootstrapNAS has no effect: there is no search for architectures here"
        for algorithm in self.compression if self.target_scopes is not None else ():
            if algorithm.target_scopes is not None:
                yield f"{algorithm.algorithm}.target_scopes has no effect: those at the root of the file come first"
        for type_name in sorted({str(each.type) for each in self.input_info or () if each.type not in KNOWN_TYPES}):
            yield f"input_info.type: an input of type {type_name} is float32, as in NNCF; write long for whole numbers"


def read_object(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object, which may have comments and trailing commas.

    Raises:
        ConfigurationError: If the file is missing, or is not a JSON object.
    """
    try:
        contents = jsonc.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except (ValueError, RecursionError) as error:  # from the JSON parser or from decoding the text
        raise ConfigurationError(str(path), [f"is not valid JSON: {error}"]) from None
    if not isinstance(contents, dict):
        kind = type(contents).__name__
        raise ConfigurationError(str(path), [f"must contain a JSON object, but contains a {kind}"])
    return contents


class NNCFConfig(dict[str, Any]):
    """A configuration in the form that users of NNCF 2.x know: a dict.

    Attributes:
        train_loader: Batches for initialization, set by `register_default_init_args`; None until then.
        criterion: Loss, `(outputs, targets)`, set in the same way.
        criterion_fn: Computes the loss as `(outputs, targets, criterion)`, set in the same way.
        device: Device for initialization, set by `register_default_init_args`; None for the model's own device.
    """

    train_loader: Any = None
    criterion: Any = None
    criterion_fn: Any = None
    device: Any = None

    @classmethod
    def from_json(cls, path: str | Path, *, warn: bool = True) -> NNCFConfig:
        """Reads a file, which may have comments and trailing commas, as NNCF read them up to 2.16.

        Args:
            path: Path of the JSON file.
            warn: Whether to log a warning for each key that has no effect here.

        Raises:
            ConfigurationError: If the file is missing or is not JSON; otherwise lists every mistake in it.
        """
        return cls.from_dict(read_object(path), where=str(path), warn=warn)

    @classmethod
    def from_dict(
        cls, nncf_dict: dict[str, Any], *, where: str = "the NNCF configuration", warn: bool = True
    ) -> NNCFConfig:
        """Checks a dict and copies it. An `NNCFConfig` is returned as is; it is checked when it is used.

        Args:
            nncf_dict: The contents of a file.
            where: Name of the configuration in messages.
            warn: Whether to log a warning for each key that has no effect here.

        Raises:
            ConfigurationError: Lists every mistake.
        """
        if isinstance(nncf_dict, NNCFConfig):
            return nncf_dict
        config = cls(nncf_dict)
        file = parse(NNCFFile, dict(config), where=where)
        if warn:
            for explanation in file.explain_differences():
                logger.warning("%s: %s", where, explanation)
        return config

    @property
    def parsed(self) -> NNCFFile:
        """The current contents, checked again, since a dict can change."""
        return parse(NNCFFile, dict(self), where="the NNCF configuration")


class AccuracyAwareSettings(Settings):
    """The section `accuracy_aware_training`, translated to our settings."""

    mode: Mode
    budget: BudgetSettings
    higher_is_better: bool
    search: AdaptivePolicy
    early_exit: EarlyExit

    @property
    def maximal_rate(self) -> float:
        """Highest rate to try if the script names none."""
        return FRONTIER_MAXIMAL_RATE if isinstance(self.search, Frontier) else NNCF_MAXIMAL_RATE

    @classmethod
    def from_config(cls, config: NNCFConfig) -> AccuracyAwareSettings:
        """Reads the section.

        Raises:
            ConfigurationError: If the section is missing, or lists every mistake in the configuration.
        """
        section = config.parsed.accuracy_aware_training
        if section is None:
            raise ConfigurationError(
                "accuracy_aware_training", ["this section is required for an accuracy-aware training loop"]
            )
        params = section.params
        percent = params.maximal_relative_accuracy_degradation
        return cls(
            mode=section.mode,
            budget=BudgetSettings(
                max_drop=params.maximal_absolute_accuracy_degradation,
                max_relative_drop=None if percent is None else percent / 100,
                also=params.also,
            ),
            higher_is_better=params.higher_is_better,
            search=_make_policy(params),
            early_exit=EarlyExit(maximal_total_epochs=params.maximal_total_epochs),
        )


def _make_policy(params: AccuracyAwareParams) -> AdaptivePolicy:
    """The policy that `params.search` names; keys that it omits are taken from `params` itself."""
    chosen = params.search or UniformDecrease()
    shared_keys = set(SteppingSettings.model_fields) & set(type(chosen).model_fields)
    shared = params.model_dump(include=shared_keys & params.model_fields_set)
    return type(chosen)(**{**shared, **chosen.model_dump(include=chosen.model_fields_set)})

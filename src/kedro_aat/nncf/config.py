"""Reads the configuration files of NNCF 2.x.

The classes spell out what such a file may say; `NNCFConfig` is the dict that its users hold. Keys at the root
of the file other than ours are the user's own. The algorithms are in `nncf_algorithms.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kedro_aat.budget import BudgetSettings
from kedro_aat.errors import ConfigurationError
from kedro_aat.nncf.algorithms import Algorithm
from kedro_aat.nncf.sections import Scopes, as_list
from kedro_aat.search.choice import AdaptivePolicy
from kedro_aat.search.stepping import EarlyExit, SteppingSettings, UniformDecrease
from kedro_aat.validated import Settings, parse

logger = logging.getLogger(__name__)


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


class InputInfo(BaseModel):
    """`input_info`: of its keys only the shape of a batch is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    sample_size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class NNCFFile(BaseModel):
    """The whole file. Scopes at its root hold for every algorithm, beside the algorithm's own."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    input_info: Annotated[tuple[InputInfo, ...], BeforeValidator(as_list)] | None = None
    accuracy_aware_training: AccuracyAwareSection | None = None
    compression: Annotated[tuple[Algorithm, ...], BeforeValidator(as_list)] = ()


class NNCFConfig(dict[str, Any]):
    """A configuration as NNCF 2.x users hold it: a dict that knows how it was read.

    Attributes:
        train_loader: Batches for initialisation, set by `register_default_init_args`; None until then.
        device: Where to initialise, likewise.
    """

    train_loader: Any = None
    device: Any = None

    @classmethod
    def from_json(cls, path: str | Path, *, warn: bool = True) -> NNCFConfig:
        """Reads a file.

        Args:
            path: Of the file.
            warn: Whether keys without a meaning here are logged.

        Raises:
            ConfigurationError: If the file is missing or no JSON, and for every mistake in it, in one error.
        """
        try:
            contents = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(str(path), [f"cannot be read: {error.strerror}"]) from None
        except ValueError as error:  # of JSON's grammar, or of the text's encoding
            raise ConfigurationError(str(path), [f"is not valid JSON: {error}"]) from None
        if not isinstance(contents, dict):
            raise ConfigurationError(str(path), [f"must hold a JSON object, but holds {contents!r}"])
        return cls.from_dict(contents, where=str(path), warn=warn)

    @classmethod
    def from_dict(
        cls, nncf_dict: dict[str, Any], *, where: str = "the NNCF configuration", warn: bool = True
    ) -> NNCFConfig:
        """Takes a dict, checked; an `NNCFConfig` is handed back as it is, since it may have been updated."""
        if isinstance(nncf_dict, NNCFConfig):
            return nncf_dict
        config = cls(nncf_dict)
        file = parse(NNCFFile, dict(config), where=where)
        for warning in without_meaning(file) if warn else ():
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


def without_meaning(file: NNCFFile) -> Iterator[str]:
    """Keys that NNCF knows and that do nothing here, or something else, each in words."""
    section = file.accuracy_aware_training
    if section is not None and section.mode == "early_exit":
        adaptive = set(SteppingSettings.model_fields) - {"maximal_total_epochs"} | {"search"}
        given = section.params.model_fields_set & adaptive
        for key in sorted(given):
            yield f"accuracy_aware_training.params.{key} has no meaning in mode early_exit"
    for algorithm in file.compression:
        yield from algorithm.without_meaning()

"""The `aat` pipeline's settings: one tree, whose parts are defined by the packages that use them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from kedro_aat.budget import BudgetSettings
from kedro_aat.certificate import CertificateSettings
from kedro_aat.compression.settings import (
    CompressionSettings,
    MagnitudeSparsity,
    Quantization,
    algorithms_of,
    distillation_of,
)
from kedro_aat.errors import ConfigurationError
from kedro_aat.export.settings import ExportSettings, Limits
from kedro_aat.search import Policy
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Goal, Rate, require_at_least
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.validated import Settings


class SecondStage(Settings):
    """A second compression, applied to the model that the first search returns, whose filters are already cut.

    Attributes:
        compression: The algorithm or algorithms, and their settings.
        search: The policy that chooses the rates; its epochs are in addition to those of the first search.
        learning_rate_factor: Factor on the learning rate of `training`, above 0; a quantized model tolerates less.
        minimal_rate: Lowest rate worth returning, in [0, 1).
    """

    compression: CompressionSettings = Quantization()
    search: Annotated[Policy, Field(discriminator="kind")] = Frontier(maximal_total_epochs=8)
    learning_rate_factor: Annotated[float, Field(gt=0, le=1000)] = 0.25
    minimal_rate: Rate = 0.0


class AatSettings(Settings):
    """All settings of the `aat` pipeline.

    Attributes:
        seed: Seed of shuffling, dropout and augmentation, at least 0.
        budget: The tolerated drop in accuracy.
        minimal_rate: Lowest compression rate worth returning, in [0, 1).
        maximal_rate: Highest rate to try, in [0, 1).
        compression: The algorithm or algorithms, and their settings.
        search: The policy that chooses the rates.
        second_stage: A second compression of the model that the search returns; None for none.
        training: How the model is trained and evaluated.
        time_limit_minutes: Wall time for the search, in minutes; then the best model so far is returned. None for no
            limit.
        certificate: How the returned model is certified.
        export: How the exported files are checked and measured, and which one is delivered.
        goal: `size` looks for the smallest model within budget, `accuracy` for the most accurate one that keeps
            `export.limits`; the budget then is the largest drop that is worth delivering.
        on_infeasible: Whether a run that finds no model within budget keeps the baseline or raises an error.
        choose: Another budget, for which a model is taken from the Pareto front of a finished search without training;
            `kedro aat choose` sets it.
    """

    # The settings that the result of a search depends on; they identify a run.
    SEARCHED: ClassVar = {"seed", "budget", "minimal_rate", "maximal_rate", "compression", "search", "training", "goal"}

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    budget: BudgetSettings
    minimal_rate: Rate = 0.0
    maximal_rate: Annotated[Rate, Field(validate_default=True)] = 0.998
    compression: CompressionSettings = MagnitudeSparsity()
    search: Annotated[Policy, Field(discriminator="kind")] = Frontier()
    second_stage: SecondStage | None = None
    training: TrainingSettings
    time_limit_minutes: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    certificate: CertificateSettings = CertificateSettings()
    export: ExportSettings = ExportSettings()
    goal: Goal = "size"
    on_infeasible: Literal["keep_baseline", "error"] = "keep_baseline"
    choose: BudgetSettings | None = None

    @field_validator("maximal_rate")
    @classmethod
    def _check_rates(cls, rate: float, info: ValidationInfo) -> float:
        return require_at_least(rate, info.data.get("minimal_rate"))

    @field_validator("second_stage")
    @classmethod
    def _check_order_of_stages(cls, stage: SecondStage | None, info: ValidationInfo) -> SecondStage | None:
        if stage is None or "compression" not in info.data:
            return stage
        first, second = algorithms_of(info.data["compression"]), algorithms_of(stage.compression)
        if "quantization" in first:
            others = " and ".join(name for name in second if name != "quantization") or "another algorithm"
            raise ValueError(
                "quantization must be the last stage, since its model holds integers, but is followed by "
                f"{' and '.join(second)}; make {others} the first stage and quantization the second"
            )
        if "filter_pruning" in second and "magnitude_sparsity" in first:
            raise ValueError("filters must be cut before single weights are removed; swap the two stages")
        if both := [name for name in first if name in second]:
            raise ValueError(f"must be an algorithm that the first stage does not use, but got {' and '.join(both)}")
        return stage

    @field_validator("training")
    @classmethod
    def _check_single_distillation(cls, training: TrainingSettings, info: ValidationInfo) -> TrainingSettings:
        stages = [info.data.get("compression"), getattr(info.data.get("second_stage"), "compression", None)]
        if training.teaching is not None and any(map(distillation_of, filter(None, stages))):
            raise ValueError(
                "only one distillation is allowed, but got knowledge_distillation in the list of algorithms and "
                "distillation here: set distillation to null, or remove knowledge_distillation"
            )
        return training

    @field_validator("goal")
    @classmethod
    def _check_goal(cls, goal: Goal, info: ValidationInfo) -> Goal:
        if goal == "size":
            return goal
        known = info.data
        if "export" in known and known["export"].limits == Limits():
            raise ValueError("accuracy needs a limit in export.limits: onnx_bytes, parameters, macs or latency_ms")
        if "search" in known and known["search"].kind != "frontier":
            raise ValueError(f"accuracy needs the search frontier, but got {known['search'].kind}")
        if "compression" in known and algorithms_of(known["compression"])[0] == "magnitude_sparsity":
            raise ValueError(
                "accuracy needs filter_pruning or quantization: magnitude_sparsity makes single weights zero, which "
                "changes no bytes, parameters, MACs or latency"
            )
        second = known.get("second_stage")
        if second is not None and algorithms_of(second.compression) != ["quantization"]:
            raise ValueError("accuracy allows quantization alone as the second stage; set second_stage to null")
        return goal

    def searched(self, *more: str, defaults: bool = False) -> dict[str, Any]:
        """What identifies a run, as JSON data.

        Args:
            *more: Further settings that its result depends on.
            defaults: Whether settings at their defaults are included too.
        """
        if self.goal == "size":
            return self.identity(self.SEARCHED | {*more}, defaults=defaults)
        # The limits, which may be those of a second stage's file, say how far the model is compressed.
        searched = self.identity(self.SEARCHED | {"second_stage", *more}, defaults=defaults)
        return searched | {"limits": self.export.limits.model_dump(mode="json")}

    @property
    def teaching(self) -> dict[str, Any] | None:
        """The distillation of either the compression or the training, as plain data; None if there is none."""
        stages = [self.compression, *([self.second_stage.compression] if self.second_stage else [])]
        if (found := next(filter(None, map(distillation_of, stages)), None)) is not None:
            return {"kind": found.type, "temperature": found.temperature, "weight": found.scale}
        return self.training.teaching

    def check(self) -> None:
        """Looks up everything that the settings name, before anything is trained.

        Raises:
            ConfigurationError: Lists every mistake that `lookup_mistakes` finds.
        """
        if mistakes := self.lookup_mistakes("aat"):
            raise ConfigurationError("aat", mistakes)

    @property
    def time_limit(self) -> float | None:
        """Wall time for the search, in seconds; None for no limit."""
        return None if self.time_limit_minutes is None else 60 * self.time_limit_minutes

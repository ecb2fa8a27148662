"""The `aat` pipeline's configuration: one tree, each part of it owned by the room that uses it."""

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
from kedro_aat.export.settings import ExportSettings
from kedro_aat.search.choice import Policy
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Rate, require_at_least
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.validated import Settings


class SecondStage(Settings):
    """What is done to the model that the search found: a compression that is applied to a model once it is cut.

    Attributes:
        compression: What is compressed, and how.
        search: The policy that chooses the rates; its epochs come on top.
        learning_rate_factor: On the learning rate of `training`, above 0: a model in 8 bits bears less.
        minimal_rate: Lowest rate worth returning, in [0, 1).
    """

    compression: CompressionSettings = Quantization()
    search: Annotated[Policy, Field(discriminator="kind")] = Frontier(maximal_total_epochs=8)
    learning_rate_factor: Annotated[float, Field(gt=0)] = 0.25
    minimal_rate: Rate = 0.0


class AatSettings(Settings):
    """Everything that the `aat` pipeline is told.

    Attributes:
        seed: Of shuffling, dropout and augmentation.
        budget: The tolerated drop in accuracy.
        minimal_rate: Lowest compression rate worth returning, in [0, 1).
        maximal_rate: Highest rate to try, in [0, 1).
        compression: What is compressed, and how.
        search: The policy that chooses the rates.
        second_stage: What is done after that, to the model that is found; None for nothing.
        training: How the model is trained and judged.
        time_limit_minutes: Wall time of the search; the best model so far is what comes back. None for no limit.
        certificate: How the returned model is certified.
        export: How the exported files are checked and measured.
        on_infeasible: Whether a run that finds no model within budget ends as an error.
        choose: Another budget, for which a model is read off the frontier of a finished search without training;
            `kedro aat choose` sets it.
    """

    # What a search depends on; a run is told from others by these.
    SEARCHED: ClassVar = {"seed", "budget", "minimal_rate", "maximal_rate", "compression", "search", "training"}

    seed: Annotated[int, Field(ge=0)] = 0
    budget: BudgetSettings
    minimal_rate: Rate = 0.0
    maximal_rate: Annotated[Rate, Field(validate_default=True)] = 0.998
    compression: CompressionSettings = MagnitudeSparsity()
    search: Annotated[Policy, Field(discriminator="kind")] = Frontier()
    second_stage: SecondStage | None = None
    training: TrainingSettings
    time_limit_minutes: Annotated[float, Field(gt=0)] | None = None
    certificate: CertificateSettings = CertificateSettings()
    export: ExportSettings = ExportSettings()
    on_infeasible: Literal["keep_baseline", "error"] = "keep_baseline"
    choose: BudgetSettings | None = None

    @field_validator("maximal_rate")
    @classmethod
    def _at_least_the_minimal_rate(cls, rate: float, given: ValidationInfo) -> float:
        return require_at_least(rate, given.data.get("minimal_rate"))

    @field_validator("second_stage")
    @classmethod
    def _in_an_order_that_works(cls, stage: SecondStage | None, given: ValidationInfo) -> SecondStage | None:
        if stage is None or "compression" not in given.data:
            return stage
        first, second = algorithms_of(given.data["compression"]), algorithms_of(stage.compression)
        if "quantization" in first:
            others = " and ".join(name for name in second if name != "quantization") or "another algorithm"
            raise ValueError(
                "nothing can follow quantization, since its model holds integers, but got "
                f"{' and '.join(second)}; make {others} the first stage and quantization the second"
            )
        if "filter_pruning" in second and "magnitude_sparsity" in first:
            raise ValueError("filters must be cut before single weights are removed; exchange the two stages")
        if both := [name for name in first if name in second]:
            raise ValueError(f"must be another algorithm than the first stage's, but both are {' and '.join(both)}")
        return stage

    @field_validator("training")
    @classmethod
    def _one_teacher(cls, training: TrainingSettings, given: ValidationInfo) -> TrainingSettings:
        stages = [given.data.get("compression"), getattr(given.data.get("second_stage"), "compression", None)]
        if training.teaching is not None and any(map(distillation_of, filter(None, stages))):
            raise ValueError(
                "the model would be taught twice, by knowledge_distillation in the list of algorithms and by "
                "distillation here: set distillation to null, or leave knowledge_distillation out"
            )
        return training

    @property
    def teaching(self) -> dict[str, Any] | None:
        """How the model is held to what it said before compression, as plain data; None where it is not."""
        stages = [self.compression, *([self.second_stage.compression] if self.second_stage else [])]
        if (found := next(filter(None, map(distillation_of, stages)), None)) is not None:
            return {"kind": found.type, "temperature": found.temperature, "weight": found.scale}
        return self.training.teaching

    def check(self) -> None:
        """Looks up all that is named, before anything is trained.

        Raises:
            ConfigurationError: Lists everything that `lookup_mistakes` finds.
        """
        if mistakes := self.lookup_mistakes("aat"):
            raise ConfigurationError("aat", mistakes)

    @property
    def time_limit(self) -> float | None:
        """Seconds for the search; None for no limit."""
        return None if self.time_limit_minutes is None else 60 * self.time_limit_minutes

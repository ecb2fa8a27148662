"""The `aat` pipeline's configuration: one tree, each part of it owned by the room that uses it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from kedro_aat.budget import BudgetSettings
from kedro_aat.certificate import CertificateSettings
from kedro_aat.compression.settings import CompressionSettings, MagnitudeSparsity
from kedro_aat.search.choice import Policy
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Rate, require_at_least
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.validated import Settings


class ExportSettings(Settings):
    """How the exported files are checked and measured.

    Attributes:
        tolerance: Largest difference to the torch model's outputs, relative to the largest output.
        quantized_tolerance: The same of the ONNX file of a quantized model.
        batch_sizes: At which latency is measured.
        num_threads: That onnxruntime may use meanwhile.
    """

    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    quantized_tolerance: Annotated[float, Field(gt=0)] = 0.1
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 64)
    num_threads: Annotated[int, Field(ge=1)] = 1


class AatSettings(Settings):
    """Everything that the `aat` pipeline is told.

    Attributes:
        seed: Of shuffling, dropout and augmentation.
        budget: The tolerated drop in accuracy.
        minimal_rate: Lowest compression rate worth returning, in [0, 1).
        maximal_rate: Highest rate to try, in [0, 1).
        compression: What is compressed, and how.
        search: The policy that chooses the rates.
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

    @property
    def time_limit(self) -> float | None:
        """Seconds for the search; None for no limit."""
        return None if self.time_limit_minutes is None else 60 * self.time_limit_minutes

"""The `aat` pipeline's configuration: one tree, each part of it owned by the room that uses it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from kedro_aat.budget import BudgetSettings
from kedro_aat.compression.settings import CompressionSettings, MagnitudeSparsity
from kedro_aat.search.choice import Policy
from kedro_aat.search.policy import Rate, require_at_least
from kedro_aat.search.stepping import UniformDecrease
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
        export: How the exported files are checked and measured.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    budget: BudgetSettings
    minimal_rate: Rate = 0.0
    maximal_rate: Annotated[Rate, Field(validate_default=True)] = 0.998
    compression: CompressionSettings = MagnitudeSparsity()
    search: Annotated[Policy, Field(discriminator="kind")] = UniformDecrease()
    training: TrainingSettings
    export: ExportSettings = ExportSettings()

    @field_validator("maximal_rate")
    @classmethod
    def _at_least_the_minimal_rate(cls, rate: float, given: ValidationInfo) -> float:
        return require_at_least(rate, given.data.get("minimal_rate"))

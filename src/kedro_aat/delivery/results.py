"""What a run hands on from node to node, as frozen models; in the catalog they are plain JSON.

The models read JSON that older versions wrote: unknown keys are ignored, and every key that was added after 0.1.0 has
a default. Keys are added and never renamed, because users' tools read these files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from kedro_aat.budget import Budget, Outcome
from kedro_aat.certificate import Forecast
from kedro_aat.delivery.certificate_result import CertificateFields
from kedro_aat.delivery.environment import DistillationSummary, Environment
from kedro_aat.delivery.findings import Findings
from kedro_aat.delivery.guard_results import GuardResult, GuardSummary
from kedro_aat.delivery.measurements import CandidateResult, FileAgreements, Latencies, Measurements, Result
from kedro_aat.delivery.registration_result import Registration
from kedro_aat.delivery.target_files import TargetFileResult
from kedro_aat.search.policy import Goal


class MetricInfo(Result):
    """The metric that the budget limits.

    Attributes:
        name: Class name of the metric, or the name of the user's validation function.
        higher_is_better: Direction of the metric.
    """

    name: str
    higher_is_better: bool


class BudgetResult(Result):
    """The accuracy budget, worked out for the measured baseline.

    Attributes:
        kind: Whether the user stated the drop in metric units or relative to the baseline.
        drop: Tolerated drop in metric units, at least 0.
        lowest_tolerated: The worst metric within budget (the highest one if lower is better).
    """

    kind: Literal["absolute", "relative"]
    drop: Annotated[float, Field(ge=0)]
    lowest_tolerated: float


class SplitSizes(Result):
    """Number of examples in each split that was read before the search.

    Attributes:
        training: Examples in the training split.
        validation: Examples in the validation split.
    """

    training: int
    validation: int


class BaselineEvaluation(Result):
    """The uncompressed model on the validation split, and the budget that follows from it.

    Attributes:
        metric: The metric.
        validation: Its value on the validation split.
        budget: What is tolerated.
        forecast: What to expect of the certificate; None if it is unknown before training.
        expected_certificate: The same in words; None in files of versions before 0.2.0.
        examples: Sizes of the splits.
        guards: The guards, worked out for the baseline.
        class_names: Names of the classes by number, if the dataset has them.
        registration: The baseline in the ledger; None in files of versions before 0.2.0.
    """

    metric: MetricInfo
    validation: float
    budget: BudgetResult
    forecast: Forecast | None = None
    expected_certificate: str | None = None
    examples: SplitSizes | None = None
    guards: list[GuardResult] = Field(default_factory=list)
    class_names: tuple[str, ...] | None = None
    registration: Registration | None = None

    def budget_of(self, budget: BudgetResult | None = None) -> Budget:
        """The budget as the object that judges metrics.

        Args:
            budget: Another budget for the same baseline; by default this evaluation's own.
        """
        budget = budget or self.budget
        return Budget(
            kind=budget.kind,
            baseline=self.validation,
            drop=budget.drop,
            higher_is_better=self.metric.higher_is_better,
            also=tuple(guard.guard for guard in self.guards),
        )


class Rates(Result):
    """The compression rate asked for and the one reached.

    Attributes:
        requested: In [0, 1); None if the model was not trained at a requested rate.
        achieved: In [0, 1], counted on the model.
        share_of: What it is the share of, in words, such as `parameters removed`; None if unknown.
        counted_parameters: Number of parameters that the rate counts; None if it counts something else, or is unknown.
        all_parameters: Number of all parameters of the uncompressed model; None as above.
    """

    requested: float | None
    achieved: float
    share_of: str | None = None
    counted_parameters: int | None = None
    all_parameters: int | None = None


class EpochCount(Result):
    """Epochs of a search, or of all searches of a run.

    Attributes:
        used: Epochs used up; one of a cut model counts as its share of the MACs, rounded up in the sum.
        allowed: Epochs that the settings allow.
    """

    used: int
    allowed: int


class WallTime(Result):
    """Wall time of a search, or of all searches of a run, in seconds.

    Attributes:
        used: Seconds from the begin of each search to its end, in all processes that worked on it.
        limit: Seconds that the settings allow; None for no limit.
    """

    used: float
    limit: float | None


class SearchResult(Result):
    """How one search stage ended.

    Attributes:
        stage: Number of the stage, from 1; None in files of versions before 0.2.0.
        algorithms: Names of the compression algorithms; the rate is the first one's.
        outcome: The kind of ending.
        reason: Why the search ended, in words.
        budget: The budget that the model was searched for.
        validation: Metric of the returned model on the validation split.
        standard_error: Standard error of its difference to the baseline; None if unknown.
        rate: Rates of the returned model.
        epochs: Epochs used and allowed.
        seconds: Seconds used and allowed.
        best_checkpoint: Number of the checkpoint that was returned; None if the model was put back.
        device: Device that it was trained on.
        run: Name of the run's folder in the checkpoint store.
        guards: Value of each guard for the returned model, on the validation split.
        highest_rate: Highest rate that settings and model allow; None in files of versions before 0.2.0.
    """

    stage: int | None = None
    algorithms: list[str]
    outcome: Outcome
    reason: str
    budget: BudgetResult
    validation: float
    standard_error: float | None
    rate: Rates
    epochs: EpochCount
    seconds: WallTime
    best_checkpoint: int | None
    device: str
    run: str
    guards: dict[str, float] = Field(default_factory=dict)
    highest_rate: float | None = None


class SkippedSearch(Result):
    """Stands for a later stage that was not searched.

    Attributes:
        outcome: Always `skipped`.
        stage: Number of the stage; None if the settings do not ask for it.
        algorithms: Names of its compression algorithms.
        reason: Why it was skipped, with the numbers that were measured; None if the settings do not ask for it.
        seconds: Seconds that it took to find this out, and those allowed.
    """

    outcome: Literal["skipped"]
    stage: int | None = None
    algorithms: list[str] = Field(default_factory=list)
    reason: str | None = None
    seconds: WallTime = WallTime(used=0.0, limit=None)


class FailedSearch(Result):
    """Stands for a later stage that ended with an error; the model of the stage before goes on.

    Attributes:
        outcome: Always `failed`.
        stage: Number of the stage.
        algorithms: Names of its compression algorithms.
        reason: What failed, and what was done instead.
        seconds: Seconds until it failed, and those allowed.
    """

    outcome: Literal["failed"]
    stage: int
    algorithms: list[str]
    reason: str
    seconds: WallTime = WallTime(used=0.0, limit=None)


LaterSearchResult = SearchResult | SkippedSearch | FailedSearch


class ExportResult(Result):
    """Which file is delivered, beside the baseline and all other candidates.

    Attributes:
        outcome: `within_budget` if a file is delivered, else `infeasible`.
        reason: Why the search ended, or why nothing is delivered, in words.
        delivered: Name of the delivered candidate; None if nothing is delivered.
        baseline: What the baseline costs.
        compressed: The delivered candidate; None if nothing is delivered.
        candidates: All candidates whose files keep the budget.
        rejected: Name of a candidate -> why it is not delivered.
    """

    outcome: Outcome
    reason: str
    delivered: str | None
    baseline: Measurements
    compressed: CandidateResult | None
    candidates: list[CandidateResult]
    rejected: dict[str, str]

    @property
    def breaks_limits(self) -> bool:
        """Whether nothing is delivered although some files keep the accuracy budget."""
        return self.compressed is None and bool(self.candidates)


class BaselineSummary(Measurements):
    """The baseline in the summary.

    Attributes:
        validation: Metric on the validation split.
        test: Metric on the test split; None if it was not measured.
    """

    validation: float
    test: float | None = None


class ExportedRates(Rates):
    """Rates of the delivered model.

    Attributes:
        exported: Rate counted on the ONNX file; None if it cannot be counted there.
    """

    exported: float | None = None


class CompressedSummary(Latencies):
    """The delivered model in the summary; its costs are None if nothing is delivered.

    Attributes:
        validation: Metric on the validation split.
        validation_standard_error: Standard error of its difference to the baseline; None if unknown.
        test: Metric on the test split; None if it was not measured.
        test_standard_error: Standard error of its difference to the baseline; None if unknown.
        rate: Its compression rates; 0 if nothing is delivered.
        parameters: Numbers in the parameters, zeros included.
        nonzero_parameters: Those that are not zero.
        macs: Multiply-accumulate operations per example.
        onnx_bytes: Size of the ONNX file.
        onnx_gzip_bytes: Size of the gzipped ONNX file.
    """

    validation: float
    validation_standard_error: float | None = None
    test: float | None = None
    test_standard_error: float | None = None
    rate: ExportedRates
    parameters: int | None = None
    nonzero_parameters: int | None = None
    macs: int | None = None
    onnx_bytes: int | None = None
    onnx_gzip_bytes: int | None = None


class Summary(Result):
    """The whole run: `aat_summary.json`.

    Attributes:
        outcome: How the run ended.
        reason: Why, in words.
        advice: What to do next, in words.
        delivered: Name of the delivered candidate; None if nothing is delivered.
        delivered_id: Identity of the delivered candidate among `candidates`.
        metric: The metric that the budget limits.
        budget: What is tolerated.
        baseline: The uncompressed model.
        compressed: The delivered model; the baseline's metrics if nothing is delivered.
        certificate: What the test split says.
        forecast: What to expect of the certificate before training.
        candidates: All models whose files keep the budget.
        rejected: Name of a candidate -> why it is not delivered.
        stages: How each search stage ended.
        skipped: Stages that the settings ask for and that were not searched, and why.
        failed: Stages that ended with an error, and what was done instead.
        distillation: How the baseline taught; None if it did not.
        report: File name of the HTML report beside the summary.
        agreement: How closely the delivered files agree with their model.
        epochs: Epochs of all stages.
        seconds: Wall time of all stages.
        run: Name of the first stage's folder in the checkpoint store.
        seed: Seed of the run.
        goal: What the search looked for.
        environment: The machine.
        versions: Package -> version.
        guards: The guards, with the baseline's values and the delivered file's.
        class_names: Names of the classes by number, if the validation data have them.
        findings: What was tried, what limited the result, why this file, and what to try next; None if it is unknown.
        files: The delivered files, one for each target.
    """

    outcome: Outcome
    reason: str
    advice: str
    delivered: str | None
    delivered_id: str | None = None
    metric: MetricInfo
    budget: BudgetResult
    baseline: BaselineSummary
    compressed: CompressedSummary
    certificate: CertificateFields
    forecast: Forecast | None = None
    candidates: list[CandidateResult]
    rejected: dict[str, str]
    stages: Annotated[list[SearchResult], Field(min_length=1)]
    skipped: list[SkippedSearch] = Field(default_factory=list)
    failed: list[FailedSearch] = Field(default_factory=list)
    distillation: DistillationSummary | None = None
    report: str
    agreement: FileAgreements | None = None
    epochs: EpochCount
    seconds: WallTime
    run: str
    seed: int
    goal: Goal = "size"
    environment: Environment
    versions: Mapping[str, str]
    guards: list[GuardSummary] = Field(default_factory=list)
    class_names: tuple[str, ...] | None = None
    findings: Findings | None = None
    files: list[TargetFileResult] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _identify_delivered(cls, data: Any) -> Any:
        """Adds the identity that 0.1.0, which knew names alone, did not write."""
        is_named = isinstance(data, Mapping) and data.get("delivered") is not None
        if is_named and data.get("delivered_id") is None and "candidates" in data:
            try:
                candidates = TypeAdapter(list[CandidateResult]).validate_python(data["candidates"])
            except ValidationError:  # which the field itself reports
                return data
            identity = next((candidate.id for candidate in candidates if candidate.name == data["delivered"]), None)
            return {**data, "delivered_id": identity}
        return data

    @property
    def delivered_candidate(self) -> CandidateResult | None:
        """The delivered candidate; None if nothing is delivered."""
        return next((candidate for candidate in self.candidates if candidate.id == self.delivered_id), None)

    @property
    def breaks_limits(self) -> bool:
        """Whether nothing is delivered although some files keep the accuracy budget."""
        return self.delivered is None and bool(self.candidates)

    @property
    def numbered_stages(self) -> dict[int, SearchResult]:
        """The stages that were searched, by their numbers."""
        return {stage.stage or position: stage for position, stage in enumerate(self.stages, start=1)}

    def stages_of(self, candidate: CandidateResult) -> list[int]:
        """Numbers of the stages that changed a candidate; a stage that found nothing left the model as it was."""
        found = [number for number, stage in self.numbered_stages.items() if stage.outcome is Outcome.WITHIN_BUDGET]
        return [number for number in found if number <= candidate.stage]

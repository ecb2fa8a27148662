"""Exports every candidate, judges and measures its files, and chooses the one to deliver. Start reading here.

Export can push a model over its budget, so the exported file is what counts: its metric on the validation split,
computed by the runtime. A file that does not compute what its model computes, or that breaks the budget, is
rejected with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.export import ExportedProgram

from kedro_aat.budget import Budget, GuardSettings, Outcome
from kedro_aat.compression.quantization.layers import quantized_spec
from kedro_aat.delivery.candidates import Candidate, rejection
from kedro_aat.delivery.costs import cost_by
from kedro_aat.delivery.files import Files, evaluate_file, files_of, measure
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.guard_results import broken
from kedro_aat.delivery.limits import excess_over
from kedro_aat.delivery.measurements import CandidateResult, FileAgreements, Measurements, Result
from kedro_aat.delivery.results import ExportResult
from kedro_aat.errors import ExportError, ends_run
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.openvino_file import OpenvinoModel
from kedro_aat.export.program import to_program
from kedro_aat.export.session import OnnxModel, paths_of
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.verify import count_zeros, read_back, verify_onnx, verify_openvino, verify_program
from kedro_aat.messages import doing
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.search.policy import Goal
from kedro_aat.training.data import Data, example_input
from kedro_aat.training.scoring.guard_metrics import guarded
from kedro_aat.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

# Prefer a less compressed model only if its latency is below this fraction of the best latency so far.
WORTHWHILE_LATENCY = 0.95
NUM_COMPARED = 64  # examples on which the outputs of a file and its model are compared


class Judgment(Result):
    """What is known of a candidate's files before they are measured.

    Attributes:
        agreement: How closely the files agree with the model.
        metrics: Kind of file (ONNX, .pt2, OpenVINO) -> its metric on the validation split.
        guards: Kind of file -> its values of the guards.
    """

    agreement: FileAgreements
    metrics: dict[str, float]
    guards: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Exported:
    """A candidate whose files keep the budget.

    Attributes:
        candidate: The model.
        files: Its ONNX file, and OpenVINO's if the settings ask for them.
        judgment: How closely they agree with the model, and how well they do.
        trace: Makes the program of its `.pt2` file.
    """

    candidate: Candidate
    files: Files
    judgment: Judgment
    trace: Callable[[], ExportedProgram]

    @property
    def program(self) -> ExportedProgram:
        """The program of its `.pt2` file."""
        return self.trace()

    def result(self, measurements: Measurements) -> CandidateResult:
        """Everything known about the candidate, once it is measured."""
        return CandidateResult(
            name=self.candidate.name,
            stage=self.candidate.stage,
            checkpoint=self.candidate.checkpoint,
            rate=self.candidate.rate,
            requested_rate=self.candidate.requested_rate,
            standard_error=self.candidate.standard_error,
            validation=self.judgment.metrics["ONNX"],
            validation_program=self.judgment.metrics[".pt2"],
            validation_openvino=self.judgment.metrics.get("OpenVINO"),
            guards=self.judgment.guards["ONNX"],
            agreement=self.judgment.agreement,
            **measurements.model_dump(),
        )


def deliver(
    candidates: Sequence[Candidate],
    others: Iterator[Candidate],
    baseline_model: nn.Module,
    validation_data: Data,
    budget: Budget,
    training: TrainingSettings,
    settings: ExportSettings,
    reason: str,
    finished: FinishedSteps | None = None,
    goal: Goal = "size",
    guards: Sequence[GuardSettings] = (),
    failed: Mapping[str, str] | None = None,
) -> tuple[Exported | None, ExportResult]:
    """Exports all candidates, judges and measures their files, and chooses one by the objective.

    Args:
        candidates: Models that keep the budget; if there are none, only the baseline is measured.
        others: Less compressed models, by falling rate. They are tried one by one if no candidate's file keeps the
            budget, and all of them if latency is the objective or no file keeps the limits, because a less compressed
            model can be faster.
        baseline_model: The uncompressed model.
        validation_data: The split that judges the files.
        budget: Budget that the files must keep.
        training: Settings that define the metric.
        settings: Tolerances, objective and limits.
        reason: Why the search ended, in words.
        finished: Keeps exports, judgments and measurements, which are then not repeated; None keeps nothing.
        goal: Whether the objective chooses among the files that keep budget and limits, or their metric.
        guards: Further metrics, whose tolerated drops are in `also` of the budget.
        failed: Name of a model that kept the budget -> why it is no candidate.

    Returns:
        The delivered candidate with its files (None if there are no candidates, or if no file keeps the limits), and
        what is known of all candidates.

    Raises:
        ExportError: If no file keeps the budget that its model kept.
    """
    inputs = example_input(validation_data, max(NUM_COMPARED, *settings.batch_sizes), training, baseline_model)
    steps = _Steps(finished or FinishedSteps(), inputs, validation_data, training, settings, budget, guards)
    considered = _Considered(steps, budget, baseline_model, failed)
    kept, rejected = considered.kept, considered.rejected
    consider, measure_all = considered.add, considered.measurements
    if not candidates and not rejected:
        baseline, results = measure_all()
        return None, _export_result(None, reason, baseline, results, rejected)
    for candidate in candidates:
        consider(candidate)
    while not kept and (fallback := next(others, None)) is not None:
        logger.warning("Falling back to %s", fallback.name)
        consider(fallback)
    if not kept:
        reasons = "".join(f"\n  - {name}: {reason}" for name, reason in rejected.items())
        raise ExportError(f"No exported file keeps the budget that its model kept:{reasons}")
    rest: list[Candidate] = []
    if settings.objective == "latency":
        rest = list(others)
        if fastest := _fastest(rest, kept, steps):
            rest.remove(fastest)
            consider(fastest)
    baseline, results = measure_all()
    if all(excess_over(settings.limits, result) for result in results) and (rest := [*rest, *others]):
        logger.warning("No file keeps the limits; trying %d less compressed models", len(rest))
        for other in rest:
            consider(other)
        baseline, results = measure_all()
    excess = {result.name: excess_over(settings.limits, result) for result in results}
    rejected |= {name: ", ".join(words for words, _ in found) for name, found in excess.items() if found}
    within = [pair for pair in zip(kept, results, strict=True) if not excess[pair[1].name]]
    if not within:
        nearest = min(excess, key=lambda name: max(times for _, times in excess[name]))
        reason = f"No model within budget keeps the limits. {nearest} comes nearest: {rejected[nearest]}."
        return None, _export_result(None, reason, baseline, results, rejected)
    if goal == "accuracy":
        exported, delivered = max(within, key=lambda pair: budget.margin(pair[1].validation))
    else:
        exported, delivered = min(within, key=lambda pair: cost_by(settings, pair[1]))
    return exported, _export_result(delivered, reason, baseline, results, rejected)


def _export_result(
    delivered: CandidateResult | None,
    reason: str,
    baseline: Measurements,
    candidates: list[CandidateResult],
    rejected: dict[str, str],
) -> ExportResult:
    return ExportResult(
        outcome=Outcome.WITHIN_BUDGET if delivered else Outcome.INFEASIBLE,
        reason=reason,
        delivered=delivered.name if delivered else None,
        baseline=baseline,
        compressed=delivered,
        candidates=candidates,
        rejected=rejected,
    )


def _fastest(others: Sequence[Candidate], kept: Sequence[Exported], steps: _Steps) -> Candidate | None:
    """The fastest of the other models at the first batch size, if it is faster than all that were kept."""
    if not others:
        return None
    models = [exported.candidate.model for exported in kept] + [other.model.eval() for other in others]
    files = [exported.files for exported in kept] + [steps.files(other.model, openvino=False) for other in others]
    milliseconds = steps.latencies(models, files)
    known, new = milliseconds[: len(kept)], milliseconds[len(kept) :]
    if min(new) > WORTHWHILE_LATENCY * min(known):
        return None
    return others[new.index(min(new))]


def _export(candidate: Candidate, budget: Budget, steps: _Steps) -> Exported:
    """The candidate's files, if they compute what its model computes and keep the budget."""
    model = candidate.model.eval()

    # A kept `.pt2` file would be unpickled, which runs code; tracing the model again gives the same program. It is
    # traced for the judgment and for the delivery, since the programs of all candidates would fill the memory.
    def trace() -> ExportedProgram:
        return to_program(model, steps.inputs, steps.settings)

    files = steps.files(model)
    judgment = steps.judgment(candidate, files, trace)
    for kind, metric in judgment.metrics.items():
        if budget.margin(metric) < 0:
            raise ExportError(
                f"its {kind} file breaks the budget: {metric:.4f} on the validation split, where "
                f"{budget.lowest_tolerated:.4f} is tolerated"
            )
        if mistakes := broken(judgment.guards[kind], budget):
            raise ExportError(f"its {kind} file {'; it '.join(mistakes)}")
    return Exported(candidate, files, judgment, trace)


class _Considered:
    """The candidates whose files keep the budget, and why the others are rejected.

    Args:
        steps: Exports, judges and measures.
        budget: Budget that the files must keep.
        baseline_model: The uncompressed model.
        failed: Name of a model -> why it is no candidate.
    """

    def __init__(
        self, steps: _Steps, budget: Budget, baseline_model: nn.Module, failed: Mapping[str, str] | None
    ) -> None:
        self.kept: list[Exported] = []
        self.rejected = dict(failed or {})
        self._steps, self._budget = steps, budget
        self._baseline_model, self._baseline_files = baseline_model, steps.files(baseline_model)

    def add(self, candidate: Candidate) -> None:
        """Keeps a candidate, or rejects it: an exporter or a runtime may raise anything."""
        try:
            with doing(f"files of {candidate.name}"):
                self.kept.append(_export(candidate, self._budget, self._steps))
        except Exception as error:
            self._reject(candidate, error)

    def measurements(self) -> tuple[Measurements, list[CandidateResult]]:
        """What the baseline and the candidates cost, without candidates that cannot be measured."""
        try:
            return self._measured(self.kept)
        except Exception as error:
            for exported in [] if ends_run(error) else list(self.kept):
                try:
                    self._measured([exported])
                except Exception as own:
                    self._reject(exported.candidate, own)
                    self.kept.remove(exported)
            if not self.kept:
                raise
        return self._measured(self.kept)

    def _measured(self, some: Sequence[Exported]) -> tuple[Measurements, list[CandidateResult]]:
        models = [self._baseline_model, *(exported.candidate.model for exported in some)]
        files = [self._baseline_files, *(exported.files for exported in some)]
        with doing(f"latency and memory of {len(files)} files"):
            baseline, *costs = self._steps.measurements(models, files)
        return baseline, [exported.result(cost) for exported, cost in zip(some, costs, strict=True)]

    def _reject(self, candidate: Candidate, error: Exception) -> None:
        if ends_run(error):
            raise error
        self.rejected[candidate.name] = rejection(candidate.name, error)


@dataclass(frozen=True)
class _Steps:
    """The steps that take long; each is done once for the same models, as far as its results are kept."""

    finished: FinishedSteps
    inputs: ModelInputs
    validation_data: Data
    training: TrainingSettings
    settings: ExportSettings
    budget: Budget
    guards: Sequence[GuardSettings]

    def files(self, model: nn.Module, *, openvino: bool | None = None) -> Files:
        """The files of a model; with OpenVINO's as the settings say, unless `openvino` says something else."""
        settings = self.settings if openvino is None else self.settings.model_copy(update={"openvino": openvino})
        return self.finished.result(
            "files", Files, lambda: files_of(model, self.inputs, settings), model, openvino=settings.openvino
        )

    def judgment(self, candidate: Candidate, files: Files, trace: Callable[[], ExportedProgram]) -> Judgment:
        """Whether the files compute what the model computes, and how well they do on the validation split."""
        return self.finished.result(
            "judgment",
            Judgment,
            lambda: self._judge(candidate, files, trace()),
            candidate.model,
            rate=candidate.rate,
            weight_names=list(candidate.weight_names),
            guards=[guard.name for guard in self.budget.also],
        )

    def latencies(self, models: Sequence[nn.Module], files: Sequence[Files]) -> list[float]:
        """Time of each model's fastest turn in onnxruntime at the first batch size, in milliseconds."""
        settings = self.settings
        size = settings.batch_sizes[0]

        def compute() -> list[float]:
            latencies = measure_latency(
                [each.onnx for each in files],
                self.inputs,
                batch_sizes=[size],
                num_threads=settings.num_threads,
                seconds=settings.latency_seconds,
            )
            return [by_size[size].fastest for by_size in latencies]

        return self.finished.result("latencies", list[float], compute, *models)

    def measurements(self, models: Sequence[nn.Module], files: Sequence[Files]) -> list[Measurements]:
        """What models and their files cost."""
        return self.finished.result(
            "measurements",
            list[Measurements],
            lambda: measure(models, files, self.inputs, self.settings),
            *models,
        )

    def _judge(self, candidate: Candidate, files: Files, program: ExportedProgram) -> Judgment:
        model, inputs, settings = candidate.model, self.inputs, self.settings
        # Where a number is rounded up in one runtime and down in another, the outputs differ by one step of 8 bits.
        tolerance = settings.tolerance if quantized_spec(model) is None else settings.quantized_tolerance
        agreement = {
            "onnx": verify_onnx(files.onnx, model, inputs, tolerance=tolerance),
            "program": verify_program(program, model, inputs, tolerance=tolerance),
            "exported_rate": _exported_rate(files, candidate),
        }
        runnable: dict[str, nn.Module] = {"ONNX": OnnxModel(files.onnx), ".pt2": read_back(program)}
        if files.openvino is not None:
            paths = paths_of(files.onnx)
            agreement["openvino"] = verify_openvino(files.openvino, model, inputs, tolerance=tolerance, paths=paths)
            runnable["OpenVINO"] = OpenvinoModel(files.openvino, paths)
        evaluations = {
            kind: guarded(
                evaluate_file(file, self.validation_data, self.training, self.guards), self.budget, f"its {kind} file"
            )
            for kind, file in runnable.items()
        }
        return Judgment(
            agreement=FileAgreements.model_validate(agreement),
            metrics={kind: evaluation.metric for kind, evaluation in evaluations.items()},
            guards={kind: dict(evaluation.also) for kind, evaluation in evaluations.items()},
        )


def _exported_rate(files: Files, candidate: Candidate) -> float | None:
    """The rate counted on the ONNX file; None if it cannot be counted there.

    It equals the candidate's rate, unless the exporter folded a BatchNorm of scale 0, which adds zeros.
    """
    if not candidate.weight_names:
        return None
    try:
        zeros, total = count_zeros(files.onnx, candidate.weight_names)
    except ExportError as error:  # the outputs were compared, so a renamed weight is no reason to fail
        logger.warning("%s", error)
        return None
    if zeros / total < candidate.rate:
        raise ExportError(
            f"the file has a rate of {zeros / total:.6f}, but the model has {candidate.rate:.6f}: the exporter "
            "changed weights. Please report this with the model."
        )
    return zeros / total

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
from kedro_aat.delivery.candidates import Candidate, rejection
from kedro_aat.delivery.costs import cost_by
from kedro_aat.delivery.files import Files
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.guard_results import broken
from kedro_aat.delivery.judging import NUM_COMPARED, Judgment, Steps
from kedro_aat.delivery.limits import excess_over
from kedro_aat.delivery.measurements import CandidateResult, Measurements
from kedro_aat.delivery.on_device import failure_among, fall_back, is_unreachable, objective_among
from kedro_aat.delivery.results import ExportResult
from kedro_aat.errors import DeviceError, ExportError, ends_run
from kedro_aat.export.program import to_program
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.registry import TARGETS, TargetName
from kedro_aat.messages import doing
from kedro_aat.search.policy import Goal
from kedro_aat.training.data import Data, example_input
from kedro_aat.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

NOT_CHECKED = (
    " The device measured no file any more, so that less compressed models were not tried. When it is back, the same "
    "command goes on, and trains nothing again; `kedro aat choose` chooses among all models."
)
# Prefer a less compressed model only if its latency is below this fraction of the best latency so far.
WORTHWHILE_LATENCY = 0.95


@dataclass(frozen=True)
class Exported:
    """A candidate whose files keep the budget.

    Attributes:
        candidate: The model.
        files: Its files for all targets but `.pt2`.
        judgment: How closely they agree with the model, and how well they do.
        shipped: Target whose file decides.
        trace: Makes the program of its `.pt2` file; None if the settings do not ask for it.
    """

    candidate: Candidate
    files: Files
    judgment: Judgment
    shipped: TargetName
    trace: Callable[[], ExportedProgram] | None

    @property
    def metric(self) -> float:
        """Metric of the file that decides, on the validation split."""
        return self.judgment.metrics[self.shipped]

    @property
    def program(self) -> ExportedProgram | None:
        """The program of its `.pt2` file; None if the settings do not ask for it."""
        return None if self.trace is None else self.trace()

    def result(self, measurements: Measurements) -> CandidateResult:
        """Everything known about the candidate, once it is measured."""
        metrics = self.judgment.metrics
        return CandidateResult(
            name=self.candidate.name,
            stage=self.candidate.stage,
            checkpoint=self.candidate.checkpoint,
            rate=self.candidate.rate,
            requested_rate=self.candidate.requested_rate,
            standard_error=self.candidate.standard_error,
            validation=metrics["onnx"],
            validation_program=metrics.get("pt2"),
            validation_openvino=metrics.get("openvino"),
            validations={name: metric for name, metric in metrics.items() if name not in ("onnx", "pt2")},
            shipped=self.shipped,
            guards=self.judgment.guards[self.shipped],
            agreement=self.judgment.agreement,
            program_bytes=self.judgment.program_bytes,
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
    steps = Steps(finished or FinishedSteps(), inputs, validation_data, training, settings, budget, guards)
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
    has_fallen_back = False
    if settings.objective_kind in ("latency", "device_latency"):
        rest = list(others)
        fastest, has_fallen_back = _fastest(rest, kept, steps, rejected)
        if fastest:
            consider(fastest)
        rest = [other for other in rest if other is not fastest and other.name not in rejected]
    baseline, results = measure_all()
    keep_none = all(excess_over(settings.limits, result) for result in results)
    # Without the device, no other model would keep its limits either, and each would have to be exported first.
    if keep_none and not is_unreachable(settings, [baseline, *results]) and (rest := [*rest, *others]):
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
        reason += NOT_CHECKED if is_unreachable(settings, [baseline, *results]) else ""
        return None, _export_result(None, reason, baseline, results, rejected)
    if goal == "accuracy":
        exported, delivered = max(within, key=lambda pair: budget.margin(pair[0].metric))
    else:
        failure = failure_among(settings, [result for _, result in within])
        if failure is not None and len(within) > 1 and not has_fallen_back:
            fall_back(settings, failure)
        decides = objective_among(settings, [result for _, result in within])
        exported, delivered = min(within, key=lambda pair: cost_by(decides, pair[1]))
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


def _fastest(
    others: Sequence[Candidate], kept: Sequence[Exported], steps: Steps, rejected: dict[str, str]
) -> tuple[Candidate | None, bool]:
    """The fastest of the other models by the objective, if it is faster than all that were kept.

    Args:
        others: The other models.
        kept: What has files within budget.
        steps: Exports and measures.
        rejected: Gets the names of models that cannot be exported, and why.

    Returns:
        The model or None, and whether the device failed, so that the latency here decided.
    """
    exportable: list[Candidate] = []
    files = [exported.files for exported in kept]
    for other in others:
        try:
            files.append(steps.files(other.model.eval(), only_shipped=True))
            exportable.append(other)
        except Exception as error:
            if ends_run(error):
                raise
            rejected[other.name] = rejection(other.name, error)
    if not exportable:
        return None, False
    models = [each.candidate.model for each in kept] + [other.model for other in exportable]
    settings = steps.settings
    try:
        milliseconds = steps.latencies(models, files, settings)
    except DeviceError as error:
        settings = fall_back(settings, str(error))
        milliseconds = steps.latencies(models, files, settings)
    known, new = milliseconds[: len(kept)], milliseconds[len(kept) :]
    is_faster = min(new) <= WORTHWHILE_LATENCY * min(known)
    return exportable[new.index(min(new))] if is_faster else None, settings is not steps.settings


def _export(candidate: Candidate, budget: Budget, steps: Steps) -> Exported:
    """The candidate's files, if they compute what its model computes and keep the budget."""
    model = candidate.model.eval()

    # A kept `.pt2` file would be unpickled, which runs code; tracing the model again gives the same program. It is
    # traced for the judgment and for the delivery, since the programs of all candidates would fill the memory.
    def trace() -> ExportedProgram:
        return to_program(model, steps.inputs, steps.settings)

    files = steps.files(model)
    has_program = "pt2" in steps.settings.targets
    judgment = steps.judgment(candidate, files, trace if has_program else None)
    if (shipped := steps.settings.shipped) not in judgment.metrics:
        raise ExportError(f"its {TARGETS[shipped].title} file, which would be certified, was not judged")
    for target, metric in judgment.metrics.items():
        title = TARGETS[target].title
        if budget.margin(metric) < 0:
            raise ExportError(
                f"its {title} file breaks the budget: {metric:.4f} on the validation split, where "
                f"{budget.lowest_tolerated:.4f} is tolerated"
            )
        if mistakes := broken(judgment.guards[target], budget):
            raise ExportError(f"its {title} file {'; it '.join(mistakes)}")
    return Exported(candidate, files, judgment, shipped, trace if has_program else None)


class _Considered:
    """The candidates whose files keep the budget, and why the others are rejected.

    Args:
        steps: Exports, judges and measures.
        budget: Budget that the files must keep.
        baseline_model: The uncompressed model.
        failed: Name of a model -> why it is no candidate.
    """

    def __init__(
        self, steps: Steps, budget: Budget, baseline_model: nn.Module, failed: Mapping[str, str] | None
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

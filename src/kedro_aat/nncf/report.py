"""The pipeline's report for a script that uses the loops."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from kedro_aat.budget import Budget, Outcome
from kedro_aat.certificate import Certificate
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import algorithms_of
from kedro_aat.delivery.certificate_result import CertificateResult
from kedro_aat.delivery.certify import Verdict, certificate_words
from kedro_aat.delivery.guard_results import GuardResult
from kedro_aat.delivery.measurements import CandidateResult
from kedro_aat.delivery.results import (
    BaselineEvaluation,
    BudgetResult,
    EpochCount,
    ExportResult,
    MetricInfo,
    Rates,
    SearchResult,
    Summary,
    WallTime,
)
from kedro_aat.nncf.costs import FileCosts
from kedro_aat.reporting.layers import layer_table
from kedro_aat.reporting.others import Choice, not_delivered
from kedro_aat.reporting.report import render_report
from kedro_aat.reporting.summary import summarize, trajectory
from kedro_aat.training.records import FineTuned, epochs_used
from kedro_aat.training.runner import Evaluation

if TYPE_CHECKING:
    import plotly.graph_objects as go

UNREAD = "No certificate: `certify` of the loop was not called with evaluations of a test split."


def script_summary(
    result: FineTuned,
    controller: ModelController,
    budget: Budget,
    costs: FileCosts,
    *,
    metric: str,
    epochs_allowed: int,
    run: str,
    seed: int,
    certified: tuple[Certificate, Evaluation, Evaluation] | None,
) -> Summary:
    """What the pipeline calls the summary of a run. The metric is that of the model, not of its file.

    Args:
        result: How the search ended.
        controller: Controller with the returned model.
        budget: Accuracy budget.
        costs: What the original and the compressed model cost.
        metric: Name of the metric, or of the function that computes it.
        epochs_allowed: Epochs that the configuration allows.
        run: Name of the folder with the checkpoints.
        seed: Seed that the configuration names.
        certified: The certificate, and the original's and the compressed model's evaluation on the test split; None
            without a certificate.
    """
    allowed, best = BudgetResult.model_validate(budget), result.best
    evaluation = BaselineEvaluation(
        metric=MetricInfo(name=metric, higher_is_better=budget.higher_is_better),
        validation=budget.baseline,
        budget=allowed,
        guards=[GuardResult.model_validate(guard) for guard in budget.also],
    )
    search = SearchResult(
        stage=1,
        algorithms=algorithms_of(controller.settings),
        outcome=result.outcome,
        reason=result.reason,
        budget=allowed,
        validation=result.metric,
        standard_error=best.standard_error if best else None,
        rate=Rates(requested=best.requested_rate if best else 0.0, achieved=result.achieved_rate),
        epochs=EpochCount(used=epochs_used(result.history), allowed=epochs_allowed),
        seconds=WallTime(used=sum(row.seconds for row in result.history), limit=None),
        best_checkpoint=best.checkpoint if best else None,
        device=str(next(controller.model.parameters()).device),
        run=run,
        guards=result.guards,
    )
    delivered = None
    if best is not None:
        delivered = CandidateResult(
            name=" and ".join(search.algorithms),
            stage=1,
            checkpoint=best.checkpoint,
            rate=result.achieved_rate,
            requested_rate=best.requested_rate,
            standard_error=best.standard_error,
            validation=result.metric,
            guards=result.guards,
            **costs.compressed.model_dump(),
        )
    export = ExportResult(
        outcome=Outcome.WITHIN_BUDGET if delivered else Outcome.INFEASIBLE,
        reason=result.reason,
        delivered=delivered.name if delivered else None,
        baseline=costs.original,
        compressed=delivered,
        candidates=[delivered] if delivered else [],
        rejected={},
    )
    return summarize(
        evaluation, search, [], export, _certificate(certified), seed=seed, time_limit=None, distillation=None
    )


def _certificate(certified: tuple[Certificate, Evaluation, Evaluation] | None) -> CertificateResult:
    if certified is None:
        return Verdict(words=UNREAD).result
    certificate, original, compressed = certified
    return Verdict(
        baseline=original.metric,
        compressed=compressed.metric,
        standard_error=certificate.standard_error,
        certificate=certificate,
        words=certificate_words(certificate),
    ).result


def script_report(
    summary: Summary, result: FineTuned, controller: ModelController, settings: Mapping[str, object]
) -> str:
    """The report of a script as one HTML page that needs no network; without Plotly it has tables alone.

    Args:
        summary: Summary of the run.
        result: How the search ended.
        controller: Controller with the returned model.
        settings: The configuration, as JSON data.
    """
    rows = trajectory(result.history).assign(stage=1)
    others = not_delivered(rows, summary, Choice(search="of a script"))
    figures: dict[str, go.Figure] = {}
    if find_spec("plotly") is not None:
        from kedro_aat.reporting.figures import costs_figure, frontier_figure, trajectory_figure

        figures = {"frontier": frontier_figure(rows, summary, others), "trajectory": trajectory_figure(rows, summary)}
        figures |= {"costs": costs_figure(summary)} if summary.candidates else {}
    return render_report(summary, rows, layer_table({1: controller}), figures, settings, others)

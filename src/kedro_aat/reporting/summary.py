"""The summary of a run: as JSON for programs, as a table for the terminal."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedro_aat.budget import Outcome
from kedro_aat.delivery.certificate_result import CertificateFields, CertificateResult
from kedro_aat.delivery.environment import DistillationSummary, Environment, processor_name
from kedro_aat.delivery.findings import Findings
from kedro_aat.delivery.guard_results import summarized
from kedro_aat.delivery.measurements import CandidateResult, Measurements
from kedro_aat.delivery.results import (
    BaselineEvaluation,
    BaselineSummary,
    CompressedSummary,
    EpochCount,
    ExportedRates,
    ExportResult,
    FailedSearch,
    LaterSearchResult,
    Rates,
    SearchResult,
    SkippedSearch,
    Summary,
    WallTime,
)
from kedro_aat.delivery.target_files import files_of_candidate
from kedro_aat.errors import ExportError
from kedro_aat.export.targets.registry import TARGETS
from kedro_aat.reporting import targets
from kedro_aat.reporting.numbers import comparison, cost_rows, guard_words, metric_words
from kedro_aat.search.policy import Goal
from kedro_aat.training.records import EpochRecord

if TYPE_CHECKING:
    import pandas as pd

LIBRARIES = ("kedro-aat", "kedro", "torch", "torchmetrics", "onnx", "onnxscript", "onnxruntime", "numpy")
REPORT = "aat_report.html"  # file name of the report, beside the summary

LIMITS_ADVICE = (
    "The accuracy budget was kept, but not the limits beside it: allow more in export.limits, or a larger drop."
)
# With the goal of accuracy, the limits say how far the model is compressed.
BUDGET_ADVICE = (
    "No model that keeps the limits kept the budget: allow a larger drop, more epochs, or more in export.limits."
)


def trajectory(history: list[EpochRecord]) -> pd.DataFrame:
    """One row per epoch, with the fields of `EpochRecord` as columns; a failed epoch has no metric and no margin.

    A tactic is three columns; its learning rate is in `lr_scale`. With guards there is a column `guard_margin`, and one
    for each guard, such as `guards.MulticlassRecall, class 3`.
    """
    import pandas as pd

    whole_numbers = {"started_from": "Int64"}
    fractions = dict.fromkeys(("metric", "margin", "standard_error", "loss", "learning_rate", "best_rate"), "float64")
    chosen = {"importance": "string", "ranking": "string", "distilled": "boolean"}
    rows = []
    for record in history:
        tactic = record.tactic
        choice = dict.fromkeys(chosen) if tactic is None else dict(tactic.ranking) | {"distilled": tactic.distill}
        rows.append(asdict(record) | choice | ({"margin": None} if record.failed else {}))
    names = dict.fromkeys(name for record in history for name in record.guards)
    if names:
        fractions |= dict.fromkeys(("guard_margin", *(f"guards.{name}" for name in names)), "float64")
        for row, record in zip(rows, history, strict=True):
            row |= {f"guards.{name}": record.guards.get(name) for name in names}
    without = ["tactic", "guards", *([] if names else ["guard_margin"])]
    return pd.DataFrame(rows).drop(columns=without).astype({**whole_numbers, **fractions, **chosen})


def summarize(
    evaluation: BaselineEvaluation,
    search: SearchResult,
    later: Sequence[LaterSearchResult | None],
    export: ExportResult,
    certificate: CertificateResult,
    *,
    seed: int,
    goal: Goal = "size",
    time_limit: float | None,
    distillation: DistillationSummary | None,
    findings: Findings | None = None,
) -> Summary:
    """Puts the summary of a run together.

    Args:
        evaluation: The baseline, from `evaluate_baseline`.
        search: Result of the first stage, from `finetune_adaptively`.
        later: Results of the later stages in order, from `finetune_later_stage`; None if there is none.
        export: Result of the export, from `export_model`.
        certificate: What the test split says, from `certify_model`.
        seed: Seed of the run.
        goal: What the search looked for.
        time_limit: Time limit of the search, in seconds; None for no limit.
        distillation: How the baseline taught; None if it did not.
        findings: What was tried, what limited the result, and what to try next; None if it is unknown.
    """
    import torch

    delivered = export.compressed
    agreement = delivered.agreement if delivered else None
    outcome = Outcome.CERTIFIED if certificate.is_certified else export.outcome
    advice = outcome.advice
    if export.breaks_limits:
        advice = LIMITS_ADVICE
    elif outcome is Outcome.INFEASIBLE and goal == "accuracy":
        advice = BUDGET_ADVICE
    stages = [search, *(stage for stage in later if isinstance(stage, SearchResult))]
    skipped = [stage for stage in later if isinstance(stage, SkippedSearch) and stage.reason]
    libraries = (*LIBRARIES, *(package for name in export.baseline.targets for package in TARGETS[name].packages))
    if delivered is None:  # then the model is the baseline
        validation, standard_error, rate = evaluation.validation, None, Rates(requested=0.0, achieved=0.0)
    else:
        validation, standard_error = _metric_of(delivered), delivered.standard_error
        # What a later stage delivers also has the first stage's rate.
        is_first = delivered.stage == 1
        own = {"requested": delivered.requested_rate, "achieved": delivered.rate} if is_first else {}
        rate = Rates.model_validate({**search.rate.model_dump(), **own})
    return Summary(
        outcome=outcome,
        reason=export.reason,
        advice=advice,
        delivered=export.delivered,
        delivered_id=delivered.id if delivered else None,
        metric=evaluation.metric,
        budget=search.budget,
        baseline=BaselineSummary(
            validation=evaluation.validation, test=certificate.baseline, **_costs(export.baseline)
        ),
        compressed=CompressedSummary(
            validation=validation,
            validation_standard_error=standard_error,
            test=certificate.compressed,
            test_standard_error=certificate.standard_error,
            rate=ExportedRates(**rate.model_dump(), exported=agreement.exported_rate if agreement else None),
            **(_costs(delivered) if delivered else {}),
        ),
        certificate=CertificateFields.model_validate(certificate),
        forecast=evaluation.forecast,
        candidates=export.candidates,
        rejected=export.rejected,
        stages=stages,
        skipped=skipped,
        failed=[stage for stage in later if isinstance(stage, FailedSearch)],
        distillation=distillation,
        report=REPORT,
        agreement=agreement,
        epochs=EpochCount(
            used=sum(stage.epochs.used for stage in stages), allowed=sum(stage.epochs.allowed for stage in stages)
        ),
        seconds=WallTime(
            used=sum(stage.seconds.used for stage in [search, *later] if stage is not None), limit=time_limit
        ),
        run=search.run,
        seed=seed,
        goal=goal,
        environment=Environment(
            python=platform.python_version(),
            processor=platform.machine(),
            processor_name=processor_name(),
            threads=torch.get_num_threads(),
            device=search.device,
        ),
        versions={library: version(library) for library in libraries},
        guards=summarized(
            evaluation.guards,
            delivered.guards if delivered else None,
            certificate.guards,
        ),
        class_names=evaluation.class_names,
        findings=findings,
        files=files_of_candidate(delivered) if delivered else [],
    )


def _metric_of(delivered: CandidateResult) -> float:
    """Metric of the file that is delivered; that of another target's file says nothing of it."""
    if (metric := delivered.shipped_validation) is None:
        title = TARGETS[delivered.shipped].title
        raise ExportError(
            f"export_report has no metric of the {title} file of {delivered.name}, which is the one that is delivered: "
            "`kedro run --from-nodes export_model` judges it."
        )
    return metric


def _costs(model: Measurements) -> dict[str, Any]:
    return model.model_dump(include=set(Measurements.model_fields))


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Prints the closing table: the outcome, and the baseline beside the compressed model."""
    console = console or Console()
    is_good = summary.outcome in (Outcome.CERTIFIED, Outcome.WITHIN_BUDGET)
    console.print()
    console.print(Text(f"Outcome: {summary.outcome}", style="bold green" if is_good else "bold red"))
    skipped = (stage.reason or "" for stage in summary.skipped)
    failed = (stage.reason for stage in summary.failed)
    for words in (summary.reason, summary.advice, summary.certificate.words, *skipped, *failed):
        console.print(Text(words))  # as plain text: brackets in users' names are no markup
    if words := guard_words(summary):
        console.print(Text(words))
    console.print(_table(summary))
    if (files := targets.files_table(summary)) is not None:
        console.print(Text("\nDelivered files", style="bold"))
        console.print(_rich(files))
        for sentence in [*files.notes, *targets.int8_words(summary)]:
            console.print(Text(sentence))
    for title, statements in summary.findings.sections if summary.findings else []:
        console.print(Text(f"\n{title}", style="bold"))
        for statement in statements:
            console.print(Text(f"- {statement}"))


def _rich(files: targets.Table) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, is_number in files.columns:
        table.add_column(Text(title), justify="right" if is_number else "left", overflow="fold")
    for row in files.rows:
        table.add_row(*map(Text, row))
    return table


def _table(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("baseline", "compressed", "change"):
        table.add_column(column, justify="right")
    for row in comparison(summary):
        table.add_row(*map(Text, row))
    for candidate in summary.candidates:
        if candidate.id != summary.delivered_id:
            table.add_section()
            rows = [
                (f"not delivered: {candidate.name}", "", "", summary.rejected.get(candidate.name, "")),
                (f"{summary.metric.name}, validation", "", metric_words(candidate.shipped_validation), ""),
                *cost_rows(summary.baseline, candidate),
            ]
            for row in rows:
                table.add_row(*map(Text, row))
    return table

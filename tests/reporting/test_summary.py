"""The summary and its table on the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from kedro_aat.budget import Outcome
from kedro_aat.delivery.candidates import front_records
from kedro_aat.delivery.certificate_result import CertificateResult
from kedro_aat.delivery.results import BaselineEvaluation, ExportResult, SkippedSearch, Summary
from kedro_aat.errors import ExportError
from kedro_aat.export.targets.registry import TargetName
from kedro_aat.reporting.numbers import comparison
from kedro_aat.reporting.summary import print_summary, summarize, trajectory
from kedro_aat.search.policy import Goal
from kedro_aat.search.tactics import Ranking, Tactic
from tests.reporting.runs import changed, summary_of
from tests.training.test_records import RECORD


def printed(summary: Summary) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_summary(summary, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_brackets_are_printed_unchanged() -> None:
    """Brackets in an exporter's message or in a metric's name are not markup."""
    words = "cannot read [/models/net] as [bold]"
    summary = changed(
        summary_of("within_budget"),
        reason=words,
        certificate={"words": words},
        metric={"name": words},
        rejected={"filter_pruning": words},
    )
    assert printed(summary).count(words) >= 5


@pytest.mark.parametrize(
    ("has_candidates", "goal", "advice"),
    [
        (False, "size", "more epochs, or a lower minimal rate"),
        (False, "accuracy", "more epochs, or more in export.limits"),
        (True, "size", "more in export.limits, or a larger drop"),
    ],
)
def test_advice_depends_on_what_was_not_kept(has_candidates: bool, goal: Goal, advice: str) -> None:
    run = summary_of("certified")
    export = ExportResult(
        outcome=Outcome.INFEASIBLE,
        reason=run.reason,
        delivered=None,
        baseline=run.baseline,
        compressed=None,
        candidates=run.candidates if has_candidates else [],
        rejected=run.rejected,
    )
    summary = summarize(
        BaselineEvaluation(metric=run.metric, validation=0.9, budget=run.budget),
        run.stages[0],
        [SkippedSearch(outcome="skipped"), None],
        export,
        CertificateResult(baseline=None, compressed=None, is_certified=False, words=""),
        seed=0,
        goal=goal,
        time_limit=None,
        distillation=None,
    )
    assert advice in summary.advice
    assert advice in printed(summary)


def shipped_for_openvino(validations: dict[TargetName, float]) -> Summary:
    """Summary of a run that ships the files for OpenVINO."""
    run = summary_of("within_budget")
    first, second = run.candidates
    shipped = second.model_copy(update={"shipped": "openvino", "validations": validations})
    return summarize(
        BaselineEvaluation(metric=run.metric, validation=run.baseline.validation, budget=run.budget),
        run.stages[0],
        [run.stages[1]],
        ExportResult(
            outcome=Outcome.WITHIN_BUDGET,
            reason=run.reason,
            delivered=second.name,
            baseline=run.baseline,
            compressed=shipped,
            candidates=[first, shipped],
            rejected={},
        ),
        CertificateResult(baseline=None, compressed=None, is_certified=False, words=""),
        seed=0,
        time_limit=None,
        distillation=None,
    )


def test_the_metric_is_that_of_the_file_that_is_shipped() -> None:
    summary = shipped_for_openvino({"openvino": 0.8765})
    assert summary.compressed.validation == 0.8765
    assert comparison(summary)[0][:3] == ("BinaryAccuracy, OpenVINO files, validation", "0.9000", "0.8765")


def test_no_other_file_stands_for_one_that_was_not_judged() -> None:
    with pytest.raises(ExportError, match="no metric of the OpenVINO file of quantization, which is the one that is"):
        shipped_for_openvino({"litert": 0.8765})


def test_delivered_second_stage_shows_its_own_numbers_despite_an_equal_name() -> None:
    """If both stages are lists of algorithms, their candidates used to have the same name."""
    run = summary_of("within_budget", algorithm="composite")
    first, second = run.candidates
    assert run.delivered_candidate == second
    export = ExportResult(
        outcome=Outcome.WITHIN_BUDGET,
        reason=run.reason,
        delivered="composite",
        baseline=run.baseline,
        compressed=second.model_copy(update={"name": "composite"}),
        candidates=[first, second.model_copy(update={"name": "composite"})],
        rejected={},
    )
    summary = summarize(
        BaselineEvaluation(metric=run.metric, validation=run.baseline.validation, budget=run.budget),
        run.stages[0],
        [run.stages[1]],
        export,
        CertificateResult(baseline=None, compressed=None, is_certified=False, words=""),
        seed=0,
        time_limit=None,
        distillation=None,
    )
    assert summary.delivered_candidate is not None
    assert summary.delivered_candidate.onnx_bytes == second.onnx_bytes != first.onnx_bytes


def test_summary_of_version_0_1_0_can_be_read() -> None:
    """It has names of candidates, but no identities."""
    data = summary_of("within_budget").model_dump(mode="json", exclude={"delivered_id"})
    for candidate in data["candidates"]:
        del candidate["id"]
    summary = Summary.model_validate(data)
    assert summary == summary_of("within_budget")
    assert summary.delivered_candidate is not None
    assert summary.delivered_candidate.name == summary.delivered


def test_trajectory_names_the_tactic_of_every_epoch() -> None:
    tactic = Tactic(ranking=Ranking(importance="l2", ranking="global"), distill=False)
    table = trajectory([RECORD, replace(RECORD, tactic=tactic)])
    assert table["importance"].fillna("-").tolist() == ["-", "l2"]
    assert table["ranking"].fillna("-").tolist() == ["-", "global"]
    assert table["distilled"].isna().tolist() == [True, False]
    assert not table["distilled"][1]


def test_failed_epoch_has_no_metric_and_no_margin() -> None:
    failed = replace(RECORD, metric=None, margin=-1.0, checkpoint=1)
    table = trajectory([RECORD, failed])
    assert table["metric"].isna().tolist() == table["margin"].isna().tolist() == [False, True]
    assert [row.checkpoint for row in front_records(table, [0, 1])] == [0]

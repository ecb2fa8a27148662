"""What was found within budget is delivered, whatever fails after it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from pandas import DataFrame

from kedro_aat.config import AatSettings
from kedro_aat.delivery.certificate_result import CertificateResult
from kedro_aat.delivery.results import FailedSearch, LaterSearchResult
from kedro_aat.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    InterruptedRunError,
    ModelError,
    UserFunctionError,
)
from kedro_aat.export import NotExported
from kedro_aat.pipelines.aat import later_stage
from kedro_aat.pipelines.aat.as_json import JsonNode
from kedro_aat.pipelines.aat.deliver import certify_model
from kedro_aat.pipelines.aat.reporting import describe_layers, report_run
from kedro_aat.pipelines.aat.search import finetune_later_stage
from kedro_aat.reporting.summary import print_summary
from tests.reporting.runs import onnx_model, settings, summary_of, trajectory_of

FIRST = summary_of("within_budget").stages[0]
KEPT: Any = object()  # the first stage's controller
UNUSED: Any = None


def failing_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, LaterSearchResult, DataFrame]:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(later_stage, "search_later_stage", fail)
    known = DataFrame({"stage": [1]})
    arguments = (KEPT, *[UNUSED] * 5, FIRST, known, *[UNUSED] * 2, settings(second_stage={}))
    return finetune_later_stage(*arguments)


@pytest.mark.parametrize(
    "error",
    [ModelError("outputs differ"), UserFunctionError("validate failed"), RuntimeError("stack"), KeyError(3)],
)
def test_a_later_stage_that_fails_passes_on_the_model_before_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    controller, result, known = failing_with(error, monkeypatch)
    assert controller is KEPT
    assert list(known["stage"]) == [1]
    assert isinstance(result, FailedSearch)
    assert result.stage == 2
    assert result.reason == (
        "The second stage (quantization) failed, and what was found before it is delivered. "
        f"{type(error).__name__}: {error}. Set second_stage to null to run without it."
    )
    assert result.seconds.used >= 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize(
    "error",
    [
        InterruptedRunError("stopped"),
        KeyboardInterrupt(),
        ConfigurationError("aat", ["seed: wrong"]),
        CheckpointError("the disk is full"),
        OSError(28, "No space left on device"),
    ],
)
def test_what_ends_a_run_ends_it_in_a_later_stage_too(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        failing_with(error, monkeypatch)


def test_a_failed_stage_is_in_summary_table_and_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "The second stage (quantization) failed. ModelError: <5 & 6>."
    failed = FailedSearch(outcome="failed", stage=2, algorithms=["quantization"], reason=reason)
    assert JsonNode(_same)(failed.model_dump(mode="json")) == failed.model_dump(mode="json")
    summary = summary_of("within_budget").model_copy(update={"failed": [failed]})
    print_summary(summary)
    assert "failed. ModelError: <5 & 6>." in " ".join(capsys.readouterr().out.split())
    page, *_ = report_run(summary, trajectory_of(summary), _no_layers(), NotExported("-"), settings())
    assert "failed. ModelError: &lt;5 &amp; 6&gt;." in page


def _same(result: LaterSearchResult) -> LaterSearchResult:
    assert isinstance(result, FailedSearch)
    return result


class Broken:
    """A controller that cannot tell what became of its layers."""

    def statistics(self) -> None:
        raise ModelError("no statistics")


def _no_layers() -> DataFrame:
    export = summary_of("infeasible")
    broken: Any = Broken()
    result: Any = export.model_copy(update={"compressed": None})
    return describe_layers(broken, broken, FIRST, UNUSED, result, UNUSED)


def test_a_layer_table_that_fails_is_empty(caplog: pytest.LogCaptureFixture) -> None:
    table = _no_layers()
    assert len(table) == 0
    assert {"stage", "layer", "note"} <= {*table.columns}
    assert "The layer table is empty" in caplog.text


def test_a_certificate_that_fails_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> CertificateResult:
        def certify_once(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("kedro_aat.delivery.certify.certify_once", certify_once)
        onnx: Any = object()
        with_certificate: AatSettings = settings(certificate={})
        return certify_model(onnx, UNUSED, UNUSED, _Evaluation(), FIRST, UNUSED, with_certificate)  # type: ignore[arg-type]

    result = fail(DataError("no targets"))
    assert not result.is_certified
    assert result.words == (
        "Not certified: DataError: no targets. When that is mended, `kedro aat certify` certifies the delivered model."
    )
    with pytest.raises(CheckpointError):  # the ledger
        fail(CheckpointError("damaged"))


@pytest.mark.parametrize("target", ["openvino", "litert"])
def test_no_other_file_is_certified_in_place_of_one_that_is_not_there(target: str) -> None:
    onnx: Any = object()
    by_target: AatSettings = settings(certificate={}, export={"objective": {"target": target}})
    result = certify_model(onnx, UNUSED, UNUSED, _Evaluation(), FIRST, UNUSED, by_target)  # type: ignore[arg-type]
    assert not result.is_certified
    assert result.words.startswith(
        f"Not certified: export.objective names {target}, and compressed_{target} has no file."
    )
    nothing = NotExported("-")
    result = certify_model(nothing, UNUSED, UNUSED, _Evaluation(), FIRST, UNUSED, by_target)  # type: ignore[arg-type]
    assert result.words == "Nothing was exported, so there is nothing to certify."


def test_another_file_than_the_delivered_one_is_not_certified() -> None:
    result: Any = summary_of("within_budget")
    others = [each.model_copy(update={"onnx_sha256": "0" * 64}) for each in result.candidates]
    export = result.model_copy(update={"compressed": others[0]})
    with pytest.raises(DataError, match="compressed_onnx has the SHA-256"):  # and no test split was read
        certify_model(
            onnx_model(),
            UNUSED,
            UNUSED,
            _Evaluation(),  # type: ignore[arg-type]
            FIRST,
            UNUSED,
            settings(certificate={}),
            export_result=export,
        )


class _Evaluation:
    registration = None

    def budget_of(self, budget: object) -> object:
        return budget


@pytest.mark.parametrize(("broken", "kept"), [("model_card.model_card", "page"), ("report.render_report", "card")])
def test_a_report_that_fails_is_told_in_its_place(broken: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("<x>")

    monkeypatch.setattr(f"kedro_aat.reporting.{broken}", fail)
    summary = summary_of("within_budget")
    page, card, frontier, trajectory = report_run(
        summary, trajectory_of(summary), _no_layers(), NotExported("-"), settings()
    )
    assert "failed. KeyError: &#x27;&lt;x&gt;&#x27;" in page
    assert ("failed. KeyError" in card) == (kept == "page")
    assert isinstance(frontier, NotExported)
    assert isinstance(trajectory, NotExported)

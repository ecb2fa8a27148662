"""Which file is delivered, decided on made-up files: what `deliver` asks of the exporter, and what it concludes."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kedro_aat.budget import Budget, Outcome
from kedro_aat.delivery import judging
from kedro_aat.delivery.candidates import Candidate
from kedro_aat.delivery.deliver import deliver
from kedro_aat.delivery.files import Files
from kedro_aat.errors import ExportError
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.registry import TARGETS, TargetName
from tests.delivery.made_up import BASELINE, BUDGET, DATA, KINDS, TRAINING, Tools, chosen, fast, made


def test_delivered_candidate_and_everything_known_of_it(tools: Tools) -> None:
    metrics = {"onnx": 0.6, "pt2": 0.61, "openvino": 0.62}
    differences = {"onnx": 0.0001, "pt2": 0.0002, "openvino": 0.0003}
    candidate = made("only", 0.5, ["weight"], metrics=metrics, differences=differences, zeros=(60, 100))
    exported, result = chosen(candidate, openvino=True)
    assert exported is not None
    assert exported.candidate is candidate
    assert cast(object, exported.program) is candidate.model
    assert exported.files == Files(candidate.model, {"openvino": candidate.model})  # type: ignore[arg-type,dict-item]
    assert (result.outcome, result.reason, result.delivered) == (Outcome.WITHIN_BUDGET, "The search ended.", "only")
    assert result.baseline.onnx_bytes == 9000
    assert result.rejected == {}
    (delivered,) = result.candidates
    assert delivered == result.compressed
    assert delivered.id == "stage-1-checkpoint-7"
    assert (delivered.name, delivered.stage, delivered.checkpoint, delivered.rate) == ("only", 1, 7, 0.5)
    assert (delivered.requested_rate, delivered.standard_error, delivered.onnx_bytes) == (0.45, 0.01, 1000)
    assert (delivered.validation, delivered.validation_program, delivered.validation_openvino) == (0.6, 0.61, 0.62)
    agreement = delivered.agreement
    assert agreement is not None
    parts = (agreement.onnx, agreement.program, agreement.openvino, agreement.targets["openvino"])
    found = [part and part.difference for part in parts]
    assert found == [0.0001, 0.0002, 0.0003, 0.0003]
    assert delivered.program_bytes == 700
    assert delivered.validations == {"openvino": 0.62}
    assert agreement.exported_rate == 0.6
    assert tools.calls == [
        ("files", BASELINE, 64, True, True),
        ("files", candidate.model, 64, False, True),
        ("measure", BASELINE, candidate.model),
    ]


def test_without_openvino_nothing_is_known_of_it(tools: Tools) -> None:
    _, result = chosen(made("only"))
    (delivered,) = result.candidates
    assert delivered.validation_openvino is None
    assert delivered.agreement is not None
    assert delivered.agreement.openvino is None
    assert delivered.agreement.exported_rate is None


@pytest.mark.usefixtures("tools")
def test_the_file_that_is_shipped_must_be_judged_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "files_of", lambda model, *_: Files(model))
    with pytest.raises(ExportError, match="only: its OpenVINO file, which would be certified, was not judged"):
        chosen(made("only"), objective={"target": "openvino"})


def test_without_candidates_the_baseline_is_measured(tools: Tools) -> None:
    exported, result = chosen(others=[made("other")])
    assert exported is None
    assert (result.outcome, result.reason, result.delivered) == (Outcome.INFEASIBLE, "The search ended.", None)
    assert (result.baseline.onnx_bytes, result.candidates, result.rejected) == (9000, [], {})


def test_examples_to_compare_are_as_many_as_the_largest_batch(tools: Tools) -> None:
    with pytest.raises(ExportError, match="AssertionError"):  # of the tools, which expect 64
        chosen(made("only"), batch_sizes=(1, 80))
    assert tools.calls[0] == ("files", BASELINE, 80, True, False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_must_keep_the_budget_and_its_model(tools: Tools, kind: TargetName) -> None:
    breaking = made("breaking", metrics={kind: 0.49})
    differing = made("differing", differences={kind: 0.002})
    undefined = made("undefined", metrics={kind: float("nan")})
    on_the_budget = made("on the budget", bytes=2000, metrics={kind: 0.5})
    _, result = chosen(breaking, differing, undefined, on_the_budget, openvino=True)
    assert result.delivered == "on the budget"
    title = TARGETS[kind].title
    assert result.rejected == {
        "breaking": f"its {title} file breaks the budget: 0.4900 on the validation split, where 0.5000 is tolerated",
        "differing": f"the {kind} file differs",
        "undefined": f"the metric of the {kind} file is NaN",
    }


def test_quantized_models_have_a_tolerance_of_their_own(tools: Tools) -> None:
    quantized = made("quantized", spec="int8", differences={"onnx": 0.05, "pt2": 0.05})
    assert chosen(quantized)[1].delivered == "quantized"
    with pytest.raises(ExportError, match="the onnx file differs"):
        chosen(quantized, quantized_tolerance=0.04)


def test_rate_is_counted_on_the_file_if_it_can_be(tools: Tools, caplog: pytest.LogCaptureFixture) -> None:
    def exported_rate(candidate: Candidate) -> float | None:
        agreement = chosen(candidate)[1].candidates[0].agreement
        assert agreement is not None
        return agreement.exported_rate

    assert exported_rate(made("equal", 0.5, ["weight"], zeros=(50, 100))) == 0.5
    assert exported_rate(made("folded", 0.5, ["weight"], zeros=(51, 100))) == 0.51
    assert exported_rate(made("filters", 0.5)) is None
    assert exported_rate(made("renamed", 0.5, ["weight"])) is None
    assert "no such weight" in caplog.text
    with pytest.raises(ExportError, match=r"a rate of 0.490000, but the model has 0.500000"):
        chosen(made("changed", 0.5, ["weight"], zeros=(49, 100)))


FIRST: dict[str, Any] = {"bytes": 10, "parameters": 40, "macs": 30, "fastest": {1: 4.0, 4: 1.0}}
SECOND: dict[str, Any] = {"bytes": 20, "parameters": 10, "macs": 40, "fastest": {1: 3.0, 4: 2.0}}
THIRD: dict[str, Any] = {"bytes": 30, "parameters": 20, "macs": 10, "fastest": {1: 2.0, 4: 3.0}}
FOURTH: dict[str, Any] = {"bytes": 40, "parameters": 30, "macs": 20, "fastest": {1: 5.0, 4: 4.0}}


@pytest.mark.parametrize(
    ("objective", "best"),
    [("bytes", "first"), ("parameters", "second"), ("macs", "third"), ("latency", "third"), ("rate", "fourth")],
)
def test_each_objective_has_its_best(tools: Tools, objective: str, best: str) -> None:
    properties: dict[str, dict[str, Any]] = {"first": FIRST, "second": SECOND, "third": THIRD, "fourth": FOURTH}
    candidates = [made(name, 0.1 * number, **each) for number, (name, each) in enumerate(properties.items())]
    _, result = chosen(*candidates, objective=objective)
    assert result.delivered == best
    assert [candidate.name for candidate in result.candidates] == list(properties)


def test_fallbacks_are_tried_one_by_one(tools: Tools, caplog: pytest.LogCaptureFixture) -> None:
    broken: dict[str, Any] = {"metrics": {"onnx": 0.1}}
    others = iter([made("second", **broken), made("third"), made("fourth")])
    _, result = deliver(
        [made("first", **broken)], others, BASELINE, DATA, BUDGET, TRAINING, ExportSettings(), "The search ended."
    )
    assert result.delivered == "third"
    assert set(result.rejected) == {"first", "second"}
    assert next(others).name == "fourth"
    assert "Falling back to second" in caplog.text
    assert "first is not delivered: its ONNX file breaks the budget" in caplog.text


def test_all_reasons_are_told_if_no_file_keeps_the_budget(tools: Tools) -> None:
    broken: dict[str, Any] = {"metrics": {"onnx": 0.1}}
    with pytest.raises(ExportError, match=r"kept:\n  - first: its ONNX file.*tolerated\n  - second: its"):
        chosen(made("first", **broken), others=[made("second", **broken)])


# --- latency as the objective ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("milliseconds", "is_tried"), [(1.9, True), (1.9001, False)])
def test_less_compressed_models_must_be_worth_it(tools: Tools, milliseconds: float, is_tried: bool) -> None:
    others = [fast("slow", 5.0), fast("fast", milliseconds), fast("slower", 6.0)]
    candidates = [fast("first", 3.0), fast("second", 2.0)]
    _, result = chosen(*candidates, others=others, objective="latency")
    assert result.delivered == ("fast" if is_tried else "second")
    assert len(result.candidates) == 2 + is_tried
    tried = ("latency", *(candidate.model for candidate in (*candidates, *others)))
    assert tried in tools.calls


def test_models_that_are_only_timed_have_no_openvino_files(tools: Tools) -> None:
    other = fast("slow", 5.0)
    chosen(fast("first", 3.0), others=[other], objective="latency", openvino=True)
    assert ("files", other.model, 64, False, False) in tools.calls


def test_without_others_no_latency_is_compared(tools: Tools) -> None:
    assert chosen(fast("only", 3.0), objective="latency")[1].delivered == "only"
    assert not [call for call in tools.calls if call[0] == "latency"]


def test_a_file_that_breaks_a_guard_is_rejected_with_its_name_and_figures(tools: Tools) -> None:
    """Whichever of its files it is; a value that is exactly tolerated is kept."""
    budget = Budget.model_validate(BUDGET.model_dump() | {"also": [{"name": "recall", "baseline": 0.9, "drop": 0.2}]})
    good = made("good", bytes=500, guards={"onnx": 0.7})
    bad = made("bad", bytes=100, guards={"pt2": 0.65})
    undefined = made("undefined", bytes=100, guards={"onnx": float("nan")})
    exported, result = chosen(bad, good, undefined, budget=budget)
    assert exported is not None
    assert result.delivered == "good"
    assert result.compressed is not None
    assert result.compressed.guards == {"recall": 0.7}
    words = "its .pt2 file breaks the guard recall: 0.6500 on the validation split, where 0.7000 is tolerated"
    assert result.rejected["bad"] == words
    assert "recall of its ONNX file must be a finite number" in result.rejected["undefined"]


def test_a_less_compressed_model_that_cannot_be_exported_is_passed_over(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, broken, large = fast("small", 3.0), fast("broken", 1.0, rate=0.2), fast("large", 2.0, rate=0.1)

    def files_of(model: Any, *rest: Any) -> Any:
        if model is broken.model:
            raise ExportError("no such operator")
        return tools.files_of(model, *rest)

    monkeypatch.setattr(judging, "files_of", files_of)
    _, result = chosen(small, others=[broken, large], objective="latency")
    assert (result.delivered, result.rejected) == ("large", {"broken": "no such operator"})

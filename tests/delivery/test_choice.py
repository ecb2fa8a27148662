"""Which file is delivered, decided on made-up files: what `deliver` asks of the exporter, and what it concludes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.budget import Budget, Outcome
from kedro_aat.delivery import deliver as choice
from kedro_aat.delivery.candidates import Candidate
from kedro_aat.delivery.deliver import Exported, deliver
from kedro_aat.delivery.files import Files
from kedro_aat.delivery.measurements import FileAgreement, Measurements
from kedro_aat.delivery.results import ExportResult
from kedro_aat.errors import ExportError, MetricError
from kedro_aat.export.measure import Latency
from kedro_aat.export.settings import ExportSettings
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.settings import TrainingSettings

DATA = {"inputs": torch.arange(100.0)[:, None], "targets": torch.zeros(100)}
BUDGET = Budget(baseline=0.75, drop=0.25)
TRAINING = TrainingSettings.model_validate(
    {"batch_size": 8, "optimizer": "torch.optim.SGD", "metric": "torchmetrics.classification.BinaryAccuracy"}
)
KINDS = ("ONNX", ".pt2", "OpenVINO")


class Made(nn.Module):
    """A model of which everything is made up that its files would show."""

    def __init__(self, **properties: Any) -> None:
        super().__init__()
        self.metrics: dict[str, float] = dict.fromkeys(KINDS, 0.7) | properties.pop("metrics", {})
        self.differences: dict[str, float] = dict.fromkeys(KINDS, 0.0) | properties.pop("differences", {})
        self.bytes: int = properties.pop("bytes", 1000)
        self.parameters_: int = properties.pop("parameters", 100)
        self.macs: int = properties.pop("macs", 10)
        self.fastest: dict[int, float] = properties.pop("fastest", {1: 1.0, 4: 2.0})
        self.median: dict[int, float] = properties.pop("median", {1: 1.5, 4: 3.0})
        self.zeros: tuple[int, int] | None = properties.pop("zeros", None)
        self.spec: str | None = properties.pop("spec", None)
        assert not properties


@dataclass
class Tools:
    """Stands for the exporter and the runtimes, and notes with what they were called."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def files_of(self, model: Made, inputs: Tensor, settings: ExportSettings) -> Any:
        self.calls.append(("files", model, len(inputs), model.training, settings.openvino))
        return Files(model, model if settings.openvino else None)  # type: ignore[arg-type]

    def to_program(self, model: Made, inputs: Tensor) -> Made:
        assert not model.training
        assert len(inputs) == 64
        return model

    def verify(self, kind: str, file: Made, model: Made, inputs: Tensor, tolerance: float) -> FileAgreement:
        assert file is model
        assert len(inputs) == 64
        difference = model.differences[kind]
        if difference > tolerance:
            raise ExportError(f"the {kind} file differs")
        return FileAgreement(difference=difference, same_labels=None, batch_sizes=(1,))

    def evaluate_file(self, file: tuple[str, Made], data: object, training: TrainingSettings) -> Evaluation:
        assert data is DATA
        assert training is TRAINING
        kind, model = file
        if model.metrics[kind] != model.metrics[kind]:
            raise MetricError(f"the metric of the {kind} file is NaN")
        return Evaluation(model.metrics[kind])

    def count_zeros(self, file: Made, names: Sequence[str]) -> tuple[int, int]:
        assert names == ["weight"]
        if file.zeros is None:
            raise ExportError("no such weight in the file")
        return file.zeros

    def measure(
        self, models: Sequence[Made], files: Sequence[Files], inputs: Tensor, settings: ExportSettings
    ) -> list[Measurements]:
        assert [each.onnx for each in files] == list(models)
        assert settings.latency_seconds
        assert len(inputs) == 64
        self.calls.append(("measure", *models))
        return [
            Measurements(
                parameters=model.parameters_,
                nonzero_parameters=1,
                macs=model.macs,
                onnx_bytes=model.bytes,
                onnx_gzip_bytes=1,
                latency_ms=model.median,
                latency_fastest_ms=model.fastest,
            )
            for model in models
        ]

    def measure_latency(
        self, files: Sequence[Made], inputs: Tensor, *, batch_sizes: Sequence[int], num_threads: int, seconds: float
    ) -> list[dict[int, Latency]]:
        assert (batch_sizes, num_threads, seconds) == ([1], 3, 0.25)
        assert len(inputs) == 64
        self.calls.append(("latency", *files))
        return [{1: Latency(file.median[1], (0.0, 0.0), file.fastest[1])} for file in files]


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    tools = Tools()
    for name in ("files_of", "to_program", "evaluate_file", "count_zeros", "measure", "measure_latency"):
        monkeypatch.setattr(choice, name, getattr(tools, name))
    verifiers = {"verify_onnx": "ONNX", "verify_program": ".pt2", "verify_openvino": "OpenVINO"}
    for name, kind in verifiers.items():
        monkeypatch.setattr(
            choice,
            name,
            lambda file, model, inputs, *, tolerance, kind=kind: tools.verify(kind, file, model, inputs, tolerance),
        )
    for name, kind in {"OnnxModel": "ONNX", "read_back": ".pt2", "OpenvinoModel": "OpenVINO"}.items():
        monkeypatch.setattr(choice, name, lambda file, kind=kind: (kind, file))
    monkeypatch.setattr(choice, "quantized_spec", lambda model: model.spec)
    return tools


BASELINE = Made(bytes=9000)


def made(name: str, rate: float = 0.5, weight_names: Sequence[str] = (), **properties: Any) -> Candidate:
    return Candidate(name, 1, Made(**properties), rate, weight_names, 0.45, 0.01, 7)


def chosen(
    *candidates: Candidate, others: Sequence[Candidate] = (), **settings: Any
) -> tuple[Exported | None, ExportResult]:
    export = ExportSettings.model_validate(
        {"batch_sizes": (1, 4), "num_threads": 3, "latency_seconds": 0.25, "tolerance": 0.001, **settings}
    )
    return deliver(candidates, iter(others), BASELINE, DATA, BUDGET, TRAINING, export, "The search ended.")


def test_delivered_candidate_and_everything_known_of_it(tools: Tools) -> None:
    metrics = {"ONNX": 0.6, ".pt2": 0.61, "OpenVINO": 0.62}
    differences = {"ONNX": 0.0001, ".pt2": 0.0002, "OpenVINO": 0.0003}
    candidate = made("only", 0.5, ["weight"], metrics=metrics, differences=differences, zeros=(60, 100))
    exported, result = chosen(candidate, openvino=True)
    assert exported is not None
    assert exported.candidate is candidate
    assert cast(object, exported.program) is candidate.model
    assert exported.files == Files(candidate.model, candidate.model)  # type: ignore[arg-type]
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
    assert agreement.openvino is not None
    found = [part.difference for part in (agreement.onnx, agreement.program, agreement.openvino)]
    assert found == [0.0001, 0.0002, 0.0003]
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


def test_without_candidates_the_baseline_is_measured(tools: Tools) -> None:
    exported, result = chosen(others=[made("other")])
    assert exported is None
    assert (result.outcome, result.reason, result.delivered) == (Outcome.INFEASIBLE, "The search ended.", None)
    assert (result.baseline.onnx_bytes, result.candidates, result.rejected) == (9000, [], {})


def test_examples_to_compare_are_as_many_as_the_largest_batch(tools: Tools) -> None:
    with pytest.raises(AssertionError):  # of the tools, which expect 64
        chosen(made("only"), batch_sizes=(1, 80))
    assert tools.calls[0] == ("files", BASELINE, 80, True, False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_must_keep_the_budget_and_its_model(tools: Tools, kind: str) -> None:
    breaking = made("breaking", metrics={kind: 0.49})
    differing = made("differing", differences={kind: 0.002})
    undefined = made("undefined", metrics={kind: float("nan")})
    on_the_budget = made("on the budget", bytes=2000, metrics={kind: 0.5})
    _, result = chosen(breaking, differing, undefined, on_the_budget, openvino=True)
    assert result.delivered == "on the budget"
    assert result.rejected == {
        "breaking": f"its {kind} file breaks the budget: 0.4900 on the validation split, where 0.5000 is tolerated",
        "differing": f"the {kind} file differs",
        "undefined": f"the metric of the {kind} file is NaN",
    }


def test_quantized_models_have_a_tolerance_of_their_own(tools: Tools) -> None:
    quantized = made("quantized", spec="int8", differences={"ONNX": 0.05, ".pt2": 0.05})
    assert chosen(quantized)[1].delivered == "quantized"
    with pytest.raises(ExportError, match="the ONNX file differs"):
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
    broken: dict[str, Any] = {"metrics": {"ONNX": 0.1}}
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
    broken: dict[str, Any] = {"metrics": {"ONNX": 0.1}}
    with pytest.raises(ExportError, match=r"kept:\n  - first: its ONNX file.*tolerated\n  - second: its"):
        chosen(made("first", **broken), others=[made("second", **broken)])


# --- latency as the objective ----------------------------------------------------------------------------------


def fast(name: str, milliseconds: float, **properties: Any) -> Candidate:
    return made(name, fastest={1: milliseconds, 4: 0.0}, **properties)


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


# --- limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"onnx_bytes": 1999}, "onnx_bytes are 2,000, above the limit of 1,999"),
        ({"parameters": 1999}, "parameters are 2,000, above the limit of 1,999"),
        ({"macs": 1999}, "macs are 2,000, above the limit of 1,999"),
        (
            {"latency_ms": {1: 9.0, 4: 2.4}},
            "the median latency at batch 4 is 2.5 ms, above the limit of 2.4 ms",
        ),
        (
            {"macs": 1500, "parameters": 2000, "onnx_bytes": 1000},
            "onnx_bytes are 2,000, above the limit of 1,000, macs",
        ),
    ],
)
def test_limits_exclude_what_exceeds_them(tools: Tools, limits: dict[str, Any], words: str) -> None:
    large = made("large", 0.9, bytes=2000, parameters=2000, macs=2000, median={1: 2.0, 4: 2.5})
    small = made("small", 0.1, bytes=1000, parameters=1000, macs=1000, median={1: 1.0, 4: 1.0})
    _, result = chosen(large, small, objective="rate", limits=limits)
    assert result.delivered == "small"
    assert list(result.rejected) == ["large"]
    assert result.rejected["large"].startswith(words)
    assert len(result.candidates) == 2


@pytest.mark.parametrize("limits", [{"onnx_bytes": 2000}, {"parameters": 2000}, {"latency_ms": {1: 2.0}}])
def test_limit_that_is_just_kept(tools: Tools, limits: dict[str, Any]) -> None:
    large = made("large", bytes=2000, parameters=2000, median={1: 2.0, 4: 2.5})
    assert chosen(large, limits=limits)[1].delivered == "large"


def test_nearest_to_the_limits_is_the_one_whose_worst_excess_is_smallest(tools: Tools) -> None:
    first = made("first", bytes=1900, parameters=1001)
    second = made("second", bytes=1500, parameters=1500)
    exported, result = chosen(first, second, limits={"onnx_bytes": 1000, "parameters": 1000})
    assert exported is None
    assert (result.outcome, result.delivered, result.compressed) == (Outcome.INFEASIBLE, None, None)
    assert result.reason == (
        "No model within budget keeps the limits. second comes nearest: onnx_bytes are 1,500, above the "
        "limit of 1,000, "
        "parameters are 1,500, above the limit of 1,000."
    )
    assert set(result.rejected) == {"first", "second"}
    assert result.breaks_limits


def test_nearest_is_measured_in_multiples_of_the_limit(tools: Tools) -> None:
    first = made("first", macs=30, median={1: 6.0, 4: 1.0})
    second = made("second", macs=11, bytes=1500, median={1: 1.0, 4: 30.0})
    _, result = chosen(first, second, limits={"macs": 10, "onnx_bytes": 1000})
    assert "second comes nearest" in result.reason
    _, result = chosen(first, second, limits={"latency_ms": {1: 2.0, 4: 20.0}})
    assert "second comes nearest" in result.reason


def test_nearest_by_latency(tools: Tools) -> None:
    first = made("first", median={1: 9.0, 4: 1.0})
    second = made("second", median={1: 4.0, 4: 4.0})
    _, result = chosen(first, second, limits={"latency_ms": {1: 2.0, 4: 2.0}})
    assert "second comes nearest" in result.reason


def test_less_compressed_models_are_tried_only_if_no_file_keeps_the_limits(tools: Tools) -> None:
    large, small = made("large", bytes=3000), made("small", bytes=1000)
    others = [made("rate 0.4", bytes=2500), made("rate 0.3", bytes=1500)]
    _, result = chosen(large, others=others, limits={"onnx_bytes": 2000})
    assert result.delivered == "rate 0.3"
    assert list(result.rejected) == ["large", "rate 0.4"]
    assert [candidate.name for candidate in result.candidates] == ["large", "rate 0.4", "rate 0.3"]
    _, result = chosen(large, small, others=others, limits={"onnx_bytes": 2000})
    assert result.delivered == "small"
    assert [candidate.name for candidate in result.candidates] == ["large", "small"]


def test_others_that_were_only_timed_are_tried_if_the_limits_demand_it(tools: Tools) -> None:
    candidate = fast("first", 3.0, bytes=3000)
    others = [fast("slow", 5.0, bytes=1000), fast("fast", 1.0, bytes=3000)]
    _, result = chosen(candidate, others=others, objective="latency", limits={"onnx_bytes": 2000})
    assert result.delivered == "slow"
    assert [candidate.name for candidate in result.candidates] == ["first", "fast", "slow"]


def test_goal_of_accuracy_delivers_the_best_metric_of_the_files_that_keep_the_limits(tools: Tools) -> None:
    files = [
        made("accurate", bytes=900, metrics=dict.fromkeys(KINDS, 0.7)),
        made("small", bytes=500, metrics=dict.fromkeys(KINDS, 0.6)),
        made("large", bytes=2000, metrics=dict.fromkeys(KINDS, 0.8)),
    ]
    export = ExportSettings.model_validate(
        {"batch_sizes": (1, 4), "num_threads": 3, "latency_seconds": 0.25, "limits": {"onnx_bytes": 1000}}
    )
    _, result = deliver(files, iter(()), BASELINE, DATA, BUDGET, TRAINING, export, "The search ended.", goal="accuracy")
    assert result.delivered == "accurate"
    assert list(result.rejected) == ["large"]

"""Which exported file is delivered, which ones are rejected, and why."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from kedro_aat.budget import Budget
from kedro_aat.datasets.exported import ExportedProgramDataset
from kedro_aat.delivery import files as delivery_files
from kedro_aat.delivery import judging as delivery
from kedro_aat.delivery.candidates import Candidate
from kedro_aat.delivery.deliver import Exported, deliver
from kedro_aat.delivery.files import evaluate_file
from kedro_aat.delivery.results import ExportResult
from kedro_aat.errors import ExportError, MetricError
from kedro_aat.export.measure import Latency, arrays_of
from kedro_aat.export.memory import peak_memory
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.openvino_file import to_openvino
from kedro_aat.export.session import OnnxModel
from kedro_aat.export.settings import ExportSettings
from kedro_aat.training.settings import TrainingSettings
from tests.nets import images

DATA = images(40)
TRAINING = TrainingSettings.model_validate(
    {
        "batch_size": 8,
        "optimizer": "torch.optim.SGD",
        "metric": {
            "class_path": "torchmetrics.classification.MulticlassAccuracy",
            "init_args": {"num_classes": 4, "average": "micro"},
        },
    }
)
BUDGET = Budget(baseline=1.0, drop=0.2)


class Net(nn.Module):
    """Classifies images by comparing them with the four patterns; a wider net is larger, but not better."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        stripes = torch.tensor([1.0, -1.0]).repeat(4)
        patterns = [torch.ones(8, 8), -torch.ones(8, 8), stripes[:, None].expand(8, 8), stripes[None, :].expand(8, 8)]
        self.first = nn.Linear(64, 4 * width, bias=False)
        self.last = nn.Linear(4 * width, 4, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.stack(patterns).flatten(1).repeat(width, 1))
            self.last.weight.copy_(torch.eye(4).repeat(1, width) / width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.first(inputs.flatten(1)))
        return outputs


BASELINE = Net(8)


def deliver_from(
    *candidates: Candidate, others: Iterator[Candidate] | None = None, budget: Budget = BUDGET, **settings: Any
) -> tuple[Exported | None, ExportResult]:
    """Calls `deliver`.

    Args:
        *candidates: Models that the search returned.
        others: Fallbacks, in order of preference.
        budget: Accuracy budget.
        **settings: Export settings that differ from the defaults.
    """
    export_settings = ExportSettings.model_validate({"batch_sizes": (1, 8), "latency_seconds": 0.05, **settings})
    exported, result = deliver(
        candidates, others or iter(()), BASELINE, DATA, budget, TRAINING, export_settings, "The search ended."
    )
    assert (exported.candidate.name if exported else None) == result.delivered
    return exported, result


@functools.cache
def export(model: nn.Module) -> onnx.ModelProto:
    """Exports a model to ONNX; cached because it takes a second."""
    return to_onnx(model, DATA["inputs"])


@functools.cache
def measure_memory(file: bytes, batch_sizes: tuple[int, ...]) -> dict[int, int] | None:
    """Measures the peak memory of a file; cached because it starts a process."""
    return peak_memory(file, {size: arrays_of(DATA["inputs"], size) for size in batch_sizes})


@pytest.fixture(autouse=True)
def _once_per_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_files, "to_onnx", lambda model, inputs, settings, **_: export(model))
    monkeypatch.setattr(delivery_files, "peak_memory", lambda file, batches: measure_memory(file, tuple(batches)))


@pytest.fixture
def fixed_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces measured latency by one that is proportional to the size of the file."""

    def latency_of(files: Sequence[bytes | onnx.ModelProto], *_: Any, batch_sizes: Sequence[int], **__: Any) -> Any:
        num_bytes = [len(file) if isinstance(file, bytes) else file.ByteSize() for file in files]
        return [{size: fixed(1e-6 * size * number) for size in batch_sizes} for number in num_bytes]

    def fixed(milliseconds: float) -> Latency:
        return Latency(milliseconds, (0.9 * milliseconds, 1.1 * milliseconds), 0.8 * milliseconds)

    monkeypatch.setattr("kedro_aat.delivery.files.measure_latency", latency_of)
    monkeypatch.setattr("kedro_aat.delivery.judging.measure_latency", latency_of)


SMALL, LARGE = Candidate("small", 2, Net(1), 0.9), Candidate("large", 1, Net(4), 0.5)


def test_smaller_file_is_delivered_and_both_are_reported(tmp_path: Path) -> None:
    exported, result = deliver_from(LARGE, SMALL)
    assert result.delivered == "small"
    assert result.reason == "The search ended."
    assert [candidate.name for candidate in result.candidates] == ["large", "small"]
    large, small = result.candidates
    assert small.onnx_bytes < large.onnx_bytes < result.baseline.onnx_bytes
    assert set(small.latency_ms or {}) == {1, 8}
    assert small.validation_program is not None
    assert small.validation == small.validation_program > 0.9
    assert exported is not None
    ExportedProgramDataset(filepath=str(tmp_path / "small.pt2")).save(exported.program)
    assert (tmp_path / "small.pt2").stat().st_size == small.program_bytes
    assert not result.rejected


@pytest.mark.parametrize("objective", ["bytes", "parameters", "macs", "rate"])
def test_each_objective_prefers_the_smaller_model(objective: str) -> None:
    assert deliver_from(LARGE, SMALL, objective=objective)[1].delivered == "small"


@pytest.mark.usefixtures("fixed_latency")
def test_fastest_file_within_budget_is_delivered_if_the_objective_is_latency() -> None:
    """Wide nets are slow here, whatever rate the candidates claim."""
    wide = Candidate("wide", 1, Net(512), 0.9)
    others = [Candidate("rate 0.6", 1, Net(256), 0.6), Candidate("rate 0.5", 1, Net(4), 0.5, (), 0.51, 0.01)]
    _, result = deliver_from(wide, others=iter(others), objective="latency")
    assert result.delivered == "rate 0.5"
    assert [candidate.name for candidate in result.candidates] == ["wide", "rate 0.5"]
    assert result.candidates[1].requested_rate == 0.51
    assert result.candidates[1].standard_error == 0.01
    assert deliver_from(wide, others=iter(others), objective="rate")[1].delivered == "wide"


def test_file_above_a_limit_is_rejected() -> None:
    _, result = deliver_from(LARGE, SMALL, objective="rate", limits={"parameters": Net(4).first.weight.numel()})
    assert result.delivered == "small"
    assert "parameters are 1,088, above the limit of 1,024" in result.rejected["large"]


@pytest.mark.usefixtures("fixed_latency")
def test_latency_limit_that_no_file_keeps_delivers_nothing() -> None:
    exported, result = deliver_from(SMALL, limits={"latency_ms": {1: 1e-6}})
    assert exported is None
    (small,) = result.candidates
    assert small.name == "small"
    assert small.latency_ms is not None
    assert small.latency_ms[1] == 1e-6 * small.onnx_bytes
    words = f"the median latency at batch 1 is {small.latency_ms[1]:.3g} ms, above the limit of 1e-06 ms"
    assert result.rejected["small"] == words


@pytest.mark.usefixtures("fixed_latency")
def test_less_compressed_models_are_tried_if_no_file_keeps_the_limits() -> None:
    """A model with a lower rate can be faster and have fewer MACs."""
    limits = {"parameters": Net(1).first.weight.numel() * 2}
    others = [Candidate("rate 0.6", 1, Net(8), 0.6), Candidate("rate 0.5", 1, Net(1), 0.5)]
    _, result = deliver_from(LARGE, others=iter(others), limits=limits)
    assert result.delivered == "rate 0.5"
    assert set(result.rejected) == {"large", "rate 0.6"}
    assert all(candidate.latency_ms for candidate in result.candidates)


@pytest.mark.usefixtures("fixed_latency")
def test_a_fast_file_must_still_keep_the_limits() -> None:
    """The first two candidates exceed the limit, the third one keeps it."""
    wide = Candidate("wide", 1, Net(512), 0.9)
    others = [Candidate("rate 0.6", 1, Net(2), 0.6), Candidate("rate 0.5", 1, Net(1), 0.5)]
    _, result = deliver_from(wide, others=iter(others), objective="latency", limits={"macs": 300})
    assert result.delivered == "rate 0.5"


@pytest.mark.usefixtures("fixed_latency")
def test_reason_names_the_file_nearest_to_the_limits() -> None:
    exported, result = deliver_from(LARGE, SMALL, limits={"parameters": 10, "latency_ms": {8: 1000.0}})
    assert exported is None
    assert result.reason.startswith("No model within budget keeps the limits. small comes nearest: ")
    assert set(result.rejected) == {"large", "small"}


def test_model_whose_file_breaks_the_budget_is_rejected() -> None:
    blind = Net(1)
    nn.init.zeros_(blind.first.weight)
    _, result = deliver_from(Candidate("blind", 1, blind, 0.99), LARGE)
    assert result.delivered == "large"
    assert "its ONNX file breaks the budget" in result.rejected["blind"]


def plant_exporter_error(monkeypatch: pytest.MonkeyPatch, amount: float, width: int) -> None:
    """Lets every export of a net of that width change weights, by random numbers of standard deviation `amount`."""
    monkeypatch.setattr(
        delivery_files, "to_onnx", lambda model, inputs, settings, **_: disturb(export(model), amount, width)
    )


def disturb(file: onnx.ModelProto, amount: float, width: int) -> onnx.ModelProto:
    """A copy of the file in which the first layer's weights are changed, if the net has that width."""
    changed_file = onnx.ModelProto()
    changed_file.CopyFrom(file)
    for tensor in changed_file.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size == 64 * 4 * width:
            changed = array + amount * torch.randn(array.shape, generator=torch.Generator().manual_seed(0)).numpy()
            tensor.CopyFrom(numpy_helper.from_array(changed.astype(array.dtype), tensor.name))
    return changed_file


def test_planted_exporter_error_rejects_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_exporter_error(monkeypatch, 0.5, width=1)
    _, result = deliver_from(SMALL, LARGE)
    assert result.delivered == "large"
    assert "differs from its model" in result.rejected["small"]


def test_planted_error_within_the_tolerance_is_judged_by_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_exporter_error(monkeypatch, 5.0, width=1)
    _, result = deliver_from(SMALL, LARGE, tolerance=1e6, budget=Budget(baseline=1.0, drop=0.05))
    assert result.delivered == "large"
    assert "breaks the budget" in result.rejected["small"]


def test_falls_back_to_the_next_candidates(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    plant_exporter_error(monkeypatch, 5.0, width=1)
    others = iter([Candidate("rate 0.6", 1, SMALL.model, 0.6), Candidate("rate 0.5", 1, LARGE.model, 0.5), LARGE])
    _, result = deliver_from(SMALL, others=others)
    assert result.delivered == "rate 0.5"
    assert set(result.rejected) == {"small", "rate 0.6"}
    assert "Falling back to rate 0.5" in caplog.text
    assert next(others) is LARGE  # later candidates were not requested


def test_no_file_that_keeps_the_budget_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_exporter_error(monkeypatch, 5.0, width=1)
    with pytest.raises(ExportError, match=r"No exported file keeps the budget.*\n  - small: .*differs from its model"):
        deliver_from(SMALL)


def test_file_is_evaluated_like_its_model() -> None:
    model = Net(2).eval()
    assert evaluate_file(OnnxModel(to_onnx(model, DATA["inputs"][:4])), DATA, TRAINING).metric == pytest.approx(
        evaluate_file(model, DATA, TRAINING).metric
    )


def test_openvino_is_not_imported_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it is an error
    exported, result = deliver_from(SMALL)
    assert exported is not None
    assert exported.files.others == {}
    (small,) = result.candidates
    assert small.validation_openvino is None
    assert small.openvino_bytes is None
    assert small.openvino_latency_ms is None
    assert small.agreement is not None
    assert small.agreement.openvino is None


def test_openvino_files_are_verified_and_measured() -> None:
    pytest.importorskip("openvino")
    exported, result = deliver_from(SMALL, LARGE, openvino=True)
    assert exported is not None
    small, large = result.candidates
    assert small.openvino_bytes == exported.files.others["openvino"].num_bytes
    sizes = [costs.openvino_bytes or 0 for costs in (small, large, result.baseline)]
    assert sizes == sorted(set(sizes))
    assert small.validation_openvino == small.validation
    assert small.agreement is not None
    assert small.agreement.openvino is not None
    assert small.agreement.openvino.difference < 1e-4
    for costs in (small, large, result.baseline):
        assert set(costs.openvino_latency_ms or {}) == set(costs.openvino_latency_quartiles_ms or {}) == {1, 8}


@pytest.mark.parametrize(
    ("tolerance", "reason"),
    [(1e-4, "the OpenVINO file differs from its model"), (1e6, "its OpenVINO file breaks the budget")],
)
def test_planted_error_in_openvino_files_rejects_the_model(
    monkeypatch: pytest.MonkeyPatch, tolerance: float, reason: str
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(
        "kedro_aat.export.targets.openvino.to_openvino", lambda file: to_openvino(disturb(file, 5.0, width=1))
    )
    budget = Budget(baseline=1.0, drop=0.05)
    _, result = deliver_from(SMALL, others=iter([LARGE]), budget=budget, openvino=True, tolerance=tolerance)
    assert result.delivered == "large"
    assert reason in result.rejected["small"]


def test_a_file_whose_metric_is_nan_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs are compared on the first examples only; a later one may be NaN."""

    def broken(file: nn.Module, *arguments: Any) -> Any:
        if isinstance(file, OnnxModel) and not broken_files:
            broken_files.append(file)
            raise MetricError("the metric of epoch 0 must be a finite number, but is nan")
        return evaluate_file(file, *arguments)

    broken_files: list[nn.Module] = []
    monkeypatch.setattr(delivery, "evaluate_file", broken)
    _, result = deliver_from(SMALL, LARGE)
    assert result.delivered == "large"
    assert "nan" in result.rejected["small"]

"""A candidate that fails anywhere is rejected with its reason, and another one is delivered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from kedro_aat.delivery import files as delivery_files
from kedro_aat.delivery.candidates import Candidate, stage_candidates
from kedro_aat.delivery.deliver import deliver
from kedro_aat.delivery.files import measure
from kedro_aat.errors import ExportError, ModelError, StorageError
from kedro_aat.export.settings import ExportSettings
from tests.delivery.test_deliver import BASELINE, BUDGET, DATA, LARGE, SMALL, TRAINING, Net, deliver_from
from tests.reporting.runs import summary_of

EXPORT = ExportSettings.model_validate({"batch_sizes": (1,), "latency_seconds": 0.01})


class Breaking(Net):
    """Fails whenever it runs."""

    def forward(self, inputs: Any) -> Any:
        raise IndexError("gone")


BROKEN = Candidate("broken", 2, Breaking(1), 0.95)


@pytest.fixture(autouse=True)
def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedro_aat.delivery.files.peak_memory", lambda *_: None)


def test_any_error_of_an_export_rejects_the_candidate() -> None:
    exported, result = deliver_from(LARGE, BROKEN)
    assert exported is not None
    assert result.delivered == "large"
    assert "gone" in result.rejected["broken"]


def test_an_error_of_a_runtime_rejects_the_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    def files_of(model: nn.Module, *_: Any) -> Any:
        if model is SMALL.model:
            raise ZeroDivisionError("in the exporter")
        return original(model, *_)

    original = delivery_files.files_of
    monkeypatch.setattr("kedro_aat.delivery.judging.files_of", files_of)
    assert deliver_from(LARGE, SMALL)[1].rejected == {"small": "ZeroDivisionError: in the exporter"}
    assert deliver_from(SMALL, others=iter([LARGE]))[1].delivered == "large"


def test_a_candidate_that_cannot_be_measured_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_for_small(models: Sequence[nn.Module], *rest: Any) -> Any:
        if any(model is SMALL.model for model in models):
            raise RuntimeError("no time")
        return measure(models, *rest)

    monkeypatch.setattr("kedro_aat.delivery.judging.measure", fails_for_small)
    _, result = deliver_from(SMALL, LARGE)
    assert result.delivered == "large"
    assert result.rejected == {"small": "RuntimeError: no time"}
    with pytest.raises(RuntimeError, match="no time"):  # then there is nothing to deliver
        deliver_from(SMALL)


def test_a_full_disk_rejects_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("kedro_aat.delivery.judging.verify_onnx", full)
    with pytest.raises(StorageError):
        deliver_from(LARGE)


def _stage(number: int, name: str, model: nn.Module | None) -> Any:
    def strip() -> nn.Module:
        if model is None:
            raise ModelError("the outputs differ")
        return model

    controller = SimpleNamespace(settings=SimpleNamespace(algorithm=name), strip=strip, weight_names=())
    return number, controller, summary_of("within_budget").stages[0]


def test_a_stage_that_cannot_be_stripped_is_no_candidate() -> None:
    failed: dict[str, str] = {}
    stages = [_stage(1, "filter_pruning", LARGE.model), _stage(2, "quantization", None)]
    assert [candidate.name for candidate in stage_candidates(stages, failed)] == ["filter_pruning"]
    assert failed == {"quantization": "the outputs differ"}
    with pytest.raises(ModelError):
        stage_candidates(stages)


def test_without_any_candidate_left_the_less_compressed_ones_are_tried() -> None:
    def others() -> Iterator[Candidate]:
        yield LARGE

    failed = {"quantization": "the outputs differ"}
    arguments = (BASELINE, DATA, BUDGET, TRAINING, EXPORT, "")
    _, result = deliver([], others(), *arguments, failed=failed)
    assert result.delivered == "large"
    assert result.rejected == failed
    with pytest.raises(ExportError, match="quantization: the outputs differ"):
        deliver([], iter(()), *arguments, failed=failed)

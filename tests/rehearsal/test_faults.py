"""Every fault that a run would meet is told within seconds, in words that say what mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat.compression.composite import CONTROLLERS
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.config import AatSettings
from kedro_aat.delivery.rehearsal_result import RehearsalResult
from kedro_aat.errors import ConfigurationError, DataError, ModelError, RehearsalError
from kedro_aat.rehearsal.rehearse import rehearse
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.validated import parse
from tests.rehearsal.faulty import CASES, Case, settings_of

SPARSE: dict[str, Any] = {"compression": {"algorithm": "magnitude_sparsity"}, "second_stage": None}
SPARSE_THEN_INT8 = {"compression": {"algorithm": "magnitude_sparsity"}}
NO_BATCH = ["batch that is no pair", "collate function that fails"]
CERTAIN = [name for name, case in CASES.items() if case.words and name not in NO_BATCH]
UNCERTAIN = [name for name, case in CASES.items() if not case.words]


def rehearsed(case: Case, folder: Path) -> RehearsalResult:
    data = case.data()
    torch.manual_seed(0)
    return rehearse(case.model(), data, data, parse(AatSettings, settings_of(case)), CheckpointStore(folder))


def error_of(case: Case, folder: Path) -> RehearsalError:
    with pytest.raises(RehearsalError) as caught:
        rehearsed(case, folder)
    return caught.value


@pytest.mark.parametrize("name", CERTAIN)
def test_a_fault_is_told_with_what_mends_it(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    quick = Case(case.model, SPARSE | case.settings, case.data)
    told = str(error_of(quick, tmp_path))
    for words in case.words:
        assert words in told
    assert "`rehearsal: false`" in told


@pytest.mark.parametrize("name", NO_BATCH)
def test_data_that_make_no_batch_are_told_with_what_mends_them(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.raises(DataError) as caught:
        rehearsed(Case(case.model, SPARSE | case.settings, case.data), tmp_path)
    for words in case.words:
        assert words in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNCERTAIN)
def test_a_model_passes_or_its_fault_is_told(name: str, tmp_path: Path) -> None:
    told = False
    try:
        rehearsed(CASES[name], tmp_path)
    except RehearsalError:
        told = True
    assert not (told and name == "no fault")


def test_a_controller_whose_strip_fails_is_named_with_what_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailsWhenStripped(QuantizationController):
        def strip(self, do_copy: bool = True) -> nn.Module:
            raise ModelError("the outputs differ")

    monkeypatch.setitem(CONTROLLERS, "quantization", FailsWhenStripped)
    error = error_of(Case(settings=SPARSE_THEN_INT8), tmp_path)
    (fault,) = error.faults
    assert fault.startswith("second stage (quantization), strip at rate 0.30: the outputs differ")
    assert "The first stage passes: set `second_stage: null` to run without quantization." in fault
    assert isinstance(error.__cause__.__cause__ if error.__cause__ else None, ModelError)


def test_a_fault_at_a_high_rate_alone_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FailsWhenSparse(MagnitudeSparsityController):
        def strip(self, do_copy: bool = True) -> nn.Module:
            if self.achieved_rate > 0.5:
                raise ModelError("too sparse")
            return super().strip(do_copy)

    monkeypatch.setitem(CONTROLLERS, "magnitude_sparsity", FailsWhenSparse)
    (fault,) = error_of(Case(settings=SPARSE), tmp_path).faults
    assert fault.startswith("first stage (magnitude_sparsity), strip at rate 0.90: too sparse")


class Fragile(nn.Module):
    """A layer that refuses to be in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.safe, self.fragile = nn.Linear(64, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fragile(self.safe(x.flatten(1)).relu())
        return out


def test_layers_to_leave_out_are_found_by_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(QuantizationController):
        def strip(self, do_copy: bool = True) -> nn.Module:
            if "fragile" not in self.settings.ignored_scopes:
                raise ModelError("some layer cannot be an integer")
            return super().strip(do_copy)

    monkeypatch.setitem(CONTROLLERS, "quantization", Refuses)
    (fault,) = error_of(Case(Fragile, SPARSE_THEN_INT8), tmp_path).faults
    assert 'It passes with second_stage.compression.ignored_scopes: ["fragile"]' in fault


def test_another_algorithm_that_works_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NeverStripped(QuantizationController):
        def strip(self, do_copy: bool = True) -> nn.Module:
            raise ModelError("no")

    monkeypatch.setitem(CONTROLLERS, "quantization", NeverStripped)
    settings = {"compression": {"algorithm": "quantization"}, "second_stage": None}
    (fault,) = error_of(Case(settings=settings), tmp_path).faults
    assert "With this model, magnitude_sparsity passes: set compression.algorithm to that." in fault


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = error_of(Case(settings=SPARSE), tmp_path / "file")
    assert len(error.faults) == 1
    assert error.faults[0].startswith(f"checkpoint: {tmp_path / 'file'}")


def test_independent_faults_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    both: dict[str, Any] = SPARSE | CASES["metric that misses the targets"].settings
    error = error_of(Case(CASES["operator without ONNX"].model, both), tmp_path / "file")
    assert [fault.split(":")[0].split(",")[0] for fault in error.faults] == [
        "metric in evaluation mode",
        "the baseline",
        "checkpoint",
    ]
    assert str(error).startswith("3 of 5 parts fail in the rehearsal")


def test_a_mistake_in_the_settings_is_told_as_such(tmp_path: Path) -> None:
    wrong = {"compression": {"algorithm": "magnitude_sparsity", "ignored_scopes": ["nowhere"]}, "second_stage": None}
    with pytest.raises(ConfigurationError, match="nowhere"):
        rehearsed(Case(settings=wrong), tmp_path)

"""What a later stage's file would gain by the objective, without training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import parse_compression
from kedro_aat.delivery import costs
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.gains import loss_of
from kedro_aat.errors import ExportError
from kedro_aat.export.measure import Latency
from kedro_aat.export.settings import ExportSettings
from tests.nets import Perceptron

INPUTS = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


def model() -> Perceptron:
    torch.manual_seed(0)
    return Perceptron([32, 256, 64, 4])


def stage(algorithm: str) -> ModelController:
    controller = build_controller(model(), parse_compression({"algorithm": algorithm}), example_input=INPUTS[:2])
    if hasattr(controller, "calibrate"):
        controller.calibrate([INPUTS])
    return controller


def loss(algorithm: str, objective: str, folder: Path | None = None, rate: float = 0.0) -> str | None:
    settings = ExportSettings.model_validate({"objective": objective, "latency_seconds": 0.05})
    return loss_of(model(), rate, stage(algorithm), 0.998, INPUTS, settings, FinishedSteps(folder))


@pytest.mark.parametrize(
    ("algorithm", "objective"),
    [
        *(("quantization", objective) for objective in ("bytes", "rate")),
        *(("magnitude_sparsity", objective) for objective in ("gzip_bytes", "rate")),
        *(("filter_pruning", objective) for objective in ("parameters", "macs")),
        pytest.param("quantization", "gzip_bytes", marks=pytest.mark.slow),
        pytest.param("filter_pruning", "bytes", marks=pytest.mark.slow),
    ],
)
def test_a_gain_is_no_loss(algorithm: str, objective: str) -> None:
    assert loss(algorithm, objective) is None


@pytest.mark.parametrize(
    ("algorithm", "objective", "words"),
    [
        ("magnitude_sparsity", "bytes", r"make the file 1x as large \(([\d,]+) bytes instead of \1 bytes\)"),
        ("magnitude_sparsity", "parameters", r"leave 1x as many parameters \(25,156 instead of 25,156\)"),
        ("quantization", "macs", r"leave 1x as many MACs \(24,832 instead of 24,832\)"),
    ],
)
def test_no_gain_is_said_in_numbers(algorithm: str, objective: str, words: str) -> None:
    found = loss(algorithm, objective)
    assert found is not None
    assert re.fullmatch(f"would {words}", found), found


def test_a_lower_rate_than_that_of_the_stage_before_is_no_gain() -> None:
    found = loss("magnitude_sparsity", "rate", rate=0.9985)
    assert found == "would leave 1.34x as much uncompressed (0.0020 instead of 0.0015)"


@pytest.mark.parametrize(
    ("times", "is_gain"),
    [
        ((2.0, 1.95), False),
        ((2.0, 1.8), True),
        pytest.param((2.0, 3.0), False, marks=pytest.mark.slow),
    ],
)
def test_only_a_clear_gain_in_latency_counts_and_a_resumed_run_decides_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, times: tuple[float, float], is_gain: bool
) -> None:
    def measure(files: Sequence[bytes], inputs: Tensor, **options: Any) -> list[dict[int, Latency]]:
        assert options == {"batch_sizes": [1], "num_threads": 1, "seconds": 0.05}
        return [{1: Latency(9.0, (9.0, 9.0), fastest)} for fastest in times]

    monkeypatch.setattr(costs, "measure_latency", measure)
    first = loss("quantization", "latency", tmp_path)
    assert (first is None) is is_gain
    if times[1] == 3:
        assert first == "would take 1.5x as long (3.000 ms instead of 2.000 ms)"
    monkeypatch.setattr(costs, "measure_latency", lambda *args, **options: pytest.fail("measured again"))
    assert loss("quantization", "latency", tmp_path) == first


def test_a_real_latency_is_measured() -> None:
    found = loss("magnitude_sparsity", "latency")  # the same operators on the same shapes
    assert found is None or re.fullmatch(r"would take \S+x as long \(0\.\d+ ms instead of 0\.\d+ ms\)", found)


def test_a_file_that_cannot_be_made_is_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise ExportError("no such operator")

    monkeypatch.setattr(costs, "files_of", fail)
    assert loss("quantization", "bytes") == "would make a file that cannot be used (no such operator)"


def test_the_controller_stays_as_it_is() -> None:
    controller = stage("magnitude_sparsity")
    settings = ExportSettings(objective="gzip_bytes")
    before = {name: tensor.clone() for name, tensor in controller.model.state_dict().items()}
    assert loss_of(model(), 0.0, controller, 0.998, INPUTS, settings, FinishedSteps()) is None
    assert controller.achieved_rate == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in controller.model.state_dict().items())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Perceptron([32, 64, 64, 4])

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        outputs: Tensor = self.body(left + right)
        return outputs


def test_a_model_of_several_inputs_may_gain(tmp_path: Path) -> None:
    inputs = {"left": INPUTS, "right": INPUTS}
    settings = parse_compression({"algorithm": "filter_pruning", "rate_of": "macs"})
    controller = build_controller(TwoInputs(), settings, example_input=inputs)
    objective = ExportSettings(objective="macs")
    assert loss_of(TwoInputs(), 0.0, controller, 0.5, inputs, objective, FinishedSteps(tmp_path)) is None

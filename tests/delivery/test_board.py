"""A second process as the user's device: it measures real files, and a delivery goes on if it dies."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from examples.device.measure import Board
from kedro_aat.budget import Budget
from kedro_aat.delivery.candidates import Candidate
from kedro_aat.delivery.deliver import deliver
from kedro_aat.delivery.files import Files
from kedro_aat.export.device import Measured
from kedro_aat.export.settings import ExportSettings
from kedro_aat.training.settings import TrainingSettings
from tests.boards import BoardProcess, lines_of, needs_linux
from tests.delivery.made_up import BASELINE, chosen, device, made, small_file
from tests.nets import Perceptron

pytestmark = needs_linux


class DyingBoard(Board):
    """A board that is killed before it gets a file."""

    def __init__(self, port: int, process: int, num_answers: int) -> None:
        super().__init__(port)
        self.process, self.num_left = process, num_answers

    def __call__(self, path: Path) -> Measured:
        if self.num_left == 0:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        self.num_left -= 1
        return super().__call__(path)


def test_a_process_as_the_board_measures_real_files(board: BoardProcess, tmp_path: Path) -> None:
    process, port = board
    for _ in range(2):
        measured = device({"class_path": "examples.device.measure.Board", "init_args": {"port": port}}, tmp_path)
        answer = measured.measured(small_file(1.0))
        assert answer.latency_ms
        assert answer.memory_bytes
    broken = Files(onnx.ModelProto())
    assert "RuntimeError: " in (measured.costs(broken).failure or "")
    # The second time the file was known; it was measured once more when the broken one failed.
    assert len(lines_of(process)) == 3


def dying(process: subprocess.Popen[str], port: int, num_answers: int) -> dict[str, Any]:
    arguments = {"port": port, "process": process.pid, "num_answers": num_answers}
    return {"class_path": f"{__name__}.DyingBoard", "init_args": arguments}


@pytest.mark.usefixtures("tools")
def test_a_delivery_goes_on_if_the_board_dies(board: BoardProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline, *contents = (small_file(number).onnx.SerializeToString() for number in range(3))
    monkeypatch.setattr(BASELINE, "on_device", baseline)
    first, second = (made(f"of {each} bytes", bytes=each) for each in (2000, 1000))
    for candidate, file in zip((first, second), contents, strict=True):
        candidate.model.on_device = file
    _, result = chosen(first, second, objective="device_memory", measure_with=dying(*board, num_answers=2))
    assert result.baseline.device is not None
    assert result.baseline.device.memory_bytes
    assert [bool(each.device and each.device.memory_bytes) for each in result.candidates] == [True, False]
    assert result.delivered == "of 1000 bytes"
    assert result.candidates[1].device is not None
    assert "Connection" in (result.candidates[1].device.failure or "")


@pytest.mark.slow
def test_real_files_are_delivered_if_the_board_dies(board: BoardProcess, caplog: pytest.LogCaptureFixture) -> None:
    data = {"inputs": torch.randn(16, 8), "targets": torch.zeros(16, dtype=torch.long)}
    metric = {"class_path": "torchmetrics.classification.MulticlassAccuracy", "init_args": {"num_classes": 2}}
    training = TrainingSettings.model_validate({"batch_size": 8, "optimizer": "torch.optim.SGD", "metric": metric})
    settings = ExportSettings.model_validate(
        {
            "targets": ["onnx"],
            "batch_sizes": [1],
            "dynamic_axes": {},
            "latency_seconds": 0.01,
            "measure_with": dying(*board, num_answers=1),
            "objective": "device_memory",
        }
    )
    candidates = [Candidate(f"width {width}", 1, Perceptron([8, width, 2]), 0.5) for width in (4, 8)]
    _, result = deliver(
        candidates,
        iter(()),
        Perceptron([8, 16, 2]),
        data,
        Budget(baseline=1.0, drop=1.0),
        training,
        settings,
        "The search ended.",
    )
    assert result.baseline.device is not None
    assert result.baseline.device.memory_bytes
    assert result.delivered == "width 4"
    assert "bytes decides instead of device_memory" in caplog.text

"""A whole call with a device in the loop: a second process as the board, which is asked once for each file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kedro_aat import compress
from kedro_aat.rehearsal import rehearse
from tests.boards import BoardProcess, lines_of, needs_linux
from tests.nets import Perceptron

pytestmark = needs_linux


@pytest.mark.parametrize("is_repeated", [pytest.param(True, marks=pytest.mark.slow), False])
def test_each_file_is_measured_once_from_the_rehearsal_to_the_delivery(
    is_repeated: bool, board: BoardProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, port = board
    if not is_repeated:
        monkeypatch.setattr(rehearse, "stages_of", lambda settings: [])  # they take seconds, and ask no device
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 8, generator=generator)
    data = inputs, (inputs.sum(1) > 0).long()
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "budget": 0.25,
        "epochs": 1,
        "folder": tmp_path,
        "compression": {"algorithm": "magnitude_sparsity"},
        "training": {"device": "cpu", "num_threads": 1, "baseline_check": "off"},
        "export": {
            "targets": ["onnx"],
            "batch_sizes": [1],
            "latency_seconds": 0.01,
            "dynamic_axes": {},
            "objective": "device_memory",
            "measure_with": {"class_path": "examples.device.measure.Board", "init_args": {"port": port}},
        },
    }
    model = Perceptron([8, 16, 2])
    result = compress(model, data, data, **arguments)
    devices = [result.summary.baseline.device, *(each.device for each in result.summary.candidates)]
    assert all(device is not None and device.memory_bytes for device in devices)
    if is_repeated:
        again = compress(model, data, data, **arguments)
        assert again.summary.baseline.device == result.summary.baseline.device
    assert len(lines_of(process)) == len(devices)

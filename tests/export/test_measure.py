"""Parameters, operations, latency and memory, as the report states them."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kedro_aat.compression.filters.costs import num_macs, num_parameters
from kedro_aat.errors import ExportError
from kedro_aat.export import measure
from kedro_aat.export.measure import arrays_of, measure_latency
from kedro_aat.export.memory import peak_memory
from kedro_aat.export.onnx_file import to_onnx
from tests.export.nets import Recurrent, residual_net


def test_parameters_are_counted_without_buffers() -> None:
    assert num_parameters(residual_net()) == 173_842
    assert num_parameters(nn.BatchNorm2d(5)) == 10


@pytest.mark.parametrize("batch_size", [1, 7])
def test_macs_of_a_convolution_match_the_formula(batch_size: int) -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    expected = (8 // 2) * (8 // 2) * 6 * (4 // 2) * 3 * 3
    assert num_macs(conv, torch.randn(batch_size, 4, 8, 8)) == expected


def test_macs_of_layers_that_pytorch_fuses() -> None:
    length, width, inner = 5, 8, 12
    projections, attention = 4 * length * width * width, 2 * length * length * width
    layer = nn.TransformerEncoderLayer(width, 2, inner, batch_first=True)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    assert num_macs(layer, torch.randn(2, length, width)) == (projections + attention + 2 * length * width * inner)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path

    recurrent = Recurrent(nn.LSTM(8, 6, batch_first=True))
    assert num_macs(recurrent, torch.randn(2, 5, 8)) == 5 * 4 * 6 * (8 + 6) + 6 * 3


def test_counting_does_not_change_the_model() -> None:
    model = residual_net()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    num_macs(model, torch.randn(2, 1, 8, 8))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_latency_is_measured_for_each_model_and_batch_size() -> None:
    small = nn.Linear(64, 64)
    large = nn.Sequential(nn.Linear(64, 4096), nn.Linear(4096, 64))
    example = torch.randn(3, 64)
    files = [to_onnx(model, example) for model in (small, large)]
    few, many = measure_latency([files[0], files[1].SerializeToString()], example, batch_sizes=(1, 16), seconds=0.2)
    assert list(few) == list(many) == [1, 16]
    assert few[1].fastest < many[1].fastest
    assert few[16].fastest < many[16].fastest
    for latency in (*few.values(), *many.values()):
        assert 0 < latency.fastest <= latency.quartiles[0] <= latency.median <= latency.quartiles[1]


def test_measuring_ends_after_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.count()
    # A clock that advances by 10 ms per reading, so that the test does not depend on the machine's speed.
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: 0.01 * next(readings)))
    file = to_onnx(nn.Linear(4, 4), torch.randn(1, 4))
    measure_latency([file, file], torch.randn(1, 4), batch_sizes=(1, 16), seconds=0.5)
    # 2 batch sizes, each in 5 sessions of 0.1 s: one reading at the start, and 10 or 11 until the deadline is over.
    assert 2 * 5 * 11 <= next(readings) <= 2 * 5 * 12


def test_latency_refuses_an_invalid_model() -> None:
    with pytest.raises(ExportError, match="onnxruntime cannot load"):
        measure_latency([b"not a model"], torch.randn(1, 4))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports it")
def test_peak_memory_grows_with_weights_and_batch() -> None:
    example = torch.randn(3, 64)
    small, large = (nn.Sequential(nn.Linear(64, width), nn.Linear(width, 64)) for width in (64, 65_536))
    small_peak, large_peak = (
        peak_memory(to_onnx(model, example).SerializeToString(), {size: arrays_of(example, size) for size in (256, 1)})
        for model in (small, large)
    )
    assert small_peak is not None
    assert large_peak is not None
    assert list(small_peak) == list(large_peak) == [1, 256]
    weights, activations = 2 * 64 * 65_536 * 4, 256 * 65_536 * 4  # bytes
    assert large_peak[1] - small_peak[1] > 0.9 * weights
    assert large_peak[256] - large_peak[1] > 0.9 * activations


def test_peak_memory_of_an_invalid_model_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    assert peak_memory(b"not a model", {1: [torch.randn(1, 4).numpy()]}) is None
    assert sys.platform != "linux" or "Peak memory could not be measured" in caplog.text

"""OpenVINO's files compute what the model computes, and are measured with the ONNX file. Needs the extra `openvino`."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from kedro_aat.datasets.exported import OpenvinoDataset
from kedro_aat.errors import ExportError
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.openvino_file import (
    CPU_OPTIONS,
    OpenvinoFiles,
    OpenvinoModel,
    compile_openvino,
    openvino_core,
    to_openvino,
)
from kedro_aat.export.session import paths_of
from kedro_aat.export.targets.openvino import from_files
from kedro_aat.export.verify import Agreement, verify_file
from tests.compression.quantization.quantized import quantized, settled
from tests.export.nets import residual_net
from tests.export.structured import CASES
from tests.nets import Perceptron

openvino = pytest.importorskip("openvino")

INPUTS = torch.randn(17, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def verify_openvino(
    files: OpenvinoFiles, model: nn.Module, inputs: Any, paths: dict[str, str] | None = None, tolerance: float = 1e-4
) -> Agreement:
    return verify_file("OpenVINO file", OpenvinoModel(files, paths), model, inputs, tolerance=tolerance)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return residual_net().eval()


@pytest.fixture(scope="module")
def onnx_file(net: nn.Module) -> onnx.ModelProto:
    return to_onnx(net, INPUTS)


@pytest.fixture(scope="module")
def files(onnx_file: onnx.ModelProto) -> OpenvinoFiles:
    return to_openvino(onnx_file)


def test_files_agree_with_the_model_at_any_batch_size(net: nn.Module, files: OpenvinoFiles) -> None:
    agreement = verify_openvino(files, net, INPUTS)
    assert agreement.difference < 1e-5
    assert agreement.same_labels == 1.0
    assert agreement.batch_sizes == (17, 1)
    with torch.no_grad():
        torch.testing.assert_close(OpenvinoModel(files)(INPUTS), net(INPUTS), rtol=1e-4, atol=1e-5)


def test_a_second_file_of_a_model_has_the_same_bytes(net: nn.Module, onnx_file: onnx.ModelProto) -> None:
    compile_openvino(to_openvino(onnx_file))  # which takes more of the numbers that OpenVINO counts through a process
    assert to_openvino(onnx_file) == to_openvino(to_onnx(net, INPUTS))


def test_weights_keep_their_precision(net: nn.Module, files: OpenvinoFiles) -> None:
    weights = sum(parameter.numel() for name, parameter in net.named_parameters() if parameter.ndim > 1)
    assert len(files.weights) >= 4 * weights
    compiled = compile_openvino(files, num_threads=2)
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2


def test_other_weights_are_detected(net: nn.Module, files: OpenvinoFiles) -> None:
    other = copy.deepcopy(net)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with pytest.raises(ExportError, match="the OpenVINO file differs from its model by"):
        verify_openvino(files, other, INPUTS)


def test_int8_weights_stay_int8() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(32, 20)
    model = settled(Perceptron([20, 256, 256, 4]), inputs)
    full = to_openvino(to_onnx(model, inputs))
    small = quantized(model, inputs).strip()
    int8 = to_openvino(to_onnx(small, inputs))
    assert len(int8.weights) < 0.3 * len(full.weights)
    assert verify_openvino(int8, small, inputs, tolerance=0.03).difference <= 0.03


def test_latency_is_measured_in_turns_with_onnxruntime(onnx_file: onnx.ModelProto, files: OpenvinoFiles) -> None:
    latencies = measure_latency([onnx_file, from_files(files, onnx_file)], INPUTS, batch_sizes=(1, 16), seconds=0.1)
    assert [list(latency) for latency in latencies] == [[1, 16], [1, 16]]
    assert all(0 < latency[1].fastest < latency[16].fastest for latency in latencies)


def test_invalid_files_are_an_error() -> None:
    with pytest.raises(ExportError, match="OpenVINO cannot load its files"):
        compile_openvino(OpenvinoFiles(b"neither", b"nor"))


def test_openvino_reads_what_the_dataset_wrote(net: nn.Module, files: OpenvinoFiles, tmp_path: Path) -> None:
    OpenvinoDataset(filepath=str(tmp_path / "model.xml")).save(files)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == files.num_bytes
    # Without the product's options, a CPU with bf16 instructions would round to bf16.
    compiled = openvino_core().compile_model(tmp_path / "model.xml", "CPU", CPU_OPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(compiled(INPUTS.numpy())[0]), net(INPUTS), rtol=1e-4, atol=1e-5)


def test_signals_are_handled_after_models_are_deleted(files: OpenvinoFiles, tmp_path: Path) -> None:
    OpenvinoDataset(filepath=str(tmp_path / "model.xml")).save(files)
    script = f"""
import os, signal, sys
sys.modules["openvino_telemetry"] = None
from kedro_aat.datasets.exported import OpenvinoDataset
from kedro_aat.export.openvino_file import compile_openvino
files = OpenvinoDataset(filepath={str(tmp_path / "model.xml")!r}).load()
first, second = compile_openvino(files), compile_openvino(files)
del first
del second
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (0, "handled\n"), process.stderr


@pytest.mark.parametrize("name", CASES)
def test_any_tensors_are_taken_and_returned(name: str) -> None:
    torch.manual_seed(0)
    kind, inputs, _, _ = CASES[name]
    model = kind().eval()
    file = to_onnx(model, inputs)
    verify_openvino(to_openvino(file), model, inputs, paths=paths_of(file))

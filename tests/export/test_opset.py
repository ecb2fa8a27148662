"""The opset and IR version of a file, and the oldest onnxruntime that loads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.settings import Quantization
from kedro_aat.errors import ExportError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.opset import lower_ir_version, oldest_onnxruntime, opset_of
from kedro_aat.export.settings import FileSettings
from kedro_aat.export.verify import verify_onnx
from tests.export.nets import residual_net
from tests.export.structured import Encoder, mask, words

# Loads each file and runs it on ones.
RUN = """
import sys
import numpy as np
import onnxruntime
types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sizes = [[size if isinstance(size, int) else 8 for size in node.shape] for node in session.get_inputs()]
    feed = {node.name: np.ones(size, types[node.type]) for node, size in zip(session.get_inputs(), sizes)}
    assert all(np.isfinite(array).all() for array in session.run(None, feed))
"""


def minimal(opset: int, ir_version: int = 8) -> onnx.ModelProto:
    value = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy"}
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [value["x"]], [value["y"]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


@pytest.mark.parametrize(
    ("opset", "ir_version", "oldest"),
    [
        (13, 7, "1.15"),
        (19, 9, "1.15"),
        (20, 9, "1.17"),
        (18, 10, "1.18"),
        (22, 10, "1.21"),
        (23, 11, "1.23"),
        (18, 12, "1.24"),
        (24, 12, "1.24"),
        (26, 13, "1.25"),
        (99, 8, None),
        (18, 99, None),
    ],
)
def test_the_later_of_opset_and_ir_version_decides(opset: int, ir_version: int, oldest: str | None) -> None:
    assert oldest_onnxruntime(minimal(opset, ir_version)) == oldest


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 8), (19, 9), (20, 9), (21, 10)])
def test_the_ir_version_is_the_lowest_that_the_opset_allows(opset: int, ir_version: int) -> None:
    model = minimal(opset, 13)
    lower_ir_version(model)
    assert model.ir_version == ir_version


def test_types_raise_the_ir_version() -> None:
    model = minimal(18, 13)
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, [1], [1.0]))
    lower_ir_version(model)
    assert model.ir_version == 9


def test_a_file_has_the_oldest_opset_unless_another_is_asked_for() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8)).eval(), torch.randn(3, 4)
    assert (opset_of(to_onnx(model, x)), oldest_onnxruntime(to_onnx(model, x))) == (18, "1.15")
    for opset in (17, 20):
        file = to_onnx(model, x, FileSettings(opset=opset))
        assert opset_of(file) == opset
        verify_onnx(file, model, x, tolerance=1e-5)


def test_an_opset_that_lacks_an_operator_is_refused() -> None:
    with pytest.raises(ExportError, match=r"opset 13 \(export\.opset\)"):
        to_onnx(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), torch.randn(3, 4), FileSettings(opset=13))


def quantized() -> nn.Module:
    controller = build_controller(residual_net(), Quantization(algorithm="quantization"))
    assert isinstance(controller, QuantizationController)
    controller.calibrate([torch.randn(16, 1, 8, 8)])
    controller.compression_rate = 0.995
    return controller.strip().eval()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.15.1", "1.17.3", "1.18.1"])
def test_old_versions_of_onnxruntime_load_what_the_table_says(tmp_path: Path, version: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    packages = [f"onnxruntime=={version}", "numpy<2"]
    installed = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True, check=False)
    if installed.returncode:
        pytest.skip(f"onnxruntime {version} cannot be installed here")
    (script := tmp_path / "run.py").write_text(RUN)

    def loads(name: str, model: onnx.ModelProto) -> bool:
        (path := tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
        return not subprocess.run([python, script, path], capture_output=True, check=False).returncode

    as_numbers = tuple(map(int, version.split(".")[:2]))
    for opset, ir_version in ((19, 9), (20, 9), (18, 10), (21, 10), (22, 10), (23, 11)):
        model = minimal(opset, ir_version)
        oldest = oldest_onnxruntime(model)
        assert oldest is not None
        assert loads(f"minimal_{opset}_{ir_version}", model) == (as_numbers >= tuple(map(int, oldest.split("."))))

    images, text = torch.randn(4, 1, 8, 8), {"input_ids": words(), "attention_mask": mask()}
    transformer = nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True)
    files = {
        "dense": to_onnx(residual_net(), images),
        "int8": to_onnx(quantized(), images),
        "text": to_onnx(Encoder(), text),
        "transformer": to_onnx(transformer, torch.randn(4, 8, 8)),
    }
    for name, file in files.items():
        assert oldest_onnxruntime(file) == "1.15", name
        assert loads(name, file), name

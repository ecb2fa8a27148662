"""Measures the files of finished models: accuracy, size, operators and latency."""

from __future__ import annotations

import collections
import functools
import io
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
import torch._inductor.config
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from benchmarks.qat.engines import FLOAT, Split
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.onnx_file import to_onnx

Cells = dict[str, dict[str, str]]  # row -> engine -> text

BATCH_SIZES = (1, 64)
RUNS_PER_TURN = 10
INTEGER_OPERATORS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "QLinearAdd", "QLinearMul")
FLOAT_OPERATORS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add")


def in_turns(runs: Mapping[str, Callable[[], object]], seconds: float, repeats: int) -> list[dict[str, float]]:
    """Milliseconds per call of each of `runs`, turn by turn; every other turn goes through them backwards."""
    turns: list[dict[str, float]] = []
    deadline = time.perf_counter() + seconds
    while len(turns) < 7 or time.perf_counter() < deadline:
        turn = {}
        for name in list(runs)[:: 1 if len(turns) % 2 else -1]:
            started = time.perf_counter()
            for _ in range(repeats):
                runs[name]()
            turn[name] = 1e3 * (time.perf_counter() - started) / repeats
        turns.append(turn)
    return turns


def session_of(file: onnx.ModelProto, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])


def judge(file: onnx.ModelProto, data: Split) -> tuple[float, float]:
    """Accuracy and cross entropy of an ONNX file in onnxruntime."""
    (logits,) = session_of(file).run(None, {"input": data["inputs"].numpy()})
    outputs, targets = torch.from_numpy(logits), data["targets"]
    return float((outputs.argmax(1) == targets).double().mean()), float(F.cross_entropy(outputs, targets))


def int8_weights(file: onnx.ModelProto) -> list[Tensor]:
    tensors = [tensor for tensor in file.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    return [torch.tensor(numpy_helper.to_array(tensor)) for tensor in tensors if len(tensor.dims) > 1]


def operators(file: onnx.ModelProto) -> dict[str, str]:
    """What onnxruntime makes of the layers and additions of a file: operators on integers, and on floats."""
    with tempfile.TemporaryDirectory() as folder:
        session_of(file, Path(folder) / "optimized.onnx")
        counts = collections.Counter(node.op_type for node in onnx.load(Path(folder) / "optimized.onnx").graph.node)
    rows = {"onnxruntime, integer": INTEGER_OPERATORS, "onnxruntime, float": FLOAT_OPERATORS}
    return {row: ", ".join(f"{counts[name]} {name}" for name in names if counts[name]) for row, names in rows.items()}


def compare_files(models: Mapping[str, nn.Module], example: Tensor, seconds: float) -> Cells:
    """Sizes, operators and latencies of the ONNX and the `.pt2` files; ratios to those of the float32 model."""
    files = {name: to_onnx(model, example) for name, model in models.items()}
    cells: Cells = {"ONNX, bytes": {name: f"{file.ByteSize():,}" for name, file in files.items()}}
    cells["ONNX, int8 weights"] = {
        name: f"{sum(weight.numel() for weight in int8_weights(file)):,}" for name, file in files.items()
    }
    for name, file in files.items():
        for row, text in operators(file).items():
            cells.setdefault(row, {})[name] = text or "-"
    times = dict(
        zip(
            files, measure_latency(list(files.values()), example, batch_sizes=BATCH_SIZES, seconds=seconds), strict=True
        )
    )
    for size in BATCH_SIZES:
        cells[f"ONNX, batch {size}"] = {
            name: f"{latency[size].fastest:.3f} ms  {latency[size].fastest / times[FLOAT][size].fastest:.2f}x"
            for name, latency in times.items()
        }
    programs: dict[str, Any] = {}
    for name, model in models.items():
        with torch.no_grad(), io.BytesIO() as written:
            program = torch.export.export(model, (example[:2],), dynamic_shapes=({0: Dim("batch")},))
            torch.export.save(program, written)
            cells.setdefault(".pt2, bytes", {})[name] = f"{len(written.getvalue()):,}"
            written.seek(0)
            programs[name] = torch.export.load(written).module()
    # torchao's documentation asks for freezing: without it inductor computes in float32.
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        for kind, size in [(kind, size) for kind in ("eager", "compiled") for size in BATCH_SIZES]:
            torch._dynamo.reset()
            batch = example[:size]
            calls = {name: torch.compile(run) if kind == "compiled" else run for name, run in programs.items()}
            runs = {name: functools.partial(call, batch) for name, call in calls.items()}
            for run in runs.values():
                run()
            turns = in_turns(runs, seconds, RUNS_PER_TURN)
            fastest = {name: min(turn[name] for turn in turns) for name in runs}
            cells[f".pt2 {kind}, batch {size}"] = {
                name: f"{value:.3f} ms  {value / fastest[FLOAT]:.2f}x" for name, value in fastest.items()
            }
    return cells

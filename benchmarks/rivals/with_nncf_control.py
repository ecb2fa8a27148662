"""NNCF 3: `quantize_with_accuracy_control`, its accuracy budget without training, on the baseline's ONNX file."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import nncf
import onnx
import onnxruntime

from benchmarks.rivals.task import read_job, report, to_onnx


def main() -> None:
    job = read_job()
    started = time.perf_counter()
    to_onnx(job.model, job, job.folder / "baseline.onnx")
    inputs, targets = job.validation
    batches = [(x.numpy(), y.numpy()) for x, y in zip(inputs.split(50), targets.split(50), strict=True)]

    def validate(model: Any, examples: Iterable[tuple[Any, Any]]) -> tuple[float, list[float]]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        right = [float((session.run(None, {"x": x})[0].argmax(1) == y).mean()) for x, y in examples]
        return sum(right) / len(right), right

    calibration = nncf.Dataset([x for x, _ in batches], lambda x: {"x": x})
    quantized = nncf.quantize_with_accuracy_control(
        onnx.load(job.folder / "baseline.onnx"),
        calibration,
        nncf.Dataset(batches),
        validate,
        max_drop=job.max_drop,
    )
    onnx.save(quantized, job.folder / "model.onnx")
    report(job, started, "int8 without training")


if __name__ == "__main__":
    main()

"""Settings of the export: how files are verified and measured, and which one is delivered."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from kedro_aat.validated import Settings

Objective = Literal["bytes", "gzip_bytes", "latency", "parameters", "macs", "rate"]


class Limits(Settings):
    """Limits that the delivered file must meet in addition to the accuracy budget; None means no limit.

    Attributes:
        onnx_bytes: Maximal size of the ONNX file in bytes.
        parameters: Maximal number of parameters.
        macs: Maximal number of multiply-accumulate operations per example.
        latency_ms: Batch size -> maximal median time of one run in milliseconds. The batch sizes must be among
            `ExportSettings.batch_sizes`.
    """

    onnx_bytes: Annotated[int, Field(ge=1)] | None = None
    parameters: Annotated[int, Field(ge=1)] | None = None
    macs: Annotated[int, Field(ge=1)] | None = None
    latency_ms: dict[int, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)


def _bounded_by_processors(number: int) -> int:
    most = max(_USUAL_THREADS, os.cpu_count() or 1)
    if number > most:
        raise ValueError(f"must be at most {most} on this machine with {os.cpu_count()} processors, but got {number}")
    return number


# Far more threads than processors stop everything. On 2 processors, onnxruntime opens a small model with 256 threads in
# 3 s and with 1024 not within a minute, and torch with 1024 is 50 times as slow.
_USUAL_THREADS = 64
NumThreads = Annotated[int, Field(ge=1, le=1024), AfterValidator(_bounded_by_processors)]


class ExportSettings(Settings):
    """How the exported files are verified and measured, and which one is delivered.

    Attributes:
        tolerance: Maximal difference between the outputs of a file and those of its torch model, as a fraction of
            the largest output.
        quantized_tolerance: Maximal difference for the files of a quantized model, as a fraction of the largest
            output.
        batch_sizes: Batch sizes at which latency is measured.
        num_threads: Number of threads that onnxruntime and OpenVINO use while latency is measured, at most 64 or as
            many as there are processors.
        latency_seconds: Time in seconds to measure each batch size; more time gives more precise results.
        objective: Property by which the delivered file is chosen from those within budget. Latency is the time of
            the fastest turn at the first of `batch_sizes`, `gzip_bytes` the size of the gzipped ONNX file, as a
            download or an update over the air takes it; only there do zeros take less.
        limits: Limits that the file must meet in addition to the budget.
        openvino: Whether the ONNX file is also converted to OpenVINO's files, which are then judged and measured
            like it; needs the extra `kedro-aat[openvino]`.
    """

    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    quantized_tolerance: Annotated[float, Field(gt=0)] = 0.1
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(min_length=1, max_length=32)] = (
        1,
        64,
    )
    num_threads: NumThreads = 1
    latency_seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0
    objective: Objective = "bytes"
    limits: Limits = Limits()
    openvino: bool = False

    @field_validator("limits")
    @classmethod
    def _limits_are_measured(cls, limits: Limits, info: ValidationInfo) -> Limits:
        measured = info.data.get("batch_sizes", limits.latency_ms)  # invalid batch sizes are reported on their own
        if missing := [size for size in limits.latency_ms if size not in measured]:
            raise ValueError(
                f"latency_ms limits batch sizes that are not measured: {missing}; add them to batch_sizes, "
                f"which are {list(measured)}"
            )
        return limits

    def lookup_mistakes(self, key: str) -> list[str]:
        """Report OpenVINO if it is switched on but not installed."""
        mistakes = super().lookup_mistakes(key)
        if self.openvino:
            try:
                import_module("openvino")
            except ImportError as error:
                mistakes.append(
                    f"{key}.openvino: OpenVINO cannot be imported ({error}); install it with "
                    "`pip install openvino`, or set this to false"
                )
        return mistakes

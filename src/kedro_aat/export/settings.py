"""Settings of the export: how files are checked and measured, and which of them is delivered."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from kedro_aat.validated import Settings

Objective = Literal["bytes", "latency", "parameters", "macs", "rate"]


class Limits(Settings):
    """What the delivered file must keep beside the accuracy budget; None for no limit.

    Attributes:
        onnx_bytes: Largest size of the ONNX file.
        parameters: Most parameters.
        macs: Most multiply-accumulate operations for one example.
        latency_ms: Batch size -> longest median time of a run, in milliseconds; the batch sizes are among
            `ExportSettings.batch_sizes`.
    """

    onnx_bytes: Annotated[int, Field(ge=1)] | None = None
    parameters: Annotated[int, Field(ge=1)] | None = None
    macs: Annotated[int, Field(ge=1)] | None = None
    latency_ms: dict[int, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)


class ExportSettings(Settings):
    """How the exported files are checked and measured, and which is delivered.

    Attributes:
        tolerance: Largest difference to the torch model's outputs, relative to the largest output.
        quantized_tolerance: The same of a quantized model's files.
        batch_sizes: At which latency is measured.
        num_threads: That onnxruntime and OpenVINO may use meanwhile.
        latency_seconds: Time for measuring each batch size; more time, more precise.
        objective: By which the file to deliver is chosen among those that keep the budget; latency is that of the
            fastest turn at the first of `batch_sizes`.
        limits: What the file must keep beside the budget.
        openvino: Whether OpenVINO's files are made of the ONNX file, and judged and measured like it; needs the
            extra `kedro-aat[openvino]`.
    """

    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    quantized_tolerance: Annotated[float, Field(gt=0)] = 0.1
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 64)
    num_threads: Annotated[int, Field(ge=1)] = 1
    latency_seconds: Annotated[float, Field(gt=0)] = 5.0
    objective: Objective = "bytes"
    limits: Limits = Limits()
    openvino: bool = False

    @field_validator("limits")
    @classmethod
    def _of_what_is_measured(cls, limits: Limits, given: ValidationInfo) -> Limits:
        measured = given.data.get("batch_sizes", limits.latency_ms)  # mistaken ones are a mistake of their own
        if missing := [size for size in limits.latency_ms if size not in measured]:
            raise ValueError(
                f"latency_ms limits batch sizes that are not measured: {missing}; add them to batch_sizes, "
                f"which are {list(measured)}"
            )
        return limits

    def lookup_mistakes(self, key: str) -> list[str]:
        """OpenVINO asked for, and not there."""
        mistakes = super().lookup_mistakes(key)
        if self.openvino:
            try:
                import_module("openvino")
            except ImportError as error:
                mistakes.append(
                    f"{key}.openvino: OpenVINO cannot be imported ({error}); install it with "
                    "`pip install 'kedro-aat[openvino]'`, or set this to false"
                )
        return mistakes

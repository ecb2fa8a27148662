"""Settings of the export: how files are verified and measured, and which one is delivered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from kedro_aat.errors import ExportError
from kedro_aat.export.described import CardSettings, Preprocessing
from kedro_aat.validated import Settings

Objective = Literal["bytes", "gzip_bytes", "latency", "parameters", "macs", "rate"]
TargetName = Literal["onnx", "pt2", "openvino", "executorch", "litert"]


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


AxisNames = dict[int, Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]] | tuple[int, ...]


class FileSettings(Settings):
    """What the exported files take and return, and which runtimes load them.

    Attributes:
        dynamic_axes: Name of an input -> its axes that may have any size, as a list of numbers or as number -> name.
            The first axis of the batch's tensors always may. By default, every axis may that the model is indifferent
            to, which is found by trying; `{}` leaves it at the batch.
        input_names: Names of the file's inputs, one for each tensor that the model takes; by default the names of the
            parameters of its `forward`, or the keys of a mapping, and `input` for a single tensor.
        outputs: The outputs that the file returns, by their names, such as `logits`; by default all.
        output_names: Names of the file's outputs; by default the keys of a mapping or the fields of a dataclass,
            `output.0`, `output.1` ... for a tuple, and `output` for a single tensor.
        opset: Version of ONNX's operators; by default the oldest that the exporter has for the model, usually 18, which
            onnxruntime 1.15 loads. An opset below 18 is converted to.
    """

    dynamic_axes: dict[str, AxisNames] | None = None
    input_names: tuple[str, ...] | None = None
    outputs: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    output_names: tuple[str, ...] | None = None
    opset: Annotated[int, Field(ge=13, le=26)] | None = None

    def axes_among(self, inputs: Mapping[str, int]) -> dict[str, dict[int, str | None]] | None:
        """The axes that were asked for, with their names; None if they are to be found.

        Args:
            inputs: Name of each input -> number of its axes; they may go by the names in `input_names`, too.

        Raises:
            ExportError: If there is no such input or axis.
        """
        if self.dynamic_axes is None:
            return None
        own = dict(zip(self.input_names or inputs, inputs, strict=False))
        asked: dict[str, dict[int, str | None]] = {}
        for given, axes in self.dynamic_axes.items():
            name = given if given in inputs else own.get(given, given)
            if name not in inputs:
                raise ExportError(f"export.dynamic_axes names {given}, but the inputs are {', '.join(inputs)}.")
            named = dict(axes) if isinstance(axes, dict) else dict.fromkeys(axes)
            if wrong := [axis for axis in named if not -inputs[name] <= axis < inputs[name]]:
                raise ExportError(
                    f"export.dynamic_axes names axis {wrong[0]} of {name}, which has {inputs[name]} axes."
                )
            asked[name] = {axis % inputs[name]: label for axis, label in named.items()}
        return asked


class ExportSettings(FileSettings):
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
        card: What the model card says beside what the run knows.
        preprocessing: How the file's inputs are prepared: for the model card and, on request, for a second ONNX file
            that takes raw numbers. None says nothing of it.
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
    card: CardSettings = CardSettings()
    preprocessing: Preprocessing | None = None

    # What these say changes no file that is judged and measured.
    UNJUDGED: ClassVar = {"objective", "limits", "card", "preprocessing"}

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

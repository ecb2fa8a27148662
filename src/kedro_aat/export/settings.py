"""Settings of the export: how files are verified and measured, and which one is delivered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from kedro_aat.errors import ExportError
from kedro_aat.export.described import CardSettings, Preprocessing
from kedro_aat.export.device import DeviceProperty, call_mistakes
from kedro_aat.export.targets.executorch_settings import ExecutorchSettings
from kedro_aat.export.targets.litert_settings import LitertSettings
from kedro_aat.export.targets.registry import TARGETS, TargetName, missing
from kedro_aat.imports import ImportedOrPath
from kedro_aat.validated import Settings, each_once

Objective = Literal["bytes", "gzip_bytes", "latency", "parameters", "macs", "rate", "device_latency", "device_memory"]


def _batch_size(value: Any) -> Any:
    """The number of `batch 1`."""
    return value.removeprefix("batch ") if isinstance(value, str) else value


class TargetObjective(Settings):
    """The file of one target decides: by its latency if a batch size is named, by what the device says, or its bytes.

    Attributes:
        target: The target.
        latency_ms: Batch size at which its latency decides, as `1` or `batch 1`, one of `ExportSettings.batch_sizes`;
            None for another property.
        device: Property that `ExportSettings.measure_with` measures and that decides; None for another one.
    """

    target: TargetName
    latency_ms: Annotated[int, Field(ge=1), BeforeValidator(_batch_size)] | None = None
    device: Literal["latency", "memory"] | None = None

    @field_validator("device")
    @classmethod
    def _is_the_only_property(cls, device: str | None, info: ValidationInfo) -> str | None:
        if device is not None and info.data.get("latency_ms") is not None:
            raise ValueError("must not be set beside latency_ms: one property decides; remove one of them")
        return device


def device_property(objective: Objective | TargetObjective) -> DeviceProperty | None:
    """What an objective needs of the device; None if it needs nothing."""
    name = objective.device and f"device_{objective.device}" if isinstance(objective, TargetObjective) else objective
    known: dict[str | None, DeviceProperty] = {"device_latency": "latency_ms", "device_memory": "memory_bytes"}
    return known.get(name)


def local_objective(objective: Objective | TargetObjective, batch_size: int) -> Objective | TargetObjective:
    """The objective that decides where the device fails: latency that is measured here, or bytes instead of memory.

    Args:
        objective: The objective.
        batch_size: Batch size at which latency decides.
    """
    if (name := device_property(objective)) is None:
        return objective
    if isinstance(objective, TargetObjective):
        return TargetObjective(target=objective.target, latency_ms=batch_size if name == "latency_ms" else None)
    return "latency" if name == "latency_ms" else "bytes"


def _form(value: Any) -> str:
    return "property" if isinstance(value, str) else "file"


# With a tag, a mistake is reported for the form that was meant, not for both.
ObjectiveOrTarget = Annotated[
    Annotated[Objective, Tag("property")] | Annotated[TargetObjective, Tag("file")], Discriminator(_form)
]


class TargetLimits(Settings):
    """Limits of the file of one target; None means no limit.

    Attributes:
        bytes: Maximal size of its files in bytes.
        arena_bytes: Maximal memory that the file's plan takes, where the target plans one.
        latency_ms: Batch size -> maximal median time of one run in milliseconds.
    """

    bytes: Annotated[int, Field(ge=1)] | None = None
    arena_bytes: Annotated[int, Field(ge=1)] | None = None
    latency_ms: dict[int, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)


class Limits(Settings):
    """Limits that the delivered file must meet in addition to the accuracy budget; None means no limit.

    Attributes:
        onnx_bytes: Maximal size of the ONNX file in bytes.
        parameters: Maximal number of parameters.
        macs: Maximal number of multiply-accumulate operations per example.
        latency_ms: Batch size -> maximal median time of one run in milliseconds. The batch sizes must be among
            `ExportSettings.batch_sizes`.
        targets: Name of a target -> limits of its file.
        device_latency_ms: Maximal time of one run in milliseconds, as `ExportSettings.measure_with` measures it.
        device_memory_bytes: Maximal memory in bytes, as `ExportSettings.measure_with` measures it.
    """

    onnx_bytes: Annotated[int, Field(ge=1)] | None = None
    parameters: Annotated[int, Field(ge=1)] | None = None
    macs: Annotated[int, Field(ge=1)] | None = None
    latency_ms: dict[int, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    targets: dict[TargetName, TargetLimits] = Field(default_factory=dict)
    device_latency_ms: Annotated[float, Field(gt=0)] | None = None
    device_memory_bytes: Annotated[int, Field(ge=1)] | None = None

    @property
    def of_device(self) -> dict[DeviceProperty, float]:
        """The limits of what the device measures, by its name there."""
        limits: dict[DeviceProperty, float | None] = {
            "latency_ms": self.device_latency_ms,
            "memory_bytes": self.device_memory_bytes,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}

    @property
    def sizes(self) -> list[int]:
        """Batch sizes whose latency is limited, for any target."""
        limited = [self.latency_ms, *(limits.latency_ms for limits in self.targets.values())]
        return sorted({size for latencies in limited for size in latencies})


def _bounded_by_processors(number: int) -> int:
    most = max(_USUAL_THREADS, os.cpu_count() or 1)
    if number > most:
        raise ValueError(f"must be at most {most} on this machine with {os.cpu_count()} processors, but got {number}")
    return number


# Far more threads than processors stop everything. On 2 processors, onnxruntime opens a small model with 256 threads in
# 3 s and with 1024 not within a minute, and torch with 1024 is 50 times as slow.
_USUAL_THREADS = 64
NumThreads = Annotated[int, Field(ge=1, le=1024), AfterValidator(_bounded_by_processors)]


NamesOnce = Annotated[tuple[str, ...], AfterValidator(each_once)]
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
    input_names: NamesOnce | None = None
    outputs: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(each_once)] | None = None
    output_names: NamesOnce | None = None
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
        targets: What the model is written for: `onnx`, which every run needs, `pt2`, `openvino`, `executorch` and
            `litert`. All files of a model must keep the budget, and are measured. A target beside ONNX and `.pt2` needs
            the extra of its name, such as `kedro-aat[executorch]`. A target that `objective` or `limits` names is
            written, too, without being listed here.
        objective: Property by which the delivered file is chosen from those within budget. Latency is the time of
            the fastest turn at the first of `batch_sizes`, `gzip_bytes` the size of the gzipped ONNX file, as a
            download or an update over the air takes it; only there do zeros take less. `{target: executorch}` chooses
            by the bytes of that target's file, `{target: executorch, latency_ms: 1}` by its latency at batch 1; that
            file is then the one that is certified. `device_latency` and `device_memory` are what `measure_with`
            measures, `{target: executorch, device: latency}` the same of another target's file.
        measure_with: Function that measures a file on a device: it takes the path of the file, and returns
            `kedro_aat.export.device.Measured`. A class is built, and called with the path. It gets the ONNX file, or
            that of the target which `objective` names. None measures on no device.
        limits: Limits that the file must meet in addition to the budget.
        card: What the model card says beside what the run knows.
        preprocessing: How the file's inputs are prepared: for the model card and, on request, for a second ONNX file
            that takes raw numbers. None says nothing of it.
        openvino: True is the older way to name `openvino` among the targets.
        executorch: How the file of the target `executorch` is lowered.
        litert: What the file of the target `litert` takes and returns.
    """

    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    quantized_tolerance: Annotated[float, Field(gt=0)] = 0.1
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65_536)], ...],
        Field(min_length=1, max_length=32),
        AfterValidator(each_once),
    ] = (1, 64)
    num_threads: NumThreads = 1
    latency_seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0
    targets: Annotated[tuple[TargetName, ...], AfterValidator(each_once)] = ("onnx", "pt2")
    measure_with: ImportedOrPath | None = None
    objective: ObjectiveOrTarget = "bytes"
    limits: Limits = Limits()
    openvino: bool = False
    executorch: ExecutorchSettings = ExecutorchSettings()
    litert: LitertSettings = LitertSettings()
    card: CardSettings = CardSettings()
    preprocessing: Preprocessing | None = None

    # What these say changes no file that is judged and measured.
    UNJUDGED: ClassVar = {"measure_with", "objective", "limits", "card", "preprocessing"}

    @field_validator("targets")
    @classmethod
    def _targets_have_onnx(cls, targets: tuple[TargetName, ...]) -> tuple[TargetName, ...]:
        if "onnx" not in targets:
            raise ValueError("must name onnx, in whose file zeros are counted; add it")
        return targets

    @field_validator("objective")
    @classmethod
    def _objective_is_measured(
        cls, objective: Objective | TargetObjective, info: ValidationInfo
    ) -> Objective | TargetObjective:
        size = getattr(objective, "latency_ms", None)
        if size is not None and size not in info.data.get("batch_sizes", (size,)):
            raise ValueError(f"latency_ms names batch {size}, which is not measured; add it to batch_sizes")
        if isinstance(objective, TargetObjective) and objective.target == "pt2":
            raise ValueError("must name another target than pt2, whose files are not measured; name onnx")
        if device_property(objective) is not None and info.data.get("measure_with", ...) is None:
            raise ValueError("needs export.measure_with, which measures files on the device, but got none")
        return objective

    @field_validator("limits")
    @classmethod
    def _limits_are_measured(cls, limits: Limits, info: ValidationInfo) -> Limits:
        measured = info.data.get("batch_sizes", limits.sizes)  # invalid batch sizes are reported on their own
        if unmeasured := [size for size in limits.sizes if size not in measured]:
            raise ValueError(
                f"latency_ms limits batch sizes that are not measured: {unmeasured}; add them to batch_sizes, "
                f"which are {list(measured)}"
            )
        if own := {"onnx", "pt2"} & limits.targets.keys():
            raise ValueError(
                f"targets names {' and '.join(sorted(own))}; onnx_bytes and latency_ms limit the ONNX file, and that "
                "of .pt2 has no limits"
            )
        if limits.of_device and info.data.get("measure_with", ...) is None:
            names = " and ".join(f"device_{name}" for name in limits.of_device)
            raise ValueError(f"{names} needs export.measure_with, which measures files on the device, but got none")
        return limits

    @property
    def more_targets(self) -> tuple[TargetName, ...]:
        """The targets beside ONNX and `.pt2`, in the order of the settings that name them."""
        named = [*self.targets, *(["openvino"] if self.openvino else []), self.shipped, *self.limits.targets]
        return tuple(name for name in dict.fromkeys(named) if name not in ("onnx", "pt2"))  # type: ignore[misc]

    def places_of(self, target: TargetName) -> list[str]:
        """The settings that ask for a target's file, such as `targets` and `objective`.

        Args:
            target: Name of the target.
        """
        named = {
            "targets": target in self.targets,
            "openvino": self.openvino and target == "openvino",
            "objective": self.shipped == target != "onnx",
            "limits.targets": target in self.limits.targets,
        }
        return [place for place, is_there in named.items() if is_there]

    @property
    def added_targets(self) -> list[str]:
        """A sentence for each target that `targets` does not list and another setting asks for."""
        return [
            f"export.{' and export.'.join(self.places_of(name))} names {name}, so that its file is written as well, "
            "though export.targets does not list it."
            for name in self.more_targets
            if name not in self.targets
        ]

    @property
    def shipped(self) -> TargetName:
        """The target whose file decides, and is certified."""
        return self.objective.target if isinstance(self.objective, TargetObjective) else "onnx"

    @property
    def objective_kind(self) -> Objective:
        """The property that decides, whatever the target."""
        if not isinstance(self.objective, TargetObjective):
            return self.objective
        if self.objective.device is not None:
            return "device_latency" if self.objective.device == "latency" else "device_memory"
        return "bytes" if self.objective.latency_ms is None else "latency"

    @property
    def objective_words(self) -> str:
        """The objective in a few words, such as `latency for LiteRT`."""
        return self.objective_kind + ("" if self.shipped == "onnx" else f" for {TARGETS[self.shipped].title}")

    @property
    def objective_batch_size(self) -> int:
        """The batch size at which latency decides."""
        size = self.objective.latency_ms if isinstance(self.objective, TargetObjective) else None
        return self.batch_sizes[0] if size is None else size

    def timed_batch_sizes(self, target: TargetName) -> list[int]:
        """Batch sizes at which the latency of a target's file decides or is limited.

        Args:
            target: A target beside ONNX.
        """
        limited = self.limits.targets.get(target, TargetLimits()).latency_ms
        is_timed = self.without_device.objective_kind == "latency" and self.shipped == target
        return sorted({*limited, *([self.objective_batch_size] if is_timed else [])})

    @property
    def device_needs(self) -> set[DeviceProperty]:
        """What the objective and the limits need of the device."""
        needed = device_property(self.objective)
        return self.limits.of_device.keys() | ({needed} if needed else set())

    @property
    def without_device(self) -> ExportSettings:
        """The settings that decide where the device fails: by latency or bytes that are measured here."""
        if device_property(self.objective) is None:
            return self
        return self.model_copy(update={"objective": local_objective(self.objective, self.objective_batch_size)})

    def lookup_mistakes(self, key: str) -> list[str]:
        """Reports targets that are not installed, and a function that cannot measure files."""
        mistakes = super().lookup_mistakes(key)
        if self.measure_with is not None and not any(each.startswith(f"{key}.measure_with") for each in mistakes):
            mistakes += call_mistakes(self.measure_with, f"{key}.measure_with")
        for name in self.more_targets:
            if (reason := missing(name)) is not None:
                places = " and ".join(f"{key}.{place}" for place in self.places_of(name))
                mistakes.append(f"{places}: {reason}, or name another target there")
        return mistakes

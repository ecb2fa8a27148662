"""What models and their files cost, as far as an objective or a limit needs it; before training as well as after."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Any

from torch import nn

from kedro_aat.compression.filters.costs import num_macs, num_parameters
from kedro_aat.delivery.files import Files, files_of, in_milliseconds, target_costs
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.measurements import CandidateResult, DeviceCosts, Latencies, TargetCosts
from kedro_aat.delivery.on_device import Device
from kedro_aat.errors import ExportError
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.registry import TARGETS, TargetName
from kedro_aat.model_inputs import ModelInputs


class Costs(Latencies):
    """What a model and its file cost; None for what was not measured.

    Attributes:
        rate: Rate of the model, in [0, 1].
        parameters: Numbers in its parameters.
        macs: Multiply-accumulate operations per example.
        onnx_bytes: Size of its ONNX file.
        onnx_gzip_bytes: Size of the gzipped ONNX file.
    """

    rate: float
    parameters: int
    macs: int
    onnx_bytes: int | None = None
    onnx_gzip_bytes: int | None = None

    def __str__(self) -> str:
        parts = [f"{self.parameters:,} parameters", f"{self.macs:,} MACs"]
        parts += [f"{self.onnx_bytes:,} bytes"] if self.onnx_bytes is not None else []
        parts += [f"{time:.3g} ms at batch {size}" for size, time in (self.latency_ms or {}).items()]
        for name, costs in self.targets.items():
            times = [f"{time:.3g} ms at batch {size}" for size, time in (costs.latency_ms or {}).items()]
            parts.append(" and ".join([f"{costs.bytes:,} bytes", *times]) + f" for {TARGETS[name].title}")
        if self.device is not None:
            parts += [f"{self.device.latency_ms:.3g} ms on the device"] if self.device.latency_ms is not None else []
            memory = self.device.memory_bytes
            parts += [f"{memory:,} bytes of the device's memory"] if memory is not None else []
        return ", ".join(parts)


Measured = Costs | CandidateResult


def costs_of(
    models: Sequence[nn.Module],
    rates: Sequence[float],
    inputs: ModelInputs,
    settings: ExportSettings,
    *,
    with_files: bool,
    batch_sizes: Sequence[int],
    targets: Sequence[TargetName] = (),
    device: Device | None = None,
) -> list[Costs]:
    """What models cost; the times of all are measured in alternating turns.

    Args:
        models: Models as they would be exported.
        rates: Rate of each.
        inputs: Example inputs on the CPU, in any structure.
        settings: Says how latency is measured.
        with_files: Whether sizes of files are needed.
        batch_sizes: Batch sizes at which latency is needed; none if it is not.
        targets: Targets beside ONNX whose files are needed.
        device: Measures the files, too; None if that is not needed.

    Raises:
        DeviceError: If the device does not measure one of them.
    """
    with_files = with_files or bool(batch_sizes) or device is not None
    if device is not None and settings.shipped != "onnx":
        targets = list(dict.fromkeys([*targets, settings.shipped]))
    files = [files_of(model, inputs, settings, targets) if with_files else None for model in models]
    serialized = [each.onnx.SerializeToString() if each else b"" for each in files]
    others = {name: [each.others[name] for each in files if each] for name in (targets if with_files else ())}
    latencies = measure_latency(
        [*serialized, *(file for some in others.values() for file in some)],
        inputs,
        batch_sizes=batch_sizes,
        num_threads=settings.num_threads,
        seconds=settings.latency_seconds,
    )

    def on_device(each: Files | None) -> DeviceCosts | None:
        if device is None or each is None:
            return None
        return DeviceCosts(target=settings.shipped, **device.measured(each).model_dump())

    measured = [on_device(each) for each in files]

    def of_targets(number: int) -> dict[TargetName, TargetCosts]:
        return {
            name: target_costs(some[number], latencies[(place + 1) * len(models) + number])
            for place, (name, some) in enumerate(others.items())
        }

    return [
        Costs(
            rate=rate,
            parameters=num_parameters(model),
            macs=num_macs(model, inputs),
            onnx_bytes=len(file) if file else None,
            onnx_gzip_bytes=len(gzip.compress(file, mtime=0)) if file else None,
            targets=of_targets(number),
            device=measured[number],
            **in_milliseconds(latencies[number]),
        )
        for number, (model, rate, file) in enumerate(zip(models, rates, serialized, strict=True))
    ]


def costs_by_objective(
    models: Sequence[nn.Module],
    rates: Sequence[float],
    inputs: ModelInputs,
    settings: ExportSettings,
    finished: FinishedSteps,
) -> list[Costs]:
    """What models cost, as far as the objective needs it; see `costs_of`.

    Args:
        models: Models as they would be exported.
        rates: Rate of each.
        inputs: Example inputs on the CPU, in any structure.
        settings: Settings of the export, with the objective.
        finished: Keeps what the device says.
    """
    kind = settings.objective_kind
    is_on_device = kind in ("device_latency", "device_memory")
    return costs_of(
        models,
        rates,
        inputs,
        settings,
        with_files=kind in ("bytes", "gzip_bytes"),
        batch_sizes=[settings.objective_batch_size] if kind == "latency" else [],
        targets=[settings.shipped] if settings.shipped != "onnx" else [],
        device=Device.of(settings, finished) if is_on_device else None,
    )


def kept_costs(
    step: str,
    models: Sequence[nn.Module],
    rates: Sequence[float],
    inputs: ModelInputs,
    settings: ExportSettings,
    finished: FinishedSteps,
    **more: Any,
) -> list[Costs]:
    """What models cost by the objective, measured once.

    Args:
        step: As what the costs are kept.
        models: Models as they would be exported.
        rates: Rate of each.
        inputs: Example inputs on the CPU, in any structure.
        settings: Settings of the export, with the objective.
        finished: Keeps the costs.
        **more: What else they depend on, as JSON data.

    Raises:
        DeviceError: If the objective needs the device, and it does not measure one of them.
    """
    device = None if settings.without_device is settings else Device.of(settings, finished)
    known = settings.model_dump(mode="json", exclude={"limits", "openvino", "targets", "measure_with"})
    return finished.result(
        step,
        list[Costs],
        lambda: costs_by_objective(models, rates, inputs, settings, finished),
        *models,
        export=known,
        rates=rates,
        **more,
        **({} if device is None else {"device": device.identity}),
    )


def not_measured(settings: ExportSettings) -> ExportError:
    """The error of a file that does not take the batch size at which its latency is the objective."""
    return ExportError(
        f"the file for {TARGETS[settings.shipped].title} cannot be run with batch {settings.objective_batch_size}, at "
        "which its latency is the objective: name a batch size in export.objective.latency_ms that it takes"
    )


def cost_by(settings: ExportSettings, measured: Measured) -> float:
    """The number that the objective minimizes; what it needs must have been measured.

    Raises:
        ExportError: If the file does not take the batch size at which its latency is the objective.
    """
    target = None if settings.shipped == "onnx" else measured.targets[settings.shipped]
    cost: float | None
    match settings.objective_kind:
        case "rate":
            cost = 1 - measured.rate
        case "latency":
            size = settings.objective_batch_size
            if (cost := ((target or measured).latency_fastest_ms or {}).get(size)) is None:
                raise not_measured(settings)
        case "bytes":
            cost = measured.onnx_bytes if target is None else target.bytes
        case "gzip_bytes":
            cost = measured.onnx_gzip_bytes
        case "parameters":
            cost = measured.parameters
        case "macs":
            cost = measured.macs
        case "device_latency":
            cost = None if measured.device is None else measured.device.latency_ms
        case "device_memory":
            cost = None if measured.device is None else measured.device.memory_bytes
    assert cost is not None
    return cost

"""The files of a model side by side, one for each target."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from kedro_aat.delivery.measurements import BatchSize, CandidateResult, DeviceCosts, FileAgreement, Timing
from kedro_aat.export.targets.registry import TARGETS, TargetName


class TargetFileResult(Timing):
    """What is known of one file of a model; None for what was not measured.

    Attributes:
        target: Name of the target.
        bytes: Size of its files in bytes.
        validation: Metric of this very file on the validation split; None if it was not judged.
        difference: Largest difference of its outputs to its model's, as a fraction of the largest output.
        peak_memory_bytes: Batch size -> growth of a process that runs the file.
        arena_bytes: Memory that the file's plan takes, where the target plans one.
        device: What the user's device says of it; None if it did not get this file.
        not_measured: What is not known, of `bytes`, `validation`, `latency`, `memory` and `device` -> why, in words.
    """

    target: TargetName
    bytes: int | None = None
    validation: float | None = None
    difference: float | None = None
    peak_memory_bytes: dict[BatchSize, int] | None = None
    arena_bytes: int | None = None
    device: DeviceCosts | None = None
    not_measured: dict[str, str] = Field(default_factory=dict)


def files_of_candidate(candidate: CandidateResult) -> list[TargetFileResult]:
    """The files of a judged model: ONNX first, then `.pt2` and the other targets.

    Args:
        candidate: The model.
    """
    agreement = candidate.agreement
    files = [
        TargetFileResult(
            target="onnx",
            bytes=candidate.onnx_bytes,
            validation=candidate.validation,
            difference=_difference(agreement.onnx if agreement else None),
            peak_memory_bytes=candidate.peak_memory_bytes,
            **_times(candidate),
        )
    ]
    if candidate.validation_program is not None:
        files.append(
            TargetFileResult(
                target="pt2",
                bytes=candidate.program_bytes,
                validation=candidate.validation_program,
                difference=_difference(agreement.program if agreement else None),
            )
        )
    for target, costs in candidate.targets.items():
        files.append(
            TargetFileResult(
                target=target,
                bytes=costs.bytes,
                validation=candidate.validation_of(target),
                difference=_difference(agreement.targets.get(target) if agreement else None),
                arena_bytes=costs.details.arena_bytes,
                **_times(costs),
            )
        )
    return [_with_reasons(file, candidate) for file in files]


def _times(timing: Timing) -> dict[str, Any]:
    return {name: getattr(timing, name) for name in Timing.model_fields}


def _with_reasons(file: TargetFileResult, candidate: CandidateResult) -> TargetFileResult:
    """The file with what the device says of it, and with why the rest is not known."""
    why: dict[str, str] = {}
    if file.bytes is None:
        why["bytes"] = "an earlier version did not count them"
    if file.validation is None:
        why["validation"] = "this file was not judged"
    sizes = [size for size in candidate.latency_ms or {} if size not in (file.latency_ms or {})]
    if file.target == "pt2":
        why["latency"] = "torch itself runs this file, and is not timed"
    elif file.latency_ms is None and not sizes:
        why["latency"] = "no latency was measured"
    elif sizes:
        why["latency"] = f"the file does not take batch {' and '.join(map(str, sizes))}"
    if file.arena_bytes is None and not file.peak_memory_bytes:
        why["memory"] = (
            "it is measured on Linux alone"
            if file.target == "onnx"
            else "only the process of the ONNX file is measured, and the plan of ExecuTorch and LiteRT is read"
        )
    device = candidate.device
    if device is not None and device.target != file.target:
        why["device"] = f"export.measure_with got the {TARGETS[device.target].title} file"
        device = None
    elif device is not None and device.failure is not None:
        why["device"] = device.failure
    return file.model_copy(update={"device": device, "not_measured": why})


def _difference(agreement: FileAgreement | None) -> float | None:
    return None if agreement is None else agreement.difference

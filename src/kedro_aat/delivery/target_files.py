"""The files of a model side by side, one for each target."""

from __future__ import annotations

from kedro_aat.delivery.measurements import BatchSize, CandidateResult, FileAgreement, Timing
from kedro_aat.export.targets.registry import TargetName


class TargetFileResult(Timing):
    """What is known of one file of a model; None for what was not measured.

    Attributes:
        target: Name of the target.
        bytes: Size of its files in bytes; None for `.pt2`.
        validation: Metric of this very file on the validation split; None if it was not judged.
        difference: Largest difference of its outputs to its model's, as a fraction of the largest output.
        peak_memory_bytes: Batch size -> growth of a process that runs the file.
        arena_bytes: Memory that the file's plan takes, where the target plans one.
    """

    target: TargetName
    bytes: int | None = None
    validation: float | None = None
    difference: float | None = None
    peak_memory_bytes: dict[BatchSize, int] | None = None
    arena_bytes: int | None = None


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
            **{name: getattr(candidate, name) for name in Timing.model_fields},
        )
    ]
    if candidate.validation_program is not None:
        difference = _difference(agreement.program if agreement else None)
        files.append(TargetFileResult(target="pt2", validation=candidate.validation_program, difference=difference))
    for target, costs in candidate.targets.items():
        files.append(
            TargetFileResult(
                target=target,
                bytes=costs.bytes,
                validation=candidate.validation_of(target),
                difference=_difference(agreement.targets.get(target) if agreement else None),
                arena_bytes=costs.details.arena_bytes,
                **{name: getattr(costs, name) for name in Timing.model_fields},
            )
        )
    return files


def _difference(agreement: FileAgreement | None) -> float | None:
    return None if agreement is None else agreement.difference

"""What leaves the house: the exported files of each candidate are judged and measured, and one is delivered.

A budget can be lost between training and the file, so the verdict is on the file: its metric on the validation split,
computed by onnxruntime. A file that does not do what its model does, or breaks the budget that its model kept, is
passed over with the reason.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from onnx import ModelProto
from torch import Tensor, nn
from torch.export import ExportedProgram

from kedro_aat.budget import Budget
from kedro_aat.compression.controller import Uncompressed
from kedro_aat.compression.filters.costs import num_macs, num_parameters
from kedro_aat.compression.quantization.layers import quantized_spec
from kedro_aat.delivery.candidates import Candidate
from kedro_aat.errors import ExportError
from kedro_aat.export.measure import Latency, measure_latency
from kedro_aat.export.memory import peak_memory
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.openvino_file import OpenvinoFiles, OpenvinoModel, to_openvino
from kedro_aat.export.program import to_program
from kedro_aat.export.session import OnnxModel
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.verify import count_zeros, read_back, verify_onnx, verify_openvino, verify_program
from kedro_aat.training.data import Data, example_input
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.runner import Evaluation, TrainingRunner
from kedro_aat.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

_WORTHWHILE = 0.95  # of the latency; what is hardly quicker is not worth a lower rate
NUM_COMPARED = 64  # examples on which the outputs of a file and its model are compared


@dataclass(frozen=True)
class Files:
    """What runtimes are given of a model.

    Attributes:
        onnx: The ONNX file.
        openvino: OpenVINO's files, made of it; None unless they are asked for.
    """

    onnx: ModelProto
    openvino: OpenvinoFiles | None = None


@dataclass(frozen=True)
class Exported:
    """A candidate's files, and what was found about them.

    Attributes:
        candidate: The model.
        files: Its ONNX file, and what was made of it.
        program: Its `.pt2` file.
        report: Name, rate, validation metrics of all files, agreement with the model, sizes and, once measured,
            latency and memory.
    """

    candidate: Candidate
    files: Files
    program: ExportedProgram
    report: dict[str, Any]


@dataclass(frozen=True)
class Delivery:
    """What is delivered, and beside what.

    Attributes:
        exported: The one that is delivered; None where no file keeps the limits.
        baseline: Sizes, operations and latency of the baseline's file.
        candidates: The reports of all that kept the budget as files.
        rejected: Name -> why its file is not delivered.
        nearest: The name of what comes nearest to the limits, where none keeps them.
    """

    exported: Exported | None
    baseline: dict[str, Any]
    candidates: list[dict[str, Any]]
    rejected: dict[str, str] = field(default_factory=dict)
    nearest: str | None = None


def deliver(
    candidates: Sequence[Candidate],
    others: Iterator[Candidate],
    baseline_model: nn.Module,
    validation_data: Data,
    budget: Budget,
    training: TrainingSettings,
    settings: ExportSettings,
) -> Delivery:
    """Exports all candidates, judges and measures their files, and chooses one by the objective.

    Args:
        candidates: Models that keep the budget.
        others: Less compressed ones, by falling rate. They are asked for one by one if no candidate's file keeps the
            budget, and all of them if latency is the objective or no file keeps the limits, since less can be quicker.
        baseline_model: The uncompressed model.
        validation_data: Judges the files.
        budget: That they must keep.
        training: Says how the metric is computed.
        settings: Tolerances, objective and limits.

    Raises:
        ExportError: If no file keeps the budget that its model kept.
    """
    inputs = example_input(validation_data, max(NUM_COMPARED, *settings.batch_sizes))
    baseline_files = files_of(baseline_model, inputs, settings)
    baseline = costs(baseline_model, baseline_files, inputs)
    kept: list[Exported] = []
    rejected: dict[str, str] = {}

    def consider(candidate: Candidate) -> None:
        try:
            kept.append(_export(candidate, inputs, validation_data, budget, training, settings))
        except ExportError as error:
            logger.warning("%s is not delivered: %s", candidate.name, error)
            rejected[candidate.name] = str(error)

    for candidate in candidates:
        consider(candidate)
    while not kept and (fallback := next(others, None)) is not None:
        logger.warning("Falling back to %s", fallback.name)
        consider(fallback)
    if not kept:
        reasons = "".join(f"\n  - {name}: {reason}" for name, reason in rejected.items())
        raise ExportError(f"No exported file keeps the budget that its model kept:{reasons}")
    rest: list[Candidate] = []
    if settings.objective == "latency":
        rest = list(others)
        if quicker := _quickest(rest, kept, inputs, settings):
            rest.remove(quicker)
            consider(quicker)

    def measure_all() -> dict[str, Any]:
        before, *after = measured([baseline_files, *(exported.files for exported in kept)], inputs, settings)
        for exported, measurement in zip(kept, after, strict=True):
            exported.report.update(measurement)
        return before

    def keep_limits() -> list[Exported]:
        return [exported for exported in kept if not _excess(exported.report, settings)]

    before = measure_all()
    if not keep_limits() and (rest := [*rest, *others]):
        logger.warning("No file keeps the limits; trying %d less compressed models", len(rest))
        for other in rest:
            consider(other)
        before = measure_all()
    within = keep_limits()
    excess = {exported.candidate.name: _excess(exported.report, settings) for exported in kept}
    rejected |= {name: ", ".join(words for words, _ in found) for name, found in excess.items() if found}
    best = min(within, key=lambda exported: _cost(exported.report, settings), default=None)
    nearest = None if within else min(excess, key=lambda name: max(times for _, times in excess[name]))
    return Delivery(best, baseline | before, [exported.report for exported in kept], rejected, nearest)


def _quickest(
    others: Sequence[Candidate], kept: Sequence[Exported], inputs: Tensor, settings: ExportSettings
) -> Candidate | None:
    """The quickest of other models at the first batch size, if it is quicker than all that were kept."""
    files = [exported.files.onnx for exported in kept] + [to_onnx(other.model.eval(), inputs) for other in others]
    size = settings.batch_sizes[0]
    measurements = measure_latency(
        files, inputs, batch_sizes=[size], num_threads=settings.num_threads, seconds=settings.latency_seconds
    )
    fastest = [by_size[size].fastest for by_size in measurements]
    known, new = fastest[: len(kept)], fastest[len(kept) :]
    if not new or min(new) > _WORTHWHILE * min(known):
        return None
    return others[new.index(min(new))]


def files_of(model: nn.Module, inputs: Tensor, settings: ExportSettings) -> Files:
    """Exports a model for the runtimes that are asked for."""
    onnx_model = to_onnx(model, inputs)
    return Files(onnx_model, to_openvino(onnx_model) if settings.openvino else None)


def evaluate_file(file: nn.Module, data: Data, training: TrainingSettings) -> Evaluation:
    """The metric of an exported file, run as a module on the CPU, on a split."""
    training = training.model_copy(update={"device": "cpu", "precision": "fp32", "compile": False})
    judged = DefaultTraining(file, training, None, data)
    return TrainingRunner(file, Uncompressed(file), judged.callables()).validate()


def _export(
    candidate: Candidate,
    inputs: Tensor,
    validation_data: Data,
    budget: Budget,
    training: TrainingSettings,
    settings: ExportSettings,
) -> Exported:
    """The candidate's files, if they do what it does and keep the budget."""
    model = candidate.model.eval()
    files, program = files_of(model, inputs, settings), to_program(model, inputs)
    # Where an integer is rounded up in one place and down in the other, the outputs differ by a step of 8 bits.
    tolerance = settings.tolerance if quantized_spec(model) is None else settings.quantized_tolerance
    agreement = {
        "onnx": asdict(verify_onnx(files.onnx, model, inputs, tolerance=tolerance)),
        "program": asdict(verify_program(program, model, inputs, tolerance=tolerance)),
        "exported_rate": _exported_rate(files.onnx, candidate),
    }
    to_judge: dict[str, nn.Module] = {"ONNX": OnnxModel(files.onnx), ".pt2": read_back(program)}
    if files.openvino is not None:
        agreement["openvino"] = asdict(verify_openvino(files.openvino, model, inputs, tolerance=tolerance))
        to_judge["OpenVINO"] = OpenvinoModel(files.openvino)
    metrics: dict[str, float] = {}
    for kind, file in to_judge.items():
        metrics[kind] = evaluate_file(file, validation_data, training).metric
        if budget.margin(metrics[kind]) < 0:
            raise ExportError(
                f"its {kind} file breaks the budget: {metrics[kind]:.4f} on the validation split, where "
                f"{budget.lowest_tolerated:.4f} is tolerated"
            )
    report = {
        "name": candidate.name,
        "stage": candidate.stage,
        "rate": candidate.rate,
        "requested_rate": candidate.requested_rate,
        "standard_error": candidate.standard_error,
        "checkpoint": candidate.checkpoint,
        "validation": metrics["ONNX"],
        "validation_program": metrics[".pt2"],
        "validation_openvino": metrics.get("OpenVINO"),
        "agreement": agreement,
        **costs(model, files, inputs),
    }
    return Exported(candidate, files, program, report)


def measured(models: Sequence[Files], inputs: Tensor, settings: ExportSettings) -> list[dict[str, Any]]:
    """Latency and memory of each model in onnxruntime, by batch size; and its latency in OpenVINO, if all go there."""
    serialised = [files.onnx.SerializeToString() for files in models]
    openvino_files = [files.openvino for files in models if files.openvino is not None]
    latencies = measure_latency(
        [*serialised, *openvino_files],
        inputs,
        batch_sizes=settings.batch_sizes,
        num_threads=settings.num_threads,
        seconds=settings.latency_seconds,
    )
    in_onnxruntime = latencies[: len(models)]
    in_openvino = latencies[len(models) :] or [{}] * len(models)
    return [
        {
            **_in_milliseconds(latency),
            "peak_memory_bytes": peak_memory(file, inputs.numpy(), settings.batch_sizes),
            **_in_milliseconds(openvino_latency, "openvino_"),
        }
        for file, latency, openvino_latency in zip(serialised, in_onnxruntime, in_openvino, strict=True)
    ]


def _in_milliseconds(by_size: dict[int, Latency], prefix: str = "") -> dict[str, Any]:
    """Median, quartiles and fastest turn by batch size; None where nothing was measured."""
    medians = {size: latency.median for size, latency in by_size.items()}
    quartiles = {size: list(latency.quartiles) for size, latency in by_size.items()}
    fastest = {size: latency.fastest for size, latency in by_size.items()}
    return {
        f"{prefix}latency_ms": medians or None,
        f"{prefix}latency_quartiles_ms": quartiles or None,
        f"{prefix}latency_fastest_ms": fastest or None,
    }


def costs(model: nn.Module, files: Files, inputs: Tensor) -> dict[str, Any]:
    """Sizes and operations of a model and its files; bytes are of the files as written, and compressed."""
    file = files.onnx.SerializeToString()
    return {
        "parameters": num_parameters(model),
        "nonzero_parameters": sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        "macs": num_macs(model, inputs),
        "onnx_bytes": len(file),
        "onnx_gzip_bytes": len(gzip.compress(file, mtime=0)),
        "openvino_bytes": files.openvino and files.openvino.num_bytes,
    }


def _exported_rate(onnx_model: ModelProto, candidate: Candidate) -> float | None:
    """The rate counted on the file, at least the one reported; None where it cannot be counted.

    It is the same number, unless the exporter folded a BatchNorm of scale 0, which adds zeros.
    """
    if not candidate.weight_names:
        return None
    try:
        zeros, total = count_zeros(onnx_model, candidate.weight_names)
    except ExportError as error:  # the outputs were compared, so a renamed weight is no reason to fail
        logger.warning("%s", error)
        return None
    if zeros / total < candidate.rate:
        raise ExportError(
            f"the file has a rate of {zeros / total:.6f}, but the model has {candidate.rate:.6f}: the exporter "
            "changed weights. Please report this with the model."
        )
    return zeros / total


def _cost(report: dict[str, Any], settings: ExportSettings) -> float:
    """What the objective wants to be small."""
    if settings.objective == "rate":
        return -float(report["rate"])
    if settings.objective == "latency":
        return float(report["latency_fastest_ms"][settings.batch_sizes[0]])
    return float(report["onnx_bytes" if settings.objective == "bytes" else settings.objective])


def _excess(report: dict[str, Any], settings: ExportSettings) -> list[tuple[str, float]]:
    """Which limits are exceeded, in words, and how many times."""
    limits = settings.limits
    excess: list[tuple[str, float]] = []
    for key in ("onnx_bytes", "parameters", "macs"):
        limit = getattr(limits, key)
        if limit is not None and report[key] > limit:
            excess.append((f"{key} are {report[key]:,}, above the limit of {limit:,}", report[key] / limit))
    for batch_size, longest in limits.latency_ms.items():
        if (measured := report["latency_ms"][batch_size]) > longest:
            words = (
                f"the median latency at batch {batch_size} is {measured:.3g} ms, above the limit of {longest:.3g} ms"
            )
            excess.append((words, measured / longest))
    return excess

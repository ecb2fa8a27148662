"""A model as files for runtimes: exported, evaluated and measured."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from onnx import ModelProto
from pydantic import PlainSerializer, PlainValidator
from torch import nn

from kedro_aat.budget import GuardSettings
from kedro_aat.compression.filters.costs import num_macs, num_parameters
from kedro_aat.compression.quantization.held import counted_parameters
from kedro_aat.delivery.environment import processor_name
from kedro_aat.delivery.measurements import Measurements, TargetCosts
from kedro_aat.errors import DataError, ExportError, OutOfMemoryError, UserFunctionError
from kedro_aat.export import NotExported
from kedro_aat.export.measure import Latency, arrays_of, measure_latency
from kedro_aat.export.memory import peak_memory
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.opset import oldest_onnxruntime
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.registry import TargetName, target_of
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.model_inputs import ModelInputs, num_examples
from kedro_aat.tensors import synthetic_like
from kedro_aat.training.data import Data
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.runner import Evaluation, evaluate
from kedro_aat.training.settings import TrainingSettings


def _read_onnx(value: ModelProto | str) -> ModelProto:
    return value if isinstance(value, ModelProto) else ModelProto.FromString(base64.b64decode(value))


def _onnx_text(model: ModelProto) -> str:
    return base64.b64encode(model.SerializeToString()).decode()


@dataclass(frozen=True)
class Files:
    """The files of one model; pydantic writes them as JSON.

    Attributes:
        onnx: The ONNX file.
        others: The files of the other targets that the settings ask for, by the name of the target.
    """

    onnx: Annotated[ModelProto, PlainValidator(_read_onnx), PlainSerializer(_onnx_text)]
    others: dict[TargetName, TargetFile] = field(default_factory=dict)

    def of(self, target: TargetName) -> ModelProto | TargetFile:
        """The file of one target, ONNX or another."""
        return self.onnx if target == "onnx" else self.others[target]


def files_of(
    model: nn.Module,
    inputs: ModelInputs,
    settings: ExportSettings,
    targets: Sequence[TargetName] | None = None,
    *,
    search: bool = True,
) -> Files:
    """Exports a model as ONNX, and for the other targets that the settings ask for.

    Args:
        model: Model on the CPU, in evaluation mode.
        inputs: Example inputs, in any structure.
        settings: Settings of the export.
        targets: Other targets to export it for; None for those that the settings ask for.
        search: Whether to search for axes that may have any size, as `to_onnx` does.

    Raises:
        ExportError: If the model cannot be written for a target; the message names the target.
    """
    onnx_model = to_onnx(model, inputs, settings, search=search)
    others: dict[TargetName, TargetFile] = {}
    for name in settings.more_targets if targets is None else targets:
        if name not in ("onnx", "pt2"):
            others[name] = target_of(name).write(model, inputs, settings, onnx_model)
    return Files(onnx_model, others)


def evaluate_file(
    file: nn.Module, data: Data, training: TrainingSettings, guards: Sequence[GuardSettings] = ()
) -> Evaluation:
    """Evaluates an exported file on a split, on the CPU in full precision.

    Args:
        file: The file, wrapped as a module that runs it.
        data: The split.
        training: Settings that define the metric.
        guards: Further metrics.

    Raises:
        ExportError: If the file cannot be run on the data.
    """
    training = training.model_copy(update={"device": "cpu", "precision": "fp32", "compile": False})
    judged = DefaultTraining(file, training, None, data, guards=guards)
    try:
        return evaluate(file, judged.callables().validate, batch_size=training.batch_size, subject="the exported file")
    except UserFunctionError as error:
        if isinstance(error, OutOfMemoryError):
            raise
        raise ExportError(str(error)) from error


def measure(
    models: Sequence[nn.Module], files: Sequence[Files], inputs: ModelInputs, settings: ExportSettings
) -> list[Measurements]:
    """Sizes, operations, latency and memory of several models, timed in alternating turns.

    Latency is measured in onnxruntime, and in the runtimes of the other targets that all models have files for.

    Args:
        models: The models.
        files: Their files, in the same order.
        inputs: Example inputs, in any structure.
        settings: Settings of the export: batch sizes, threads, seconds.
    """
    serialized = [each.onnx.SerializeToString() for each in files]
    shared = [name for name in files[0].others if all(name in each.others for each in files)] if files else []
    latencies = measure_latency(
        [*serialized, *(each.others[name] for name in shared for each in files)],
        inputs,
        batch_sizes=settings.batch_sizes,
        num_threads=settings.num_threads,
        seconds=settings.latency_seconds,
    )
    turns = [latencies[start : start + len(files)] for start in range(0, len(latencies), max(1, len(files)))]
    by_target = dict(zip(shared, turns[1:], strict=True))
    # For another process, which reads them from a file.
    made_up = {size: arrays_of(synthetic_like(inputs, num_examples(inputs)), size) for size in settings.batch_sizes}
    return [
        Measurements(
            processor=processor_name(),
            parameters=num_parameters(model),
            nonzero_parameters=sum(int(parameter.count_nonzero()) for parameter in counted_parameters(model)),
            macs=num_macs(model, inputs),
            onnx_bytes=len(file),
            onnx_gzip_bytes=len(gzip.compress(file, mtime=0)),
            onnx_sha256=hashlib.sha256(file).hexdigest(),
            oldest_onnxruntime=oldest_onnxruntime(each.onnx),
            peak_memory_bytes=peak_memory(file, made_up),
            targets={
                name: target_costs(other, by_target[name][number] if name in by_target else {})
                for name, other in each.others.items()
            },
            **in_milliseconds(turns[0][number]),
        )
        for number, (model, each, file) in enumerate(zip(models, files, serialized, strict=True))
    ]


def require_delivered(onnx: ModelProto | NotExported, delivered: Measurements | None) -> None:
    """Makes sure that an ONNX file is the one that a run delivered, before anything is said of it.

    Args:
        onnx: The file, or why there is none.
        delivered: The delivered model as the run measured it; None if nothing is known of it.

    Raises:
        DataError: It is another file, such as that of another version.
    """
    known = None if delivered is None else delivered.onnx_sha256
    if known is None or isinstance(onnx, NotExported):
        return
    given = hashlib.sha256(onnx.SerializeToString()).hexdigest()
    if given != known:
        raise DataError(
            f"compressed_onnx has the SHA-256 {given[:12]}..., but the results beside it are those of a file with "
            f"{known[:12]}...: they would be said of another model. Leave out --load-versions, or give all entries "
            "that this node reads `versioned: true`, and name the same version of each."
        )


def target_costs(file: TargetFile, by_size: Mapping[int, Latency]) -> TargetCosts:
    """What a target's file costs.

    Args:
        file: The file.
        by_size: Batch size -> its latency, where it was measured.
    """
    return TargetCosts(bytes=file.num_bytes, details=file.details, **in_milliseconds(by_size))


def in_milliseconds(by_size: Mapping[int, Latency]) -> dict[str, Any]:
    """Median, quartiles and fastest turn by batch size, as fields of `Timing`."""
    return {
        "latency_ms": {size: latency.median for size, latency in by_size.items()} or None,
        "latency_quartiles_ms": {size: latency.quartiles for size, latency in by_size.items()} or None,
        "latency_fastest_ms": {size: latency.fastest for size, latency in by_size.items()} or None,
    }

"""A model as files for runtimes: exported, evaluated and measured."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from onnx import ModelProto
from pydantic import PlainSerializer, PlainValidator
from torch import nn

from kedro_aat.budget import GuardSettings
from kedro_aat.compression.filters.costs import num_macs, num_parameters
from kedro_aat.compression.quantization.held import counted_parameters
from kedro_aat.delivery.environment import processor_name
from kedro_aat.delivery.measurements import Measurements
from kedro_aat.errors import ExportError, OutOfMemoryError, UserFunctionError
from kedro_aat.export.measure import Latency, arrays_of, measure_latency
from kedro_aat.export.memory import peak_memory
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.openvino_file import OpenvinoFiles, to_openvino
from kedro_aat.export.opset import oldest_onnxruntime
from kedro_aat.export.settings import ExportSettings
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
        openvino: OpenVINO's files, made from the ONNX file; None unless the settings ask for them.
    """

    onnx: Annotated[ModelProto, PlainValidator(_read_onnx), PlainSerializer(_onnx_text)]
    openvino: OpenvinoFiles | None = None


def files_of(model: nn.Module, inputs: ModelInputs, settings: ExportSettings, *, search: bool = True) -> Files:
    """Exports a model for the runtimes that the settings ask for.

    Args:
        model: Model on the CPU, in evaluation mode.
        inputs: Example inputs, in any structure.
        settings: Settings of the export.
        search: Whether to search for axes that may have any size, as `to_onnx` does.
    """
    onnx_model = to_onnx(model, inputs, settings, search=search)
    return Files(onnx_model, to_openvino(onnx_model) if settings.openvino else None)


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

    Latency is measured in onnxruntime, and in OpenVINO too if all models have its files.

    Args:
        models: The models.
        files: Their files, in the same order.
        inputs: Example inputs, in any structure.
        settings: Settings of the export: batch sizes, threads, seconds.
    """
    serialized = [each.onnx.SerializeToString() for each in files]
    openvino_files = [each.openvino for each in files if each.openvino is not None]
    latencies = measure_latency(
        [*serialized, *openvino_files],
        inputs,
        batch_sizes=settings.batch_sizes,
        num_threads=settings.num_threads,
        seconds=settings.latency_seconds,
    )
    in_onnxruntime = latencies[: len(files)]
    in_openvino = latencies[len(files) :] or [{}] * len(files)
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
            oldest_onnxruntime=oldest_onnxruntime(each.onnx),
            openvino_bytes=each.openvino.num_bytes if each.openvino else None,
            peak_memory_bytes=peak_memory(file, made_up),
            **in_milliseconds(latency),
            **in_milliseconds(openvino_latency, "openvino_"),
        )
        for model, each, file, latency, openvino_latency in zip(
            models, files, serialized, in_onnxruntime, in_openvino, strict=True
        )
    ]


def in_milliseconds(by_size: dict[int, Latency], prefix: str = "") -> dict[str, Any]:
    """Median, quartiles and fastest turn by batch size, as fields of `Latencies`."""
    return {
        f"{prefix}latency_ms": {size: latency.median for size, latency in by_size.items()} or None,
        f"{prefix}latency_quartiles_ms": {size: latency.quartiles for size, latency in by_size.items()} or None,
        f"{prefix}latency_fastest_ms": {size: latency.fastest for size, latency in by_size.items()} or None,
    }

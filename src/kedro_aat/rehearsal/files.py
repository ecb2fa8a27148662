"""A model as files: exported, read back, compared, evaluated and measured, as the delivery does it."""

from __future__ import annotations

from onnx import ModelProto
from torch import nn

from kedro_aat.compression.filters.costs import num_macs
from kedro_aat.compression.quantization.layers import quantized_spec
from kedro_aat.delivery.files import Files, files_of
from kedro_aat.errors import ExportError
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.preprocessing import verified_with_preprocessing
from kedro_aat.export.program import to_program
from kedro_aat.export.session import OnnxModel
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.registry import TARGETS, target_of
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.export.verify import verify_file, verify_onnx, verify_program
from kedro_aat.rehearsal.common import Rehearsal
from kedro_aat.rehearsal.faults import part
from kedro_aat.training.few_batches import FewBatchesTraining

# Two steps of training do not settle the ranges of activations, nor does a file that will be trained have to be exact.
ROUGHLY = 5.0


def rehearse_files(model: nn.Module, rehearsal: Rehearsal, *, search: bool) -> Files:
    """Exports a model as files for runtimes, reads them back, and has them validated and measured.

    Args:
        model: The model on the CPU, in evaluation mode.
        rehearsal: What all parts share.
        search: Whether to search for axes that may have any size, as the run does; a search that fails leaves them.

    Returns:
        The files.

    Raises:
        PartFailedError: If one of these fails.
    """
    settings, inputs, tolerance = rehearsal.settings.export, rehearsal.inputs, _tolerance(model, rehearsal)
    with part("export as ONNX file"):
        files = files_of(model, inputs, settings, [], search=search)
    with part("ONNX file, read back"):
        verify_onnx(files.onnx, model, inputs, tolerance=tolerance)
    if (preprocessing := settings.preprocessing) is not None and preprocessing.in_file:
        with part("ONNX file for raw numbers (export.preprocessing)"):
            verified_with_preprocessing(files.onnx, preprocessing)
    runnable: dict[str, nn.Module] = {"ONNX": OnnxModel(files.onnx)}
    for name in settings.more_targets:
        title = TARGETS[name].title
        with part(f"export for {title}"):
            files.others[name] = written = target_of(name).write(model, inputs, settings, files.onnx)
        with part(f"latency of the {title} file"):
            _require_batch_sizes(written, settings)
        with part(f"{title} file, read back"):
            runnable[title] = module = target_of(name).read_back(written)
            verify_file(f"{title} file", module, model, inputs, tolerance=tolerance)
        with part(f"measuring the {title} file"):
            _time(written, rehearsal, written.batch_size or 1)
    on_cpu = rehearsal.settings.training.model_copy(update={"device": "cpu", "precision": "fp32", "compile": False})
    for kind, file in runnable.items() if not rehearsal.broken & {"validation", "validation of files"} else ():
        with part(f"validation of the {kind} file"):
            judged = FewBatchesTraining(
                file,
                on_cpu,
                None,
                rehearsal.validation_data,
                validation=rehearsal.validation,
                guards=rehearsal.settings.budget.also,
            )
            rehearsal.validate(file, judged, f"the {kind} file")
    with part("measuring the ONNX file"):
        num_macs(model, inputs)
        _time(files.onnx, rehearsal, 1)
    return files


def _time(file: ModelProto | TargetFile, rehearsal: Rehearsal, batch_size: int) -> None:
    """Runs a file as it is run to measure its latency, for as short as possible."""
    num_threads = rehearsal.settings.export.num_threads
    measure_latency([file], rehearsal.inputs, batch_sizes=[batch_size], num_threads=num_threads, seconds=1e-3)


def _require_batch_sizes(file: TargetFile, settings: ExportSettings) -> None:
    """Refuses settings that need latency at a batch size that a file does not take."""
    for size in settings.timed_batch_sizes(file.target):
        if file.batch_size not in (None, size):
            raise ExportError(
                f"it takes batches of {file.batch_size} alone, and its latency at batch {size} is to decide or is "
                f"limited. Name batch {file.batch_size} in export.objective and export.limits, and first in "
                "export.batch_sizes"
            )


def rehearse_program(model: nn.Module, rehearsal: Rehearsal) -> None:
    """Exports a model as a `.pt2` file if the settings ask for it, and reads it back.

    Args:
        model: The model on the CPU, in evaluation mode.
        rehearsal: What all parts share.

    Raises:
        PartFailedError: If one of these fails.
    """
    if "pt2" not in rehearsal.settings.export.targets:
        return
    with part("export as .pt2 file"):
        program = to_program(model, rehearsal.inputs, rehearsal.settings.export, search=False)
    with part(".pt2 file, read back"):
        verify_program(program, model, rehearsal.inputs, tolerance=_tolerance(model, rehearsal))


def _tolerance(model: nn.Module, rehearsal: Rehearsal) -> float:
    settings = rehearsal.settings.export
    return ROUGHLY * (settings.tolerance if quantized_spec(model) is None else settings.quantized_tolerance)

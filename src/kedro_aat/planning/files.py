"""Measures what the files of one model take: those of the uncompressed model."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable

import torch
from torch import nn

from kedro_aat.delivery.files import files_of
from kedro_aat.export.measure import arrays_of, measure_latency
from kedro_aat.export.memory import peak_memory
from kedro_aat.export.program import to_program
from kedro_aat.export.session import OnnxModel
from kedro_aat.export.verify import read_back, verify_onnx, verify_program
from kedro_aat.planning.job import Files
from kedro_aat.rehearsal.common import Rehearsal
from kedro_aat.rehearsal.files import ROUGHLY
from kedro_aat.training.data import example_count
from kedro_aat.training.few_batches import FewBatches, FewBatchesTraining

# Bytes of a file that are compressed to measure the speed.
COMPRESSED = 1 << 22
NUM_BATCHES = 4

logger = logging.getLogger(__name__)


def measure_files(rehearsal: Rehearsal, clock: Callable[[], float]) -> Files | None:
    """Exports the uncompressed model, and compares, judges and measures its files once.

    Args:
        rehearsal: The model, settings and first batches.
        clock: Returns seconds.

    Returns:
        The seconds; None if it cannot be exported, which is logged.
    """
    try:
        return _measured(rehearsal, clock)
    except Exception as error:  # an exporter may raise anything; the rehearsal says what is wrong
        logger.warning(
            "Time for the files is left out, because the export failed (see `kedro aat validate`): %s", error
        )
        return None


def _measured(rehearsal: Rehearsal, clock: Callable[[], float]) -> Files:
    model, inputs, settings = rehearsal.on_cpu(), rehearsal.inputs, rehearsal.settings.export
    laps = [clock()]

    def lap() -> float:
        laps.append(clock())
        return laps[-1] - laps[-2]

    files = files_of(model, inputs, settings)
    verify_onnx(files.onnx, model, inputs, tolerance=ROUGHLY * settings.tolerance)
    export = lap()
    program = to_program(model, inputs, settings)
    verify_program(program, model, inputs, tolerance=ROUGHLY * settings.tolerance)
    traced = lap()
    judged = [_judging_seconds(file, rehearsal, clock) for file in (OnnxModel(files.onnx), read_back(program))]
    lap()
    text = files.onnx.SerializeToString()
    measure_latency([text], inputs, batch_sizes=[1], num_threads=settings.num_threads, seconds=1e-3)
    opening = lap() * len(settings.batch_sizes)
    peak_memory(text, {1: arrays_of(inputs, 1)})
    memory = lap()
    gzip.compress(text[:COMPRESSED], mtime=0)
    compressing = lap() * max(len(text) / COMPRESSED, 1.0)
    return Files(
        export=export,
        program=traced,
        judging=sum(judged),
        judging_onnx=judged[0],
        measuring=opening + memory + compressing,
        latency=settings.latency_seconds * len(settings.batch_sizes),
    )


def _judging_seconds(file: nn.Module, rehearsal: Rehearsal, clock: Callable[[], float]) -> float:
    """A validation of a file, from some of its batches."""
    settings = rehearsal.settings.training
    on_cpu = settings.model_copy(update={"device": "cpu", "precision": "fp32", "compile": False})
    few = validation_batches(rehearsal, NUM_BATCHES)
    training = FewBatchesTraining(
        file, on_cpu, None, rehearsal.validation_data, validation=few, guards=rehearsal.settings.budget.also
    )
    with torch.no_grad():
        rehearsal.validate(file, training, "a file")
        started = clock()
        rehearsal.validate(file, training, "a file")
    examples = example_count(rehearsal.validation_data)
    return (clock() - started) * max(examples / (settings.batch_size * len(few)), 1.0)


def validation_batches(rehearsal: Rehearsal, number: int) -> FewBatches:
    """The first batches of the validation split, loaded.

    Args:
        rehearsal: The splits and the settings.
        number: How many.
    """
    settings = rehearsal.settings
    loading = FewBatchesTraining(nn.Identity(), settings.training, None, rehearsal.validation_data, seed=settings.seed)
    return FewBatches(loading.validation_batches(), number)

"""Measures with a model and its data what the formulas need, in a few steps: no epoch is trained."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from kedro_aat.compression.compressible import compressible
from kedro_aat.config import AatSettings
from kedro_aat.errors import ExportError
from kedro_aat.export.onnx_file import refuse_too_large
from kedro_aat.messages import doing
from kedro_aat.model_inputs import tensors_in
from kedro_aat.modes import quiet
from kedro_aat.planning.files import measure_files
from kedro_aat.planning.job import Job, Stage
from kedro_aat.planning.machine import machine_of, process_bytes, written_bytes_per_second
from kedro_aat.planning.steps import Clock, MeasuredStage
from kedro_aat.rehearsal.rehearse import first_batches
from kedro_aat.rehearsal.stages import stages_of
from kedro_aat.training.data import Data
from kedro_aat.training.random_state import rng_state, seed_everything, set_rng_state

logger = logging.getLogger(__name__)


def measure(
    model: nn.Module,
    train_data: Data,
    validation_data: Data,
    settings: AatSettings,
    *,
    store: Path | None = None,
    clock: Clock = time.perf_counter,
    with_files: bool = True,
) -> Job:
    """Measures what `plan` needs: a few training steps of each stage, and the files of the uncompressed model.

    Args:
        model: The uncompressed model; it stays as it is.
        train_data: Training split.
        validation_data: Validation split.
        settings: Settings of the pipeline.
        store: Folder of the checkpoints, whose disk is looked at; it need not exist. None for the temporary folder.
        clock: Returns seconds.
        with_files: Whether to export the model to measure what that takes, which is most of the time for small models.

    Raises:
        ConfigurationError, DataError, ModelError: For what a run would not begin with.
        RehearsalError: If a batch cannot be loaded.
        UserFunctionError: If a function of the user's fails.
    """
    settings.check()
    model = compressible(model)
    before = rng_state()
    splits = (train_data, validation_data)
    # With the libraries of training and export, which this module imports.
    in_process = process_bytes() - _bytes_of(model) - sum(map(_data_bytes, splits))
    try:
        seed_everything(settings.seed)
        with quiet(), doing("measuring for the plan"):
            rehearsal = first_batches(model, *splits, settings)
            stages: list[Stage] = []
            measured: list[MeasuredStage] = []
            for stage in stages_of(settings):
                measured.append(MeasuredStage(stage, rehearsal, clock, measured[-1].stripped if measured else None))
                stages.append(measured[-1].result())
            exports = _fits_a_file(model)
            files = measure_files(rehearsal, clock) if exports and with_files else None
            values = measured[0].optimizer_values
            speed = written_bytes_per_second(model, store, clock)
    finally:
        set_rng_state(before)
    sizes = stages[0].model
    assert sizes is not None  # of a stage that was measured
    job = Job(
        sizes,
        tuple(stages),
        optimizer_values=values,
        distills=settings.training.teaching is not None,
        machine=machine_of(settings.training, store),
        written_bytes_per_second=speed,
        measured=True,
        process_bytes=max(in_process, 0),
        data_bytes=sum(map(_data_bytes, splits)),
        exports=exports,
        certifies=settings.reads_test_split,
        not_sharded=tuple(settings.not_sharded()),
    )
    return job if files is None else replace(job, files=files)


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _data_bytes(data: Data) -> int:
    """Bytes of tensors in memory; what a data set loads when it is asked counts nothing."""
    tensors = data if isinstance(data, Mapping) else getattr(data, "__dict__", {})
    return sum(int(tensor.nbytes) for tensor in tensors_in(tensors) if tensor.device.type == "cpu")


def _fits_a_file(model: nn.Module) -> bool:
    try:
        refuse_too_large(model)
    except ExportError:
        return False
    return True

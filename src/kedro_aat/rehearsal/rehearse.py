"""The rehearsal: everything that the run will do, once and in small. Start reading here.

First a batch through model, loss and metric, then the files of the baseline, then each stage on what the stage before
would return. What depends on something that has failed is tried without it, so that one error lists all faults.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from kedro_aat.config import AatSettings
from kedro_aat.delivery.files import Files
from kedro_aat.delivery.finished import REHEARSALS, FinishedSteps, training_inputs
from kedro_aat.delivery.on_device import Device
from kedro_aat.delivery.rehearsal_result import RehearsalResult, RehearsedPart
from kedro_aat.errors import DeviceError, ExportError, RehearsalError
from kedro_aat.export.onnx_file import refuse_too_large
from kedro_aat.messages import doing
from kedro_aat.modes import quiet
from kedro_aat.rehearsal.advice import fault_of_stage
from kedro_aat.rehearsal.batch import (
    Uncompressed,
    fault_of_batch,
    misread_targets,
    rehearse_training_batch,
    rehearse_validation_batch,
)
from kedro_aat.rehearsal.common import Rehearsal
from kedro_aat.rehearsal.faults import Fault, PartFailedError, blamed, cause_of, part
from kedro_aat.rehearsal.files import rehearse_files
from kedro_aat.rehearsal.stages import rehearse_stage, save_and_resume, stages_of
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.data import Data
from kedro_aat.training.fingerprints.contents import ContentHash
from kedro_aat.training.random_state import rng_state, seed_everything, set_rng_state
from kedro_aat.training.runner import TrainingRunner

logger = logging.getLogger(__name__)

_NOTHING_DELIVERED = "Until then no stage can deliver a file of this model"
_MENDS_EXPORT = (
    "Write the operation with others that the exporters know, and let the forward pass not depend on the batch size or "
    "on values of tensors"
)
_MENDS_DEVICE = "Mend the function or the connection to the device"
_WORKS_ALONE = "Everything else goes on without it: set export.measure_with to null to measure on no device"
# Settings of the export that do not change what is done.
_NOT_REHEARSED = {"measure_with", "objective", "limits", "latency_seconds", "batch_sizes"}
NUM_KEPT = 10  # rehearsals of other settings, models or data that are kept


def rehearse(
    model: nn.Module,
    train_data: Data,
    validation_data: Data,
    settings: AatSettings,
    store: CheckpointStore | None = None,
) -> RehearsalResult:
    """Does everything that the run will do, once and in small.

    Args:
        model: The uncompressed model; it stays as it is.
        train_data: Training split, of which two batches are read.
        validation_data: Validation split, of which one batch is read.
        settings: Settings of the pipeline.
        store: Checkpoint store, in which it is kept that the rehearsal has passed; None keeps nothing.

    Raises:
        RehearsalError: Lists everything that fails.
    """
    if not settings.rehearsal or not settings.trains:
        return RehearsalResult(outcome="off")
    settings.check()
    if (overruled := settings.overruled_target()) is not None:
        logger.warning("%s", overruled)
    for words in settings.export.added_targets:
        logger.info("%s", words)
    _refuse_too_large(model)
    before = rng_state()
    try:
        seed_everything(settings.seed)
        rehearsal = first_batches(model, train_data, validation_data, settings)
        content = ContentHash()
        content.add([rehearsal.training.batches, rehearsal.validation.batches])
        device = Device.of(settings.export, FinishedSteps())
        finished = FinishedSteps(
            _folder(store),
            # Policies and budgets are left out: they do not change what is done.
            seed=settings.seed,
            stages=[stage.identity for stage in stages_of(settings)],
            export=settings.export.model_dump(mode="json", exclude=_NOT_REHEARSED),
            targets={name: settings.export.timed_batch_sizes(name) for name in settings.export.more_targets},
            training=dict(training_inputs(settings.training, settings.budget.also)),
            functions=rehearsal.default_training(nn.Identity()).callables().fingerprint,
            batches=content.hexdigest(),
            **({} if device is None else {"device": [device.identity, settings.export.shipped]}),
            **({} if settings.training.sharding == "none" else {"sharding": settings.training.sharding}),
        )
        is_new = False

        def try_all() -> RehearsalResult:
            nonlocal is_new
            is_new = True
            return _Parts(rehearsal, store).result()

        result = finished.result("rehearsal", RehearsalResult, try_all, model)
        result = result.model_copy(update={"passed_before": not is_new})
        finished.remove_others(NUM_KEPT)
    finally:
        set_rng_state(before)
    names = dict.fromkeys(each.name for each in result.parts)  # each stage has a checkpoint
    when = "passed before," if result.passed_before else "passed"
    logger.info("Rehearsal %s in %.1f s: %s", when, result.seconds, ", ".join(names))
    return result


def _folder(store: CheckpointStore | None) -> Path | None:
    """Where it is kept what was rehearsed; None keeps nothing."""
    return None if store is None else store.root / REHEARSALS


def _refuse_too_large(model: nn.Module) -> None:
    """Finds a model that no ONNX file holds, before seconds or minutes are spent on training and copying it."""
    try:
        refuse_too_large(model)
    except ExportError as error:
        raise RehearsalError([str(Fault("the baseline, export as ONNX file", str(error)))], 1) from error


def first_batches(model: nn.Module, train_data: Data, validation_data: Data, settings: AatSettings) -> Rehearsal:
    """Loads the first batches.

    Args:
        model: The uncompressed model.
        train_data: Training split.
        validation_data: Validation split.
        settings: Settings of the pipeline.

    Raises:
        RehearsalError: If a batch cannot be loaded.
    """
    try:
        return Rehearsal.of(model, settings, train_data, validation_data)
    except PartFailedError as error:
        blame = "The dataset, or what collates its examples, must give batches of inputs and targets"
        raise RehearsalError([str(Fault(error.part, cause_of(error), blame))], 1) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Suppresses what our own parts log, since the run says it again."""
    ours = logging.getLogger("kedro_aat")
    level = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(level)


class _Parts:
    """Tries one part after another, and collects what fails.

    Args:
        rehearsal: What all parts share.
        store: Checkpoint store; None if nothing is saved.
    """

    def __init__(self, rehearsal: Rehearsal, store: CheckpointStore | None) -> None:
        self._rehearsal = rehearsal
        self._store = store
        self._done: list[RehearsedPart] = []
        self._faults: list[Fault] = []
        self._first_error: BaseException | None = None
        self._has_saved = store is None

    def result(self) -> RehearsalResult:
        """What was done.

        Raises:
            RehearsalError: If anything failed.
        """
        logger.info("Rehearsal: everything that the run will do, once and in small")
        with doing("the rehearsal"), quiet(), _silent():
            if not self._misreads_targets():
                self._batch(is_training=True)
                self._batch(is_training=False)
            if "model" not in self._rehearsal.broken:
                self._baseline_files()
                self._stages()
            if not self._has_saved:
                self._save(self._uncompressed_runner(), resume=False)
        if self._faults:
            raise RehearsalError([*map(str, self._faults)], len(self._done)) from self._first_error
        return RehearsalResult(outcome="passed", parts=self._done)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            with doing(name):
                yield
        finally:
            self._done.append(RehearsedPart(name=name, seconds=time.perf_counter() - started))

    def _add(self, fault: Fault, error: BaseException) -> None:
        self._faults.append(fault)
        self._first_error = self._first_error or error

    def _misreads_targets(self) -> bool:
        """Whether metric or loss would misread the targets; then nothing is trained or validated."""
        started = time.perf_counter()
        if (fault := misread_targets(self._rehearsal)) is None:
            return False
        self._done.append(RehearsedPart(name="targets", seconds=time.perf_counter() - started))
        self._faults.append(fault)
        self._rehearsal.broken.update(("training", "validation"))
        return True

    def _batch(self, *, is_training: bool) -> None:
        """Trains or validates the uncompressed model."""
        name = "training" if is_training else "validation"
        with self._timed(name):
            try:
                (rehearse_training_batch if is_training else rehearse_validation_batch)(self._rehearsal)
            except PartFailedError as error:
                fault = fault_of_batch(error, self._rehearsal, is_training=is_training)
                self._add(fault, error)
                self._rehearsal.broken.add(name)
                if is_training and fault.part.startswith(("model", "training in")):
                    self._rehearsal.broken.add("model")  # nothing else can be done with it

    def _baseline_files(self) -> None:
        """Exports the uncompressed model."""
        with self._timed("the baseline's files"):
            try:
                files = rehearse_files(self._rehearsal.on_cpu(), self._rehearsal, search=True)
            except PartFailedError as error:
                layer = blamed(error).layer
                where = f"the baseline, {error.part}" + (f", layer {layer}" if layer else "")
                self._add(Fault(where, cause_of(error), _mends_files(error.part), _NOTHING_DELIVERED), error)
                is_exported = error.part.startswith("validation")
                self._rehearsal.broken.add("validation of files" if is_exported else "export")
                return
        self._device(files)

    def _device(self, files: Files) -> None:
        """Has the user's device measure the uncompressed model's file, if there is one."""
        # The run uses the answer: a device that takes a minute for a file is asked once for it.
        finished = FinishedSteps(_folder(self._store))
        device = Device.of(self._rehearsal.settings.export, finished)
        if device is None:
            return
        with self._timed("the device"):
            try:
                device.measured(files)
            except DeviceError as error:
                self._add(Fault("the device (export.measure_with)", str(error), _MENDS_DEVICE, _WORKS_ALONE), error)

    def _stages(self) -> None:
        """Does what each stage will do, with what the stage before returns; or with the model if that has failed."""
        model = self._rehearsal.on_cpu()
        save = None if self._store is None else self._save
        for stage in stages_of(self._rehearsal.settings):
            with self._timed(stage.title):
                try:
                    model = rehearse_stage(stage, model, self._rehearsal, save=save)
                except PartFailedError as error:
                    self._add(fault_of_stage(error, stage, model, self._rehearsal), error)

    def _save(self, runner: TrainingRunner, *, resume: bool = True) -> None:
        """Writes a checkpoint, and continues from it."""
        assert self._store is not None
        if any(fault.part == "checkpoint" for fault in self._faults):
            return
        self._has_saved = True
        with self._timed("checkpoint"):
            try:
                with part("checkpoint"):
                    save_and_resume(runner, self._store, resume=resume)
            except PartFailedError as error:
                self._add(Fault("checkpoint", cause_of(error)), error)

    def _uncompressed_runner(self) -> TrainingRunner:
        model = self._rehearsal.on_cpu()
        return self._rehearsal.runner(Uncompressed(model), self._rehearsal.default_training(model))


def _mends_files(failed: str) -> str:
    if failed.startswith("latency of"):
        return ""  # the error says it
    if failed.startswith("validation of"):
        return "A file has a forward pass alone, without the model's other methods and attributes: validate with that"
    if "read back" in failed:
        return "Let the forward pass in evaluation mode draw no random numbers and keep no state"
    return _MENDS_EXPORT

"""Measures with a model and its data what the formulas need, in a few steps: no epoch is trained."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.compressible import compressible
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.frozen import trainable_parameters
from kedro_aat.compression.masks import MASKS
from kedro_aat.compression.settings import FilterPruning, MagnitudeSparsity, algorithms_of
from kedro_aat.config import AatSettings
from kedro_aat.delivery.limits import highest_rate
from kedro_aat.errors import DivergedError, ExportError
from kedro_aat.export.onnx_file import refuse_too_large
from kedro_aat.messages import doing
from kedro_aat.model_inputs import call_model, tensors_in
from kedro_aat.modes import quiet
from kedro_aat.planning.files import measure_files, validation_batches
from kedro_aat.planning.job import Job, Model, Stage, Work
from kedro_aat.planning.live_tensors import LiveTensors
from kedro_aat.planning.machine import machine_of, process_bytes, written_bytes_per_second
from kedro_aat.rehearsal.common import Rehearsal
from kedro_aat.rehearsal.limited import NUM_CALLS, takes_data
from kedro_aat.rehearsal.rehearse import first_batches
from kedro_aat.rehearsal.stages import Stage as RunStage
from kedro_aat.rehearsal.stages import stages_of
from kedro_aat.search.frontier import Frontier
from kedro_aat.training.controllers import NUM_CALIBRATION_BATCHES, stage_controller
from kedro_aat.training.data import Data, as_dataset, example_count
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.few_batches import FewBatches, FewBatchesTraining
from kedro_aat.training.loading.datasets import plain_tensors
from kedro_aat.training.random_state import rng_state, seed_everything, set_rng_state
from kedro_aat.training.runner import TrainingRunner
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.training.teacher import as_teacher

Clock = Callable[[], float]

# Masks of so many weights at most are kept as numbers, too.
SMALL = 1 << 16
# Steps of the two epochs whose difference is the time of a step.
FEW, MORE = 2, 8
# Seconds beyond which one measurement is not repeated, or done on a part.
SECONDS = 2.0
# A rate that changes the mask of any model, and another one.
RATE, OTHER_RATE = 0.5, 0.6

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
    try:
        in_process = process_bytes() - _bytes_of(model) - sum(map(_data_bytes, splits))
        seed_everything(settings.seed)
        with quiet(), doing("measuring for the plan"):
            rehearsal = first_batches(model, *splits, settings)
            measuring = [_MeasuredStage(stage, rehearsal, clock) for stage in stages_of(settings)]
            stages, sizes = [], []
            for each in measuring:
                stage, size = each.result(settings)
                stages.append(stage)
                sizes.append(size)
            exports = _fits_a_file(model)
            files = measure_files(rehearsal, clock) if exports and with_files else None
            speed = written_bytes_per_second(model, store, clock)
    finally:
        set_rng_state(before)
    job = Job(
        sizes[0],
        tuple(stages),
        optimizer_values=measuring[0].optimizer_values,
        distills=settings.training.teaching is not None,
        machine=machine_of(settings.training, store),
        written_bytes_per_second=speed,
        measured=True,
        process_bytes=max(in_process, 0),
        data_bytes=sum(map(_data_bytes, splits)),
        exports=exports,
        certifies=settings.reads_test_split,
    )
    return job if files is None else replace(job, files=files)


class _MeasuredStage:
    """A few steps of one stage, on a copy of the uncompressed model.

    Args:
        stage: The stage.
        rehearsal: The model, settings and first batches.
        clock: Returns seconds.
    """

    def __init__(self, stage: RunStage, rehearsal: Rehearsal, clock: Clock) -> None:
        self._stage, self._rehearsal, self._clock = stage, rehearsal, clock
        self.optimizer_values = 0.0

    def result(self, settings: AatSettings) -> tuple[Stage, Model]:
        """What was measured, and the sizes of the model under the compression of this stage."""
        stage, rehearsal = self._stage, self._rehearsal
        later = settings.later_stages.get(stage.number)
        policy = settings.search if later is None else later.search
        controller = self._controller()
        names = algorithms_of(stage.compression)
        work = self._work(controller)
        masked = [buffer for name, buffer in controller.model.named_buffers() if name.endswith(MASKS)]
        others = [buffer for name, buffer in controller.model.named_buffers() if not name.endswith(MASKS)]
        weights = list(rehearsal.model.parameters())
        sizes = Model(
            parameters=sum(weight.numel() for weight in weights),
            trainable=sum(weight.numel() for weight in trainable_parameters(rehearsal.model)),
            maskable=sum(mask.numel() for mask in masked),
            small=sum(mask.numel() for mask in masked if mask.numel() <= SMALL),
            buffer_bytes=sum(buffer.nbytes for buffer in others),
            value_bytes=sum(weight.nbytes for weight in weights) / sum(weight.numel() for weight in weights),
        )
        algorithm = {"filter_pruning": "filters", "magnitude_sparsity": "sparsity"}.get(names[0], "int8")
        parts = getattr(stage.compression, "compressing", (stage.compression,))
        on_host = any(isinstance(part, MagnitudeSparsity | FilterPruning) and part.shadow_on_host for part in parts)
        shadow = "none" if not masked or isinstance(policy, Frontier) else "host" if on_host else "device"
        return Stage(algorithm, policy.maximal_total_epochs, shadow, work), sizes  # type: ignore[arg-type]  # literals

    def _controller(self) -> ModelController:
        rehearsal = self._rehearsal
        controller = stage_controller(
            copy.deepcopy(rehearsal.model), self._stage.compression, rehearsal.synthetic, self._stage.algorithms_before
        )
        training = rehearsal.default_training(controller.model, controller)
        if hasattr(controller, "calibrate"):
            controller.calibrate(training.calibration_batches(NUM_CALIBRATION_BATCHES))
        if controller.rankings:
            controller.rank_by(controller.rankings[0])
        return controller

    def _work(self, controller: ModelController) -> Work:
        rehearsal, clock = self._rehearsal, self._clock
        settings = rehearsal.settings.training
        highest = highest_rate(controller, self._stage.maximal_rate)
        rate, other = min(RATE, highest), min(OTHER_RATE, highest)
        peaks = {}
        # Half a batch first, since all that is built once is built then.
        for size in sorted({max(1, settings.batch_size // 2), settings.batch_size}):
            runner, _ = self._runner(controller, 1, batch_size=size, compile=False)
            refreshing, peaks[size] = self._peaks(runner, rate)
        self.optimizer_values = _optimizer_values(runner, trainable_parameters(controller.model))
        answers_stay = _answers_stay(rehearsal)
        runner, training = self._runner(controller, None)
        steps = training.steps_per_epoch
        # Epochs of a cut model count as what they cost, so that of the whole model is measured.
        runner.set_rate((0.0 if controller.name == "filter_pruning" else rate,))
        begin, step = self._step_seconds(controller, steps, distill=not answers_stay)
        refresh = _least(clock, lambda: runner.set_rate((other,)), lambda: runner.set_rate((rate,)))
        adapt = min(_taken(clock, runner.adapt), 60.0) if step < SECONDS / NUM_CALIBRATION_BATCHES else 0.0
        validation = self._validation_seconds(controller)
        examples = example_count(rehearsal.validation_data)
        answering = validation / examples * training.num_train_examples if answers_stay else 0.0
        fixed, per_example = _line(peaks)
        return Work(
            fixed_bytes=fixed,
            example_bytes=per_example,
            refresh_bytes=refreshing,
            batch_size=settings.batch_size,
            steps=steps,
            step_seconds=step,
            load_seconds=min(self._load_seconds(), step),
            begin_seconds=begin,
            validation_seconds=validation,
            refresh_seconds=refresh + adapt,
            teacher_seconds=answering,
        )

    def _runner(
        self, controller: ModelController, steps: int | None, **settings: Any
    ) -> tuple[TrainingRunner, FewBatchesTraining]:
        """Trains with the real loader for so many steps an epoch; None for all."""
        rehearsal = self._rehearsal
        own = rehearsal.settings.training.model_copy(update=settings)
        if steps is not None:
            own = own.model_copy(update={"loader": own.loader.model_copy(update={"steps_per_epoch": steps})})
        training = _training(rehearsal, own, controller)
        controller.steps_per_epoch = steps or training.steps_per_epoch
        runner = rehearsal.runner(controller, training, self._stage.learning_rate_factor)
        runner.reset_training()
        return runner, training

    def _peaks(self, runner: TrainingRunner, rate: float) -> tuple[int, int]:
        """The most that a change of the rate and a step add to weights, masks and the state of the optimizer."""
        runner.set_rate((0.0,))
        self._train(runner)  # from then on, the optimizer has its state
        runner.model.zero_grad(set_to_none=True)
        refreshing, training = LiveTensors(), LiveTensors()
        with refreshing:
            runner.set_rate((rate,))
        with training:
            self._train(runner)
        return refreshing.peak, training.peak

    def _train(self, runner: TrainingRunner) -> None:
        """Trains for an epoch; a loss that is NaN takes as long as another one."""
        with contextlib.suppress(DivergedError):
            self._rehearsal.train(runner)

    def _step_seconds(self, controller: ModelController, steps: int, *, distill: bool) -> tuple[float, float]:
        """Seconds before the first step of an epoch, and of a step."""
        few, more = min(FEW, steps), min(MORE, steps)
        if not takes_data(self._rehearsal.settings.training.function("train_epoch")):
            few = more = NUM_CALLS  # after which it is ended
        runners = {}
        for number in {few, more}:
            runners[number], training = self._runner(controller, number)
            training.distill(distill)
        trained = {number: partial(self._train, runner) for number, runner in runners.items()}
        _taken(self._clock, trained[few])  # the first steps allocate, and perhaps compile
        short = _taken(self._clock, trained[few])
        if few == more or short > SECONDS:
            return 0.0, short / few
        long = min(_taken(self._clock, trained[more]) for _ in range(2))
        short = min(short, _taken(self._clock, trained[few]))
        step = max(long - short, 0.1 * long) / (more - few)
        return max(short - few * step, 0.0), step

    def _load_seconds(self) -> float:
        """Seconds to load a batch, if training waits for it."""
        settings = self._rehearsal.settings.training
        if settings.num_workers:
            return 0.0
        training = _training(self._rehearsal, settings, None)
        batches: Iterator[Any] = iter(training.train_batches(0))
        next(batches, None)
        started, number = self._clock(), 0
        for _ in itertools.islice(batches, FEW):
            number += 1
        return (self._clock() - started) / max(number, 1)

    def _validation_seconds(self, controller: ModelController) -> float:
        """One validation with its standard error; if it takes long, from some of its batches and without that."""
        rehearsal, clock = self._rehearsal, self._clock
        settings = rehearsal.settings.training
        examples = example_count(rehearsal.validation_data)
        if settings.validate_ is not None:
            return _taken(clock, rehearsal.runner(controller, _training(rehearsal, settings, controller)).validate)
        few = validation_batches(rehearsal, MORE)
        training = _training(rehearsal, settings, controller, validation=few)
        runner = rehearsal.runner(controller, training)
        _taken(clock, runner.validate)
        seconds = _taken(clock, runner.validate) * max(examples / (settings.batch_size * len(few)), 1.0)
        if seconds > SECONDS:
            return seconds
        whole = DefaultTraining(
            controller.model,
            settings,
            None,
            rehearsal.validation_data,
            controller=controller,
            guards=rehearsal.settings.budget.also,
        )
        runner = rehearsal.runner(controller, whole)
        _taken(clock, runner.validate)  # finds out how the standard error is computed
        return _taken(clock, runner.validate)


def _training(
    rehearsal: Rehearsal,
    settings: TrainingSettings,
    controller: ModelController | None,
    *,
    validation: FewBatches | None = None,
) -> FewBatchesTraining:
    """The default training; the teacher answers each batch."""
    return FewBatchesTraining(
        nn.Identity() if controller is None else controller.model,
        settings,
        rehearsal.train_data,
        rehearsal.validation_data,
        validation=validation,
        seed=rehearsal.settings.seed,
        teacher=as_teacher(rehearsal.model) if settings.teaching is not None else None,
        controller=controller,
        guards=rehearsal.settings.budget.also,
    )


def _answers_stay(rehearsal: Rehearsal) -> bool:
    """Whether a stage asks the teacher once for all examples, as `Teacher.with_answers` decides."""
    if rehearsal.settings.training.teaching is None:
        return False
    if not plain_tensors(as_dataset(rehearsal.train_data, "training", rehearsal.settings.training.batch)):
        return False
    with torch.no_grad():
        outputs = call_model(rehearsal.on_cpu(), rehearsal.inputs)
    return sum(map(Tensor.numel, tensors_in(outputs))) <= sum(map(Tensor.numel, tensors_in(rehearsal.inputs)))


def _optimizer_values(runner: TrainingRunner, parameters: list[nn.Parameter]) -> float:
    """Values of the optimizers' state for each trained parameter."""
    optimizers = runner.optimizer if isinstance(runner.optimizer, list) else [runner.optimizer]
    states = [state for each in optimizers if each is not None for state in each.state.values()]
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor) and value.dim()]
    return sum(tensor.numel() for tensor in tensors) / max(sum(each.numel() for each in parameters), 1)


def _line(peaks: dict[int, int]) -> tuple[float, float]:
    """Bytes without examples, and for each of them, from the peaks at one or two batch sizes."""
    (size, peak), *more = sorted(peaks.items())
    if not more:
        return 0.0, peak / size
    (larger, larger_peak), *_ = more
    slope = max(larger_peak - peak, 0) / (larger - size)
    return max(larger_peak - slope * larger, 0.0), slope


def _taken(clock: Clock, function: Callable[[], object]) -> float:
    started = clock()
    function()
    return clock() - started


def _least(clock: Clock, *functions: Callable[[], object]) -> float:
    return min(_taken(clock, function) for function in functions)


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

"""Measures a few training steps of one stage."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.frozen import trainable_parameters
from kedro_aat.compression.masks import MASKS
from kedro_aat.compression.settings import FilterPruning, MagnitudeSparsity, algorithms_of
from kedro_aat.delivery.limits import highest_rate
from kedro_aat.errors import DivergedError
from kedro_aat.model_inputs import call_model, tensors_in
from kedro_aat.planning.files import validation_batches
from kedro_aat.planning.job import INT8_SHARE, Model, Stage, Work
from kedro_aat.planning.live_tensors import LiveTensors
from kedro_aat.rehearsal.common import Rehearsal
from kedro_aat.rehearsal.limited import NUM_CALLS, takes_data
from kedro_aat.rehearsal.stages import Stage as RunStage
from kedro_aat.search.frontier import Frontier
from kedro_aat.training.controllers import NUM_CALIBRATION_BATCHES, stage_controller
from kedro_aat.training.data import as_dataset, example_count
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.few_batches import FewBatches, FewBatchesTraining
from kedro_aat.training.loading.datasets import plain_tensors
from kedro_aat.training.runner import TrainingRunner
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.training.teacher import as_teacher

Clock = Callable[[], float]

# Masks of so many weights at most are kept as numbers, too.
SMALL = 1 << 16
# Bytes from which on glibc gives the memory of a freed tensor back to the system (its largest M_MMAP_THRESHOLD).
HEAP = 1 << 25
# Steps of the two epochs whose difference is the time of a step.
FEW, MORE = 2, 8
# Seconds beyond which one measurement is not repeated, or done on a part.
SECONDS = 2.0
# The rate at which memory is measured, since a model that is less cut takes more; and the one at which time is
# measured, and with which a later stage begins.
RATE, TYPICAL_RATE = 0.5, 0.8


class MeasuredStage:
    """A few steps of one stage, on a copy of the uncompressed model, or of what the stage before would return.

    Args:
        stage: The stage.
        rehearsal: The model, settings and first batches.
        clock: Returns seconds.
        before: What the stage before would return; None for the uncompressed model.

    Attributes:
        optimizer_values: Values of the optimizer for each trained parameter; known after `result`.
        stripped: The model as it would be exported; known after `result`.
    """

    def __init__(self, stage: RunStage, rehearsal: Rehearsal, clock: Clock, before: nn.Module | None = None) -> None:
        self._stage, self._rehearsal, self._clock = stage, rehearsal, clock
        self._before = rehearsal.model if before is None else before
        self.optimizer_values = 0.0
        self.stripped: nn.Module | None = None

    def result(self) -> Stage:
        """What was measured."""
        stage, settings = self._stage, self._rehearsal.settings
        later = settings.later_stages.get(stage.number)
        policy = settings.search if later is None else later.search
        controller = self._controller()
        names = algorithms_of(stage.compression)
        work = self._work(controller)
        masked = [buffer for name, buffer in controller.model.named_buffers() if name.endswith(MASKS)]
        others = [buffer for name, buffer in controller.model.named_buffers() if not name.endswith(MASKS)]
        weights = list(self._before.parameters())
        sizes = Model(
            parameters=sum(weight.numel() for weight in weights),
            trainable=sum(weight.numel() for weight in trainable_parameters(controller.model)),
            maskable=sum(mask.numel() for mask in masked),
            small=sum(mask.numel() for mask in masked if mask.numel() <= SMALL),
            heap_bytes=sum(weight.nbytes for weight in weights if weight.nbytes < HEAP),
            buffer_bytes=sum(buffer.nbytes for buffer in others),
            value_bytes=sum(weight.nbytes for weight in weights) / sum(weight.numel() for weight in weights),
        )
        algorithm = {"filter_pruning": "filters", "magnitude_sparsity": "sparsity"}.get(names[0], "int8")
        parts = getattr(stage.compression, "compressing", (stage.compression,))
        on_host = any(isinstance(part, MagnitudeSparsity | FilterPruning) and part.shadow_on_host for part in parts)
        shadow = "none" if not masked or isinstance(policy, Frontier) else "host" if on_host else "device"
        self.stripped = controller.strip().cpu().eval()
        left = sum(weight.numel() for weight in self.stripped.parameters()) / self._num_parameters
        share = left * (INT8_SHARE if "quantization" in (*names, *stage.algorithms_before) else 1.0)
        return Stage(algorithm, policy.maximal_total_epochs, shadow, work, sizes, share)  # type: ignore[arg-type]

    @property
    def _num_parameters(self) -> int:
        return sum(weight.numel() for weight in self._rehearsal.model.parameters())

    def _controller(self) -> ModelController:
        rehearsal = self._rehearsal
        controller = stage_controller(
            copy.deepcopy(self._before), self._stage.compression, rehearsal.synthetic, self._stage.algorithms_before
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
        rate, typical = min(RATE, highest), min(TYPICAL_RATE, highest)
        peaks = {}
        # Half a batch first, since all that is built once is built then.
        for size in sorted({max(1, settings.batch_size // 2), settings.batch_size}):
            runner, _ = self._runner(controller, 1, batch_size=size, compile=False)
            refreshing, peaks[size] = self._peaks(runner, rate)
        self.optimizer_values = _optimizer_values(runner, trainable_parameters(controller.model))
        answers_stay = _answers_stay(rehearsal)
        runner, training = self._runner(controller, None)
        steps = training.steps_per_epoch
        # Epochs of a cut model count as what they cost, but take another time.
        refresh = _least(clock, lambda: runner.set_rate((rate,)), lambda: runner.set_rate((typical,)))
        begin, step, cost = self._step_seconds(controller, steps, distill=not answers_stay)
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
            cost=cost,
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

    def _step_seconds(self, controller: ModelController, steps: int, *, distill: bool) -> tuple[float, float, float]:
        """Seconds before the first step of an epoch, and of a step; and what an epoch counts for the search."""
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
            return 0.0, short / few, runners[few].epoch_cost
        long = min(_taken(self._clock, trained[more]) for _ in range(2))
        short = min(short, _taken(self._clock, trained[few]))
        step = max(long - short, 0.1 * long) / (more - few)
        return max(short - few * step, 0.0), step, runners[few].epoch_cost

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
    """The default training; the teacher answers each batch. Weights that a device cannot hold whole are on the CPU."""
    if rehearsal.divides:
        settings = settings.model_copy(update={"device": "cpu"})
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

"""One search stage, from data and settings: what the pipeline's nodes and notebooks call."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from kedro_aat.budget import Budget, GuardSettings, Outcome
from kedro_aat.compression.controller import ModelController
from kedro_aat.errors import AatError, ConfigurationError, InterruptedRunError, RankError
from kedro_aat.ranks import group
from kedro_aat.ranks.environment import launched_world_size
from kedro_aat.search import Policy
from kedro_aat.search.policy import Goal, updated
from kedro_aat.training.checkpoints import CheckpointStore, RunCheckpoints
from kedro_aat.training.checkpoints.recovery import records_of, recover, reopen_with_more_epochs
from kedro_aat.training.data import Data, data_fingerprint, example_count
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.device import pick_device
from kedro_aat.training.ending import end_with_best
from kedro_aat.training.failures import USER_ERRORS, alone, best_so_far
from kedro_aat.training.fingerprints.identity import fingerprint, ingredients_of
from kedro_aat.training.loop import adaptive_problem, fine_tune
from kedro_aat.training.progress import (
    CallbackTracker,
    Following,
    LoopProgress,
    TensorBoardTracker,
    Tracker,
    Tracking,
)
from kedro_aat.training.random_state import seed_everything
from kedro_aat.training.ranks.data_parallel import DataParallel
from kedro_aat.training.ranks.divided_model import divide, divided_copy
from kedro_aat.training.ranks.launch import run_on_ranks
from kedro_aat.training.ranks.leading import LeadingRunner, RankRunner, follow, leading
from kedro_aat.training.ranks.sharding import Shard
from kedro_aat.training.ranks.stage_inputs import SearchStageResult, StageInputs, WriterOf
from kedro_aat.training.ranks.waiting import with_those_who_wait
from kedro_aat.training.records import FineTuned
from kedro_aat.training.runner import Evaluation, TrainingRunner
from kedro_aat.training.scoring.groups import identity_of_groups
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.training.stopwatch import Stopwatch
from kedro_aat.training.teacher import as_teacher

logger = logging.getLogger(__name__)

EPOCHS = ("maximal_total_epochs",)  # a run goes on if it is given more of them


@dataclass(frozen=True)
class SearchStage:
    """Settings of one search stage.

    Attributes:
        policy: Search policy, which chooses the rates.
        training: How the model is trained and judged.
        minimal_rate: Lowest rate worth returning, in [0, 1).
        maximal_rate: Highest rate to try, in [0, 1).
        seed: Seed of shuffling, dropout and augmentation.
        time_limit: Seconds for the stage, in all processes together; None for no limit.
        identity: What else identifies its run, as JSON data; without what is at its default.
        ingredients: The same with the defaults, which is written beside the run.
        goal: What the search looks for; for `accuracy`, the lowest and the highest rate are equal.
        learning_rate_factor: Factor on all learning rates of `training`, above 0.
        guards: Further metrics, whose tolerated drops are in `also` of the budget.
        is_later: Whether the stage follows another one, whose model is delivered if this one finds none.
    """

    policy: Policy
    training: TrainingSettings
    minimal_rate: float
    maximal_rate: float
    seed: int
    time_limit: float | None
    identity: Mapping[str, Any]
    ingredients: Mapping[str, Any]
    goal: Goal = "size"
    learning_rate_factor: float = 1.0
    guards: tuple[GuardSettings, ...] = ()
    is_later: bool = False

    def run(
        self,
        controller: ModelController,
        teacher: nn.Module,
        train_data: Data,
        validation_data: Data,
        baseline: Evaluation,
        budget: Budget,
        store: CheckpointStore,
        writer_of: WriterOf,
        stopwatch: Stopwatch | None = None,
        *,
        trains: bool = True,
        tracking: Tracking | None = None,
    ) -> SearchStageResult:
        """Fine-tunes the controller's model, and leaves it on the CPU at the best rate within budget.

        Args:
            controller: Controller with the model under compression; changed in place.
            teacher: The uncompressed model; it stays as it is.
            train_data: Training split.
            validation_data: Validation split, which judges every epoch.
            baseline: The uncompressed model on the validation split.
            budget: Accuracy budget.
            store: Checkpoint store that keeps the run; the same call continues it.
            writer_of: Makes a TensorBoard writer; None writes nothing.
            stopwatch: Measures the stage since it began; None if it begins with this call.
            trains: Whether the search goes on; otherwise it ends with the best that it has found so far.
            tracking: Who follows the search, besides TensorBoard and `training.on_epoch`; None for nobody.

        Raises:
            InterruptedRunError: If the run was stopped; the same call continues it.
            UserFunctionError, MetricError, UnrepeatableError, DataError: If the user's code or data fail; the same call
                with the same code continues the run.
            MissingRunError: If nothing may be trained, and nothing was.
        """
        stopwatch = stopwatch or Stopwatch()
        inputs = StageInputs(
            controller,
            teacher,
            train_data,
            validation_data,
            baseline,
            budget,
            store,
            writer_of,
            stopwatch,
            tracking or Tracking(),
        )
        settings = self.training
        if trains and settings.devices > 1 and launched_world_size() == 1:
            return run_on_ranks(self, inputs)
        if not trains and launched_world_size() > 1 and not group.is_distributed():  # rank 0 of ranks that wait
            return self._run(inputs, self._runner(inputs), trains=False)
        with with_those_who_wait(self, inputs):
            return self.run_on(inputs, trains=trains)

    def run_on(self, inputs: StageInputs, *, trains: bool = True) -> SearchStageResult:
        """Does as `run`, in this process, together with the other ranks if it is one of several."""
        settings = self.training
        limits = settings.collective_timeout_seconds, settings.startup_timeout_seconds
        with group.joined(pick_device(settings.device), *(timedelta(seconds=limit) for limit in limits)):
            return self._run_in_group(inputs, trains=trains)

    def _run_in_group(self, inputs: StageInputs, *, trains: bool) -> SearchStageResult:
        if not group.is_distributed():
            return self._run(inputs, self._runner(inputs), trains=trains)
        if not trains:
            return self._best_by_rank_0(inputs)
        shard = Shard(group.rank(), group.world_size())
        if self.training.train_epoch is not None:  # the settings know of `devices` alone
            raise ConfigurationError(
                "training",
                [
                    f"train_epoch: must be left out where {shard.size} processes train together, because each would "
                    f"train a model of its own, but got {self.training.train_epoch}"
                ],
            )
        if group.is_main():
            runner = self._runner(inputs, shard)
            assert isinstance(runner, LeadingRunner)
            with leading(runner) as end:
                end.value = result = self._run(inputs, runner)
            return result
        told: SearchStageResult = follow(self._runner(inputs, shard))
        inputs.controller.model.cpu()
        return told

    def _runner(self, inputs: StageInputs, shard: Shard | None = None) -> TrainingRunner:
        """The model in training."""
        controller, budget = inputs.controller, inputs.budget
        teacher = None if self.training.teaching is None else as_teacher(inputs.teacher)
        seed_everything(self.seed)
        if shard is not None and self.training.sharding == "fully_shard":
            device = pick_device(self.training.device)
            controller = divided_copy(controller, device)
            teacher = teacher and divide(teacher, device)
        training = DefaultTraining(
            controller.model,
            self.training,
            inputs.train_data,
            inputs.validation_data,
            seed=self.seed,
            teacher=teacher,
            controller=controller,
            guards=self.guards,
            shard=shard,
        )
        for _ in range(inputs.num_halvings):
            training.halve_batch()
        controller.steps_per_epoch = training.steps_per_epoch
        kind = TrainingRunner if shard is None else RankRunner if shard.rank else LeadingRunner
        return kind(
            controller.model,
            controller,
            training.callables(),
            uncompressed_model_accuracy=budget.baseline,
            minimal_tolerable_accuracy=budget.lowest_tolerated,
            higher_is_better=budget.higher_is_better,
            learning_rate_factor=self.learning_rate_factor,
        )

    def _best_by_rank_0(self, inputs: StageInputs) -> SearchStageResult:
        """The best that was found so far; rank 0 reads it, and the others get it."""
        controller, result, error = inputs.controller, None, None
        if group.is_main():
            try:
                result = self._run(inputs, self._runner(inputs), trains=False)
            except AatError as raised:
                error = raised
        result, state, error = group.told((result, controller.get_state(), error))
        if error is not None:
            raise error
        DataParallel(Shard(group.rank(), group.world_size()), torch.device("cpu")).synchronize(controller.model)
        controller.load_state(state)
        assert result is not None  # else there is an error
        return result

    def _run(self, inputs: StageInputs, runner: TrainingRunner, *, trains: bool = True) -> SearchStageResult:
        controller, teacher, store, budget = inputs.controller, inputs.teacher, inputs.store, inputs.budget
        stopwatch = inputs.stopwatch
        stopwatch.limit = self.time_limit
        num_validation = example_count(inputs.validation_data)
        form = self.training.batch
        identity = {
            "functions": runner.callables.fingerprint,
            "settings": dict(self.identity),
            "model": fingerprint(controller.model),
            "teacher": fingerprint(teacher) if self.training.distillation else None,
            "train_data": data_fingerprint(inputs.train_data, store.file_hashes, form),
            "validation_data": data_fingerprint(inputs.validation_data, store.file_hashes, form),
            **identity_of_groups(inputs.validation_data, self.training.group),
        }
        metrics = [guard.metric.load() for guard in self.guards if guard.metric is not None]
        objects = [*vars(runner.callables).values(), *self.training.named_objects, *metrics]
        more, packages = ingredients_of(objects, [controller.model], teacher, inputs.baseline.metric)
        identity |= more
        opened = store.open(
            identity,
            ingredients=identity | {"settings": dict(self.ingredients), "packages": packages},
            after_upgrade=self.training.after_upgrade,
            may_differ=EPOCHS,
            create=trains,
        )
        with opened as checkpoints:
            if trains:
                try:
                    result = self._search(runner, inputs, checkpoints, num_validation)
                    if isinstance(runner, RankRunner) and runner.model is not controller.model:  # a divided copy
                        controller.model.load_state_dict(runner.whole_state())
                        controller.load_state(runner.compression_controller.get_state())
                except KeyboardInterrupt:  # before the first checkpoint, or after the last one
                    raise InterruptedRunError(f"The run was stopped. {Outcome.INTERRUPTED.advice}") from None
                except RankError as error:
                    raise alone(error, self.policy, checkpoints) from error.__cause__
                except USER_ERRORS as error:
                    if best_so_far(self.policy, checkpoints) is None:
                        raise
                    raise type(error)(
                        f"{error}\nIf you must change your code, which begins a new run, `kedro aat deliver` delivers "
                        "the best model so far before you do; from Python, the same call with best_so_far=True does."
                    ) from error.__cause__
                finally:
                    stopwatch.save()
            else:
                result = end_with_best(runner, self.policy, budget, checkpoints, self.minimal_rate)
                stopwatch.resume(checkpoints.folder, result.history, is_over=True)
        if result.outcome is Outcome.INTERRUPTED:
            raise InterruptedRunError(
                f"Stopped after epoch {result.history[-1].epoch}. {result.outcome.advice} "
                f"Its checkpoints are in {checkpoints.folder}."
            )
        controller.model.cpu()
        device = str(pick_device(self.training.device))
        return SearchStageResult(result, budget, checkpoints.folder.name, device, stopwatch.seconds)

    def _search(
        self, runner: TrainingRunner, inputs: StageInputs, checkpoints: RunCheckpoints, num_validation: int
    ) -> FineTuned:
        budget, stopwatch = inputs.budget, inputs.stopwatch
        controller = inputs.controller  # at the rate at which the search begins
        problem = adaptive_problem(
            controller,
            budget,
            minimal_rate=self.minimal_rate,
            maximal_rate=self.maximal_rate,
            callables=runner.callables,
        )
        problem = updated(problem, goal=self.goal, num_validation=num_validation)
        reopen_with_more_epochs(self.policy, checkpoints)
        recover(runner, self.policy, problem, budget, checkpoints)
        known = records_of(checkpoints.latest())
        is_over = checkpoints.is_finished or not checkpoints.is_writable
        stopwatch.resume(checkpoints.folder, known, is_over=is_over)
        search = inputs.tracking.search(checkpoints.folder.name, known, is_over=is_over)
        with Following(self._trackers(inputs), search) as following:
            following.result = result = fine_tune(
                runner,
                self.policy,
                problem,
                budget,
                checkpoints,
                LoopProgress(
                    verbose=True,
                    total=self.policy.maximal_total_epochs,
                    algorithm=controller.settings.algorithm,
                    on_epoch=following.epoch,
                ),
                baseline=inputs.baseline,
                stopwatch=stopwatch,
                is_later=self.is_later,
            )
        return result

    def _trackers(self, inputs: StageInputs) -> list[Tracker]:
        """All who follow the search."""
        trackers: list[Tracker] = []
        if inputs.writer_of is not None:
            trackers.append(TensorBoardTracker(inputs.writer_of, self.ingredients))
        if (function := self.training.function("on_epoch")) is not None:
            trackers.append(CallbackTracker(function))
        return [*trackers, *inputs.tracking.trackers]

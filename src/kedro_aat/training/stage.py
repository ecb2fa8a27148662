"""One search stage, from data and settings: what the pipeline's nodes and notebooks call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from kedro_aat.budget import Budget, GuardSettings, Outcome
from kedro_aat.compression.controller import ModelController
from kedro_aat.errors import InterruptedRunError
from kedro_aat.search import Policy
from kedro_aat.search.policy import Goal, updated
from kedro_aat.training.checkpoints import CheckpointStore, RunCheckpoints
from kedro_aat.training.checkpoints.recovery import records_of, recover, reopen_with_more_epochs
from kedro_aat.training.data import Data, data_fingerprint, example_count
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.device import pick_device
from kedro_aat.training.ending import end_with_best
from kedro_aat.training.failures import USER_ERRORS, best_so_far
from kedro_aat.training.fingerprints.identity import fingerprint, ingredients_of
from kedro_aat.training.loop import adaptive_problem, fine_tune
from kedro_aat.training.progress import LoopProgress, write_hyperparameters
from kedro_aat.training.random_state import seed_everything
from kedro_aat.training.records import FineTuned
from kedro_aat.training.runner import Evaluation, TrainingRunner
from kedro_aat.training.scoring.groups import identity_of_groups
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.training.stopwatch import Stopwatch
from kedro_aat.training.teacher import as_teacher

logger = logging.getLogger(__name__)

EPOCHS = ("maximal_total_epochs",)  # a run goes on if it is given more of them
WriterOf = Callable[..., Any]  # (run, next_epoch=) -> a TensorBoard writer


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
            writer_of: Makes a TensorBoard writer.
            stopwatch: Measures the stage since it began; None if it begins with this call.
            trains: Whether the search goes on; otherwise it ends with the best that it has found so far.

        Raises:
            InterruptedRunError: If the run was stopped; the same call continues it.
            UserFunctionError, MetricError, UnrepeatableError, DataError: If the user's code or data fail; the same call
                with the same code continues the run.
            MissingRunError: If nothing may be trained, and nothing was.
        """
        stopwatch = stopwatch or Stopwatch()
        stopwatch.limit = self.time_limit
        num_validation = example_count(validation_data)
        seed_everything(self.seed)
        training = DefaultTraining(
            controller.model,
            self.training,
            train_data,
            validation_data,
            seed=self.seed,
            teacher=None if self.training.teaching is None else as_teacher(teacher),
            controller=controller,
            guards=self.guards,
        )
        controller.steps_per_epoch = training.steps_per_epoch
        runner = TrainingRunner(
            controller.model,
            controller,
            training.callables(),
            uncompressed_model_accuracy=budget.baseline,
            minimal_tolerable_accuracy=budget.lowest_tolerated,
            higher_is_better=budget.higher_is_better,
            learning_rate_factor=self.learning_rate_factor,
        )
        identity = {
            "functions": runner.callables.fingerprint,
            "settings": dict(self.identity),
            "model": fingerprint(controller.model),
            "teacher": fingerprint(teacher) if self.training.distillation else None,
            "train_data": data_fingerprint(train_data, store.file_hashes, self.training.batch),
            "validation_data": data_fingerprint(validation_data, store.file_hashes, self.training.batch),
            **identity_of_groups(validation_data, self.training.group),
        }
        metrics = [guard.metric.load() for guard in self.guards if guard.metric is not None]
        objects = [*vars(runner.callables).values(), *self.training.named_objects, *metrics]
        more, packages = ingredients_of(objects, [controller.model], teacher, baseline.metric)
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
                    result = self._search(runner, baseline, budget, checkpoints, writer_of, num_validation, stopwatch)
                except KeyboardInterrupt:  # before the first checkpoint, or after the last one
                    raise InterruptedRunError(f"The run was stopped. {Outcome.INTERRUPTED.advice}") from None
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
        self,
        runner: TrainingRunner,
        baseline: Evaluation,
        budget: Budget,
        checkpoints: RunCheckpoints,
        writer_of: WriterOf,
        num_validation: int,
        stopwatch: Stopwatch,
    ) -> FineTuned:
        controller = runner.compression_controller
        assert isinstance(controller, ModelController)
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
        writer, is_over = None, checkpoints.is_finished or not checkpoints.is_writable
        stopwatch.resume(checkpoints.folder, known, is_over=is_over)
        if not is_over:
            writer = writer_of(checkpoints.folder.name, next_epoch=known[-1].epoch + 1 if known else 0)
        result = fine_tune(
            runner,
            self.policy,
            problem,
            budget,
            checkpoints,
            LoopProgress(
                verbose=True,
                total=self.policy.maximal_total_epochs,
                writer=writer,
                algorithm=controller.settings.algorithm,
                on_epoch=self.training.function("on_epoch"),
            ),
            baseline=baseline,
            stopwatch=stopwatch,
            is_later=self.is_later,
        )
        if writer is not None:
            if result.outcome is not Outcome.INTERRUPTED:
                write_hyperparameters(writer, self.ingredients, result)
            writer.close()
        return result


@dataclass(frozen=True)
class SearchStageResult:
    """How a search stage ended.

    Attributes:
        fine_tuned: How its search ended.
        budget: Budget that its model keeps.
        run: Name of the run's folder in the store.
        device: Device on which it was trained.
        seconds: Wall time of the stage from its begin to its end, in all processes that worked on it.
    """

    fine_tuned: FineTuned
    budget: Budget
    run: str
    device: str
    seconds: float

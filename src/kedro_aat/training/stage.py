"""One search stage, from data and settings: what the pipeline's nodes and notebooks call."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from kedro_aat.budget import Budget, BudgetSettings, Outcome
from kedro_aat.compression.controller import ModelController
from kedro_aat.errors import InterruptedRunError
from kedro_aat.search import Policy
from kedro_aat.search.policy import Goal, updated, with_epochs
from kedro_aat.training.checkpoints import CheckpointStore, RunCheckpoints
from kedro_aat.training.checkpoints.recovery import records_of, recover
from kedro_aat.training.cost import expected_cost, timed_epoch
from kedro_aat.training.data import Data, data_fingerprint, example_count
from kedro_aat.training.default import DefaultTraining, pick_device
from kedro_aat.training.groups import identity_of_groups
from kedro_aat.training.identity import fingerprint
from kedro_aat.training.loop import adaptive_problem, choose, fine_tune
from kedro_aat.training.progress import LoopProgress, write_hyperparameters
from kedro_aat.training.random_state import seed_everything
from kedro_aat.training.records import FineTuned
from kedro_aat.training.runner import Evaluation, TrainingRunner
from kedro_aat.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

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
        time_limit: Seconds for the search; None for no limit.
        identity: What else identifies its run, as JSON data; without what is at its default.
        ingredients: The same with the defaults, which is written beside the run.
        goal: What the search looks for; for `accuracy`, the lowest and the highest rate are equal.
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
        choice: BudgetSettings | None = None,
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
            choice: Another budget, for which a model is read off the Pareto front of the run without training.

        Raises:
            InterruptedRunError: If the run was stopped; the same call continues it.
            CheckpointError: If there is no run to choose from.
        """

        def runner_of(controller: ModelController) -> TrainingRunner:
            training = DefaultTraining(
                controller.model,
                self.training,
                train_data,
                validation_data,
                seed=self.seed,
                teacher=copy.deepcopy(teacher),
                controller=controller,
            )
            controller.steps_per_epoch = training.steps_per_epoch
            return TrainingRunner(
                controller.model,
                controller,
                training.callables(),
                uncompressed_model_accuracy=budget.baseline,
                minimal_tolerable_accuracy=budget.lowest_tolerated,
                higher_is_better=budget.higher_is_better,
            )

        num_validation = example_count(validation_data)
        seed_everything(self.seed)
        runner = runner_of(controller)
        identity = {
            "functions": runner.callables.fingerprint,
            "settings": dict(self.identity),
            "model": fingerprint(controller.model),
            "teacher": fingerprint(teacher) if self.training.distillation else None,
            "train_data": data_fingerprint(train_data),
            "validation_data": data_fingerprint(validation_data),
            **identity_of_groups(validation_data, self.training.group),
        }
        opened = store.open(
            identity,
            ingredients=identity | {"settings": dict(self.ingredients)},
            after_upgrade=self.training.after_upgrade,
        )
        with opened as checkpoints:
            if choice is None:
                try:
                    result = self._search(runner, runner_of, baseline, budget, checkpoints, writer_of, num_validation)
                except KeyboardInterrupt:  # before the first checkpoint, or after the last one
                    raise InterruptedRunError(f"The run was stopped. {Outcome.INTERRUPTED.advice}") from None
            else:
                budget = choice.budget(budget.baseline, higher_is_better=budget.higher_is_better)
                result = choose(runner, self.policy, budget, checkpoints)
        if result.outcome is Outcome.INTERRUPTED:
            raise InterruptedRunError(
                f"Stopped after epoch {result.history[-1].epoch}. {result.outcome.advice} "
                f"Its checkpoints are in {checkpoints.folder}."
            )
        controller.model.cpu()
        return SearchStageResult(result, budget, checkpoints.folder.name, str(pick_device(self.training.device)))

    def _search(
        self,
        runner: TrainingRunner,
        runner_of: Callable[[ModelController], TrainingRunner],
        baseline: Evaluation,
        budget: Budget,
        checkpoints: RunCheckpoints,
        writer_of: WriterOf,
        num_validation: int,
    ) -> FineTuned:
        controller = runner.compression_controller
        problem = adaptive_problem(
            controller,
            budget,
            minimal_rate=self.minimal_rate,
            maximal_rate=self.maximal_rate,
            callables=runner.callables,
        )
        problem = updated(problem, goal=self.goal, num_validation=num_validation)
        recover(runner, self.policy, problem, budget, checkpoints)
        known = records_of(checkpoints.latest())
        cost = expected_cost(
            known, self.policy.maximal_total_epochs, lambda: timed_epoch(controller, runner_of), self.time_limit
        )
        writer = None
        if checkpoints.is_writable and not checkpoints.is_finished:
            logger.info("%s", cost)
            writer = writer_of(checkpoints.folder.name, next_epoch=known[-1].epoch + 1 if known else 0)
        result = fine_tune(
            runner,
            with_epochs(self.policy, cost.epochs),
            problem,
            budget,
            checkpoints,
            LoopProgress(verbose=True, total=cost.epochs, writer=writer),
            baseline=baseline,
            time_limit=self.time_limit,
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
    """

    fine_tuned: FineTuned
    budget: Budget
    run: str
    device: str

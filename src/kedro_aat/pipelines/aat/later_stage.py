"""The search of a later stage, on what the stage before has found."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kedro_aat.config import AatSettings, LaterStage
from kedro_aat.delivery.results import BaselineEvaluation, LaterSearchResult, SearchResult, SkippedSearch, WallTime
from kedro_aat.errors import MissingRunError
from kedro_aat.pipelines.aat.stage_steps import (
    LATER_STAGES,
    calibrate_on,
    estimates_in,
    evaluation_of,
    require_runs,
    search_result_of,
    tracking_of,
)

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch.nn import Module

    from kedro_aat.compression.controller import ModelController
    from kedro_aat.datasets.handles import TensorBoardLog
    from kedro_aat.training.checkpoints import CheckpointStore
    from kedro_aat.training.data import Data
    from kedro_aat.training.settings import TrainingSettings
    from kedro_aat.training.stopwatch import Stopwatch

logger = logging.getLogger(__name__)


def search_later_stage(
    number: int,
    controller: ModelController,
    baseline_model: Module,
    train_data: Data,
    validation_data: Data,
    baseline_evaluation: BaselineEvaluation,
    baseline_scores: DataFrame,
    search_result: SearchResult,
    known: DataFrame,
    checkpoint_store: CheckpointStore,
    tensorboard_log: TensorBoardLog | None,
    settings: AatSettings,
    second_result: LaterSearchResult | None,
    stopwatch: Stopwatch,
) -> tuple[ModelController, LaterSearchResult, DataFrame]:
    """Searches a later stage that the settings ask for.

    Args:
        number: Number of the stage.
        controller: Controller of the stage before; it stays as it is.
        baseline_model: The uncompressed model.
        train_data: Training split.
        validation_data: Validation split.
        baseline_evaluation: The baseline on the validation split.
        baseline_scores: Its scores per example, or its metric on resamples.
        search_result: Result of the first stage.
        known: Trajectory of the stages before.
        checkpoint_store: Store in which the run continues.
        tensorboard_log: Log for TensorBoard; None writes none.
        settings: Settings of the pipeline.
        second_result: Result of the second stage, if this is the third.
        stopwatch: Measures the stage since it began.

    Returns:
        The stage's controller, the result of its search, and the trajectory of all stages so far.

    Raises:
        MissingRunError: If the store does not have the runs of the stages before.
    """
    import pandas as pd

    from kedro_aat.compression.settings import algorithms_of
    from kedro_aat.delivery.choosing import chosen_budget
    from kedro_aat.delivery.limits import highest_rate
    from kedro_aat.reporting.summary import trajectory
    from kedro_aat.training.stage import SearchStage

    require_runs(checkpoint_store, search_result, second_result)
    name, later = LATER_STAGES[number], settings.later_stages[number]
    is_limited = settings.goal == "accuracy"
    earlier = [search_result, *([second_result] if isinstance(second_result, SearchResult) else [])]
    before = [search_result, *([] if second_result is None else [second_result])]
    limit, used = settings.time_limit, sum(stage.seconds.used for stage in before)
    later_controller = _later_controller(controller, later, earlier, train_data, settings.training)
    calibrate_on(later_controller, settings.training, train_data, settings.seed)
    minimal_rate, maximal_rate = later.minimal_rate, settings.maximal_rate
    if is_limited:
        minimal_rate = maximal_rate = highest_rate(later_controller, maximal_rate)
    elif later.skip_without_gain:
        skipped = _without_gain(
            number, controller, later_controller, earlier, validation_data, checkpoint_store, settings
        )
        if skipped is not None:
            seconds = WallTime(used=stopwatch.seconds, limit=limit)
            return controller, skipped.model_copy(update={"seconds": seconds}), known
    stage = SearchStage(
        policy=later.search,
        training=settings.training,
        learning_rate_factor=later.learning_rate_factor,
        minimal_rate=minimal_rate,
        maximal_rate=maximal_rate,
        seed=settings.seed,
        time_limit=None if limit is None else limit - used,
        identity=settings.searched("second_stage", name),
        ingredients=settings.searched("second_stage", name, defaults=True),
        goal=settings.goal,
        guards=settings.budget.also,
        is_later=True,
    )
    logger.info("%s: %s", name.replace("_", " ").capitalize(), later.compression.algorithm)
    algorithms = algorithms_of(later.compression)
    try:
        ended = stage.run(
            later_controller,
            baseline_model,
            train_data,
            validation_data,
            evaluation_of(baseline_evaluation.validation, baseline_scores),
            baseline_evaluation.budget_of(),
            checkpoint_store,
            None if tensorboard_log is None else tensorboard_log.writer,
            stopwatch,
            trains=settings.trains,
            tracking=tracking_of(settings, number, search_result.run),
        )
    except MissingRunError:
        reason = (
            f"The {name.replace('_', ' ')} ({' and '.join(algorithms)}) has not begun on this model, and nothing is "
            "trained now."
        )
        return controller, SkippedSearch(outcome="skipped", stage=number, algorithms=algorithms, reason=reason), known
    all_stages = [known, trajectory(ended.fine_tuned.history).assign(stage=number)]
    result = search_result_of(
        number,
        later_controller,
        ended,
        algorithms,
        later.search.maximal_total_epochs,
        limit,
        maximal_rate=maximal_rate,
        budget=chosen_budget(baseline_evaluation, settings.choose),
    )
    return later_controller, result, pd.concat(all_stages, ignore_index=True)


def _later_controller(
    controller: ModelController,
    later: LaterStage,
    earlier: list[SearchResult],
    train_data: Data,
    training: TrainingSettings,
) -> ModelController:
    """Puts what the earlier stages have found, as it would be exported, under the later stage's compression."""
    from kedro_aat.training.controllers import stage_controller
    from kedro_aat.training.data import synthetic_input

    before = {name for stage in earlier for name in stage.algorithms}
    model = controller.strip()
    inputs = synthetic_input(train_data, training=training, model=model)
    return stage_controller(model, later.compression, inputs, before)


def _without_gain(
    number: int,
    controller: ModelController,
    later_controller: ModelController,
    earlier: list[SearchResult],
    validation_data: Data,
    checkpoint_store: CheckpointStore,
    settings: AatSettings,
) -> SkippedSearch | None:
    """Why a later stage is skipped; None if its file would gain."""
    from kedro_aat.compression.settings import algorithms_of
    from kedro_aat.delivery.gains import loss_of
    from kedro_aat.training.data import example_input

    loss = loss_of(
        controller.strip(),
        max(stage.rate.achieved for stage in earlier),
        later_controller,
        settings.maximal_rate,
        example_input(validation_data, max(settings.export.batch_sizes), settings.training, controller.model),
        settings.export,
        estimates_in(checkpoint_store),
    )
    if loss is None:
        return None
    name, algorithms = LATER_STAGES[number], algorithms_of(settings.later_stages[number].compression)
    reason = (
        f"{' and '.join(algorithms)} {loss}: the {name.replace('_', ' ')} is skipped. "
        f"Set {name}.skip_without_gain to false to train it."
    )
    logger.info("%s", reason)
    return SkippedSearch(outcome="skipped", stage=number, algorithms=algorithms, reason=reason)

"""Nodes that search for the highest rate within the budget.

torch is imported when a node runs, so that listing pipelines stays fast.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kedro_aat.budget import Outcome
from kedro_aat.config import AatSettings
from kedro_aat.delivery.results import (
    BaselineEvaluation,
    FailedSearch,
    LaterSearchResult,
    SearchResult,
    SkippedSearch,
    WallTime,
)
from kedro_aat.pipelines.aat.stage_steps import (
    LATER_STAGES,
    calibrate_on,
    estimates_in,
    evaluation_of,
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
else:
    # Kedro reads a node's type hints to find the settings class that it validates parameters with. One
    # hint that it cannot resolve switches that check off, and importing these takes seconds.
    DataFrame = Module = ModelController = TensorBoardLog = CheckpointStore = Data = Any

logger = logging.getLogger(__name__)


def build_controller(
    model: Module, baseline_evaluation: BaselineEvaluation, settings: AatSettings, train_data: Data | None = None
) -> ModelController:
    """Puts a copy of the model under compression.

    Args:
        model: The uncompressed model; it stays as it is.
        baseline_evaluation: Not read. As an input it makes sure that a bad baseline or budget is found first.
        settings: Settings of the pipeline.
        train_data: Training split. Quantization takes the ranges of activations from it. Filter pruning runs the model
            once with made-up inputs of its shape and range, which are saved with the controller.

    Returns:
        The controller; it owns the model, so that the two pass between nodes as one.
    """
    import copy

    from kedro_aat.compression.compressible import compressible
    from kedro_aat.training.controllers import stage_controller
    from kedro_aat.training.data import synthetic_input

    _say_if_untaught(settings)
    model = compressible(model)
    inputs = None if train_data is None else synthetic_input(train_data, training=settings.training, model=model)
    built = stage_controller(copy.deepcopy(model), settings.compression, inputs)
    if train_data is not None:
        calibrate_on(built, settings.training, train_data, settings.seed)
    return built


def _say_if_untaught(settings: AatSettings) -> None:
    if settings.teaching is None and (why := settings.training.why_untaught) is not None:
        is_default = "distillation" not in settings.training.model_fields_set
        logger.log(logging.INFO if is_default else logging.WARNING, "%s", why)


def limited_rate(
    controller: ModelController, validation_data: Data, checkpoint_store: CheckpointStore, settings: AatSettings
) -> float:
    """Finds the lowest rate at which `settings.export.limits` hold, and has the controller keep them from there on.

    Args:
        controller: The controller with its model; only its `limit` changes.
        validation_data: Validation split, whose first inputs are exported with.
        checkpoint_store: Store that keeps the result, so that a run that goes on has the same rate.
        settings: Settings of the pipeline.

    Raises:
        ConfigurationError: If no rate keeps the limits, or if the uncompressed model does.
    """
    from kedro_aat.delivery.limits import LimitedFile, lowest_rate
    from kedro_aat.search.frontier import Frontier
    from kedro_aat.training.data import example_input

    assert isinstance(settings.search, Frontier)  # the settings made sure of it
    second = settings.second_stage
    compression = None if second is None else second.compression
    inputs = example_input(validation_data, training=settings.training, model=controller.model)
    file = LimitedFile(settings.export, compression, inputs)
    rankings = settings.search.tactics.rankings(controller.rankings)
    lowest = lowest_rate(controller, file, settings.maximal_rate, rankings[0], estimates_in(checkpoint_store))
    controller.limit = file.limit(lowest)
    return max(lowest, settings.minimal_rate)


def finetune_adaptively(
    controller: ModelController,
    baseline_model: Module,
    train_data: Data,
    validation_data: Data,
    baseline_evaluation: BaselineEvaluation,
    baseline_scores: DataFrame,
    checkpoint_store: CheckpointStore,
    tensorboard_log: TensorBoardLog | None,
    settings: AatSettings,
) -> tuple[ModelController, SearchResult, DataFrame]:
    """Runs the loop that raises and lowers the rate while it fine-tunes the model, on a GPU if there is one.

    With `settings.best_so_far` or `settings.choose` nothing is trained: the result is the best that the search has
    found so far.

    Args:
        controller: The controller with its model; changed in place.
        baseline_model: The uncompressed model, which teaches if distillation is on.
        train_data: Training split.
        validation_data: Validation split, which judges every epoch.
        baseline_evaluation: The baseline on the validation split.
        baseline_scores: Its scores per example, or its metric on resamples.
        checkpoint_store: Store in which the run continues.
        tensorboard_log: Log for TensorBoard; None writes none.
        settings: Settings of the pipeline.

    Returns:
        The controller with its model at the best rate within budget (or unchanged, at rate 0), the result of the
        search, and its trajectory.

    Raises:
        InterruptedRunError: If the run was stopped; the same command continues it.
        MissingRunError: If nothing may be trained, and nothing was.
    """
    from kedro_aat.compression.settings import algorithms_of
    from kedro_aat.delivery.choosing import chosen_budget
    from kedro_aat.reporting.summary import trajectory
    from kedro_aat.training.stage import SearchStage
    from kedro_aat.training.stopwatch import Stopwatch

    stopwatch = Stopwatch()
    minimal_rate, maximal_rate = settings.minimal_rate, settings.maximal_rate
    if settings.goal == "accuracy":
        minimal_rate = maximal_rate = limited_rate(controller, validation_data, checkpoint_store, settings)
    stage = SearchStage(
        policy=settings.search,
        training=settings.training,
        minimal_rate=minimal_rate,
        maximal_rate=maximal_rate,
        seed=settings.seed,
        time_limit=settings.time_limit,
        identity=settings.searched(),
        ingredients=settings.searched(defaults=True),
        goal=settings.goal,
        guards=settings.budget.also,
    )
    ended = stage.run(
        controller,
        baseline_model,
        train_data,
        validation_data,
        evaluation_of(baseline_evaluation.validation, baseline_scores),
        baseline_evaluation.budget_of(),
        checkpoint_store,
        None if tensorboard_log is None else tensorboard_log.writer,
        stopwatch,
        trains=settings.trains,
        tracking=tracking_of(settings),
    )
    num_allowed = settings.search.maximal_total_epochs
    algorithms = algorithms_of(settings.compression)
    result = search_result_of(
        1,
        controller,
        ended,
        algorithms,
        num_allowed,
        settings.time_limit,
        maximal_rate=maximal_rate,
        budget=chosen_budget(baseline_evaluation, settings.choose),
    )
    controller.limit = None
    return controller, result, trajectory(ended.fine_tuned.history)


def finetune_later_stage(
    controller: ModelController,
    baseline_model: Module,
    train_data: Data,
    validation_data: Data,
    baseline_evaluation: BaselineEvaluation,
    baseline_scores: DataFrame,
    search_result: SearchResult,
    search_trajectory: DataFrame,
    checkpoint_store: CheckpointStore,
    tensorboard_log: TensorBoardLog | None,
    settings: AatSettings,
    second_result: LaterSearchResult | None = None,
) -> tuple[ModelController, LaterSearchResult, DataFrame]:
    """Compresses further what the search before found (or the baseline, if it found nothing).

    The budget is the same, so it holds for the joint result. Everything is passed on unchanged if the settings ask for
    no such stage, if its file would gain nothing, if nothing may be trained and the stage has not begun, if the goal is
    accuracy and the first stage has found nothing, or if the stage fails: then what the stage before found is not lost.

    Args:
        controller: Controller of the stage before; it stays as it is.
        baseline_model: The uncompressed model, which teaches if distillation is on.
        train_data: Training split.
        validation_data: Validation split, which judges every epoch.
        baseline_evaluation: The baseline on the validation split.
        baseline_scores: Its scores per example, or its metric on resamples.
        search_result: Result of the first stage.
        search_trajectory: Trajectory of the stages before.
        checkpoint_store: Store in which the run continues, and in which the estimated gain is kept.
        tensorboard_log: Log for TensorBoard; None writes none.
        settings: Settings of the pipeline.
        second_result: Result of the second stage, if this is the third; None if this is the second.

    Returns:
        The stage's controller, the result of its search, and the trajectory of all stages so far.

    Raises:
        MissingRunError: If the store does not have the runs of the stages before.
    """
    from kedro_aat.compression.settings import algorithms_of
    from kedro_aat.errors import ends_run
    from kedro_aat.pipelines.aat.later_stage import search_later_stage
    from kedro_aat.training.stopwatch import Stopwatch

    stopwatch = Stopwatch()
    number = 2 if second_result is None else 3
    name = LATER_STAGES[number]
    known = search_trajectory if "stage" in search_trajectory else search_trajectory.assign(stage=1)
    later = settings.later_stages.get(number)
    is_limited = settings.goal == "accuracy"  # then the limits need both stages, and the later one at its highest rate
    found_nothing = is_limited and search_result.outcome is Outcome.INFEASIBLE
    if later is None or found_nothing:
        return controller, SkippedSearch(outcome="skipped"), known
    try:
        return search_later_stage(
            number,
            controller,
            baseline_model,
            train_data,
            validation_data,
            baseline_evaluation,
            baseline_scores,
            search_result,
            known,
            checkpoint_store,
            tensorboard_log,
            settings,
            second_result,
            stopwatch,
        )
    except Exception as error:
        if ends_run(error):
            raise
        algorithms, words = algorithms_of(later.compression), name.replace("_", " ")
        reason = (
            f"The {words} ({' and '.join(algorithms)}) failed, and what was found before it is delivered. "
            f"{type(error).__name__}: {error}. Set {name} to null to run without it."
        )
        logger.warning("%s", reason, exc_info=error, extra={"markup": False})
        seconds = WallTime(used=stopwatch.seconds, limit=settings.time_limit)
        return (
            controller,
            FailedSearch(outcome="failed", stage=number, algorithms=algorithms, reason=reason, seconds=seconds),
            known,
        )


finetune_second_stage = finetune_later_stage  # its name in version 0.1.0

"""Nodes that search for the highest rate within the budget.

torch is imported when a node runs, so that listing pipelines stays fast.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kedro_aat.budget import Outcome
from kedro_aat.config import AatSettings, LaterStage
from kedro_aat.delivery.results import (
    BaselineEvaluation,
    BudgetResult,
    EpochCount,
    LaterSearchResult,
    Rates,
    SearchResult,
    SkippedSearch,
    WallTime,
)

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch.nn import Module

    from kedro_aat.compression.controller import ModelController
    from kedro_aat.datasets.handles import TensorBoardLog
    from kedro_aat.delivery.finished import FinishedSteps
    from kedro_aat.training.checkpoints import CheckpointStore
    from kedro_aat.training.data import Data
    from kedro_aat.training.runner import Evaluation
    from kedro_aat.training.settings import TrainingSettings
    from kedro_aat.training.stage import SearchStageResult
else:
    # Kedro reads a node's type hints to find the settings class that it validates parameters with. One
    # hint that it cannot resolve switches that check off, and importing these takes seconds.
    DataFrame = Module = ModelController = TensorBoardLog = CheckpointStore = Any
    Evaluation = Data = FinishedSteps = TrainingSettings = SearchStageResult = Any

logger = logging.getLogger(__name__)

LATER_STAGES = {2: "second_stage", 3: "third_stage"}
NUM_CALIBRATION_BATCHES = 10  # training batches that give the ranges of activations


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

    from kedro_aat.compression.build import build_controller as build
    from kedro_aat.compression.compressible import compressible
    from kedro_aat.training.data import synthetic_input

    model = compressible(model)
    inputs = None if train_data is None else synthetic_input(train_data, training=settings.training, model=model)
    built = build(copy.deepcopy(model), settings.compression, example_input=inputs)
    if train_data is not None:
        _calibrate(built, settings.training, train_data, settings.seed)
    return built


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
    file = LimitedFile(
        settings.export, compression, example_input(validation_data, training=settings.training, model=controller.model)
    )
    rankings = settings.search.tactics.rankings(controller.rankings)
    lowest = lowest_rate(controller, file, settings.maximal_rate, rankings[0], _estimates(checkpoint_store))
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
    tensorboard_log: TensorBoardLog,
    settings: AatSettings,
) -> tuple[ModelController, SearchResult, DataFrame]:
    """Runs the loop that raises and lowers the rate while it fine-tunes the model, on a GPU if there is one.

    With `settings.choose` nothing is trained: the model is read off the Pareto front of the run made before.

    Args:
        controller: The controller with its model; changed in place.
        baseline_model: The uncompressed model, which teaches if distillation is on.
        train_data: Training split.
        validation_data: Validation split, which judges every epoch.
        baseline_evaluation: The baseline on the validation split.
        baseline_scores: Its scores per example, or its metric on resamples.
        checkpoint_store: Store in which the run continues.
        tensorboard_log: Log for TensorBoard.
        settings: Settings of the pipeline.

    Returns:
        The controller with its model at the best rate within budget (or unchanged, at rate 0), the result of the
        search, and its trajectory.

    Raises:
        InterruptedRunError: If the run was stopped; the same command continues it.
    """
    from kedro_aat.compression.settings import algorithms_of
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
        _evaluation(baseline_evaluation.validation, baseline_scores),
        baseline_evaluation.budget_of(),
        checkpoint_store,
        tensorboard_log.writer,
        settings.choose,
        stopwatch,
    )
    num_allowed = settings.search.maximal_total_epochs
    result = _search_result(1, controller, ended, algorithms_of(settings.compression), num_allowed, settings.time_limit)
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
    tensorboard_log: TensorBoardLog,
    settings: AatSettings,
    second_result: LaterSearchResult | None = None,
) -> tuple[ModelController, LaterSearchResult, DataFrame]:
    """Compresses further what the search before found (or the baseline, if it found nothing).

    The budget is the same, so it holds for the joint result. Everything is passed on unchanged if the settings ask for
    no such stage, if its file would gain nothing, if a model was chosen without training, or if the goal is accuracy
    and the first stage has found nothing.

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
        tensorboard_log: Log for TensorBoard.
        settings: Settings of the pipeline.
        second_result: Result of the second stage, if this is the third; None if this is the second.

    Returns:
        The stage's controller, the result of its search, and the trajectory of all stages so far.
    """
    import pandas as pd

    from kedro_aat.compression.settings import algorithms_of
    from kedro_aat.delivery.limits import highest_rate
    from kedro_aat.reporting.summary import trajectory
    from kedro_aat.training.stage import SearchStage
    from kedro_aat.training.stopwatch import Stopwatch

    stopwatch = Stopwatch()
    number = 2 if second_result is None else 3
    name = LATER_STAGES[number]
    known = search_trajectory if "stage" in search_trajectory else search_trajectory.assign(stage=1)
    later = settings.later_stages.get(number)
    is_limited = settings.goal == "accuracy"  # then the limits need both stages, and the later one at its highest rate
    found_nothing = is_limited and search_result.outcome is Outcome.INFEASIBLE
    if later is None or settings.choose is not None or found_nothing:
        return controller, SkippedSearch(outcome="skipped"), known
    earlier = [search_result, *([second_result] if isinstance(second_result, SearchResult) else [])]
    before = [search_result, *([] if second_result is None else [second_result])]
    limit, used = settings.time_limit, sum(stage.seconds.used for stage in before)
    later_controller = _later_controller(controller, later, earlier, train_data, settings.training)
    _calibrate(later_controller, settings.training, train_data, settings.seed)
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
    )
    logger.info("%s: %s", name.replace("_", " ").capitalize(), later.compression.algorithm)
    ended = stage.run(
        later_controller,
        baseline_model,
        train_data,
        validation_data,
        _evaluation(baseline_evaluation.validation, baseline_scores),
        baseline_evaluation.budget_of(),
        checkpoint_store,
        tensorboard_log.writer,
        stopwatch=stopwatch,
    )
    all_stages = [known, trajectory(ended.fine_tuned.history).assign(stage=number)]
    algorithms, num_allowed = algorithms_of(later.compression), later.search.maximal_total_epochs
    result = _search_result(number, later_controller, ended, algorithms, num_allowed, limit)
    return later_controller, result, pd.concat(all_stages, ignore_index=True)


finetune_second_stage = finetune_later_stage  # its name in version 0.1.0


def _later_controller(
    controller: ModelController,
    later: LaterStage,
    earlier: list[SearchResult],
    train_data: Data,
    training: TrainingSettings,
) -> ModelController:
    """Puts what the earlier stages have found, as it would be exported, under the later stage's compression."""
    from kedro_aat.compression.build import build_controller as build
    from kedro_aat.compression.settings import keeping_zeros
    from kedro_aat.training.data import synthetic_input

    is_sparse = any("magnitude_sparsity" in stage.algorithms for stage in earlier)
    compression = keeping_zeros(later.compression) if is_sparse else later.compression
    model = controller.strip()
    inputs = synthetic_input(train_data, training=training, model=model)
    return build(model, compression, example_input=inputs)


def _calibrate(controller: ModelController, training: TrainingSettings, train_data: Data, seed: int) -> None:
    """Takes the ranges of activations from training batches, if anything is quantized.

    Without it, they would be those of the first batch that the model sees, which is one of the validation split.
    """
    from kedro_aat.training.default import DefaultTraining
    from kedro_aat.training.random_state import seed_everything

    if not hasattr(controller, "calibrate"):
        return
    seed_everything(seed)  # of random augmentation
    device = next(controller.model.parameters()).device
    # The training split stands for the validation split, which is not read here.
    data = DefaultTraining(controller.model, training, train_data, None)
    controller.calibrate(data.calibration_batches(NUM_CALIBRATION_BATCHES))
    controller.model.to(device)


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
        _estimates(checkpoint_store),
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


def _estimates(checkpoint_store: CheckpointStore) -> FinishedSteps:
    """Keeps what is found on untrained models, which decides how a search goes on; nothing is removed from it."""
    from kedro_aat.delivery.finished import FinishedSteps

    return FinishedSteps(checkpoint_store.root / "estimates")


def _search_result(
    number: int,
    controller: ModelController,
    ended: SearchStageResult,
    algorithms: list[str],
    num_allowed: int,
    time_limit: float | None,
) -> SearchResult:
    from kedro_aat.training.records import epochs_used

    fine_tuned, best = ended.fine_tuned, ended.fine_tuned.best
    counted, everything = controller.rated_parameters or (None, None)
    return SearchResult(
        stage=number,
        algorithms=algorithms,
        outcome=fine_tuned.outcome,
        reason=fine_tuned.reason,
        budget=BudgetResult.model_validate(ended.budget),
        validation=fine_tuned.metric,
        standard_error=best.standard_error if best else None,
        rate=Rates(
            requested=best.requested_rate if best else 0.0,
            achieved=fine_tuned.achieved_rate,
            counted_parameters=counted,
            all_parameters=everything,
        ),
        epochs=EpochCount(used=epochs_used(fine_tuned.history), allowed=num_allowed),
        seconds=WallTime(used=ended.seconds, limit=time_limit),
        best_checkpoint=best.checkpoint if best else None,
        device=ended.device,
        run=ended.run,
        guards=fine_tuned.guards,
    )


def _evaluation(metric: float, scores: DataFrame) -> Evaluation:
    """The baseline's evaluation, from what `evaluate_baseline` saved of it."""
    import torch

    from kedro_aat.training.runner import Evaluation

    values = {name: torch.tensor(column.to_numpy()) for name, column in scores.items() if len(column)}
    return Evaluation(metric, values.get("score"), values.get("resampled"))

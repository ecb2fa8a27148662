"""Steps that the nodes of all search stages share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedro_aat.delivery.results import BudgetResult, EpochCount, Rates, SearchResult, WallTime

if TYPE_CHECKING:
    from pandas import DataFrame

    from kedro_aat.compression.controller import ModelController
    from kedro_aat.config import AatSettings
    from kedro_aat.delivery.finished import FinishedSteps
    from kedro_aat.training.checkpoints import CheckpointStore
    from kedro_aat.training.data import Data
    from kedro_aat.training.progress import Tracking
    from kedro_aat.training.ranks.stage_inputs import SearchStageResult
    from kedro_aat.training.runner import Evaluation
    from kedro_aat.training.settings import TrainingSettings

LATER_STAGES = {2: "second_stage", 3: "third_stage"}


def calibrate_on(controller: ModelController, training: TrainingSettings, train_data: Data, seed: int) -> None:
    """Takes the ranges of activations from training batches, if anything is quantized; the model stays in its place.

    Args:
        controller: The controller with its model.
        training: Settings of the training.
        train_data: Training split.
        seed: Seed of random augmentation.
    """
    from kedro_aat.training.controllers import NUM_CALIBRATION_BATCHES
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


def tracking_of(settings: AatSettings, stage: int = 1, first_run: str | None = None) -> Tracking:
    """Who follows the search of a stage.

    Args:
        settings: Settings of the pipeline.
        stage: Number of the stage.
        first_run: Name of the first stage's run; None if this is the first stage.
    """
    from kedro_aat.reporting.metrics import flat_parameters
    from kedro_aat.training.progress import Tracking

    return Tracking(settings.make_trackers(), stage, first_run, flat_parameters(settings))


def estimates_in(checkpoint_store: CheckpointStore) -> FinishedSteps:
    """Keeps what is found on untrained models, which decides how a search goes on; nothing is removed from it."""
    from kedro_aat.delivery.finished import ESTIMATES, REHEARSALS, FinishedSteps

    return FinishedSteps(checkpoint_store.root / ESTIMATES, [checkpoint_store.root / REHEARSALS])


def require_runs(checkpoint_store: CheckpointStore, *results: object) -> None:
    """Checks that the store has the runs that the results of searches name; others need none.

    Raises:
        MissingRunError: If it does not: it is on the disk of another machine, or was removed.
    """
    checkpoint_store.require(*(result.run for result in results if isinstance(result, SearchResult)))


def search_result_of(
    number: int,
    controller: ModelController,
    ended: SearchStageResult,
    algorithms: list[str],
    num_allowed: int,
    time_limit: float | None,
    *,
    maximal_rate: float,
    budget: BudgetResult,
) -> SearchResult:
    """The result of a stage, as it is passed on and saved.

    Args:
        number: Number of the stage.
        controller: Its controller.
        ended: How its search ended.
        algorithms: Names of its compression algorithms.
        num_allowed: Epochs that the settings allow.
        time_limit: Seconds that they allow; None for no limit.
        maximal_rate: Highest rate that they allow, in [0, 1).
        budget: The budget that the delivered model must keep, which may be another one than the search's.
    """
    from kedro_aat.training.records import epochs_used

    fine_tuned, best = ended.fine_tuned, ended.fine_tuned.best
    counted, everything = controller.rated_parameters or (None, None)
    used = epochs_used(fine_tuned.history)
    return SearchResult(
        stage=number,
        algorithms=algorithms,
        outcome=fine_tuned.outcome,
        reason=fine_tuned.reason,
        budget=budget,
        validation=fine_tuned.metric,
        standard_error=best.standard_error if best else None,
        rate=Rates(
            requested=best.requested_rate if best else 0.0,
            achieved=fine_tuned.achieved_rate,
            share_of=controller.rate_words,
            counted_parameters=counted,
            all_parameters=everything,
        ),
        epochs=EpochCount(used=used, allowed=max(used, num_allowed)),  # fewer may be allowed now than were used
        seconds=WallTime(used=ended.seconds, limit=time_limit),
        best_checkpoint=best.checkpoint if best else None,
        device=ended.device,
        run=ended.run,
        guards=fine_tuned.guards,
        highest_rate=min(maximal_rate, float(controller.maximal_compression_rate)),
    )


def evaluation_of(metric: float, scores: DataFrame) -> Evaluation:
    """The baseline's evaluation, from what `evaluate_baseline` saved of it."""
    import torch

    from kedro_aat.training.runner import Evaluation

    values = {name: torch.tensor(column.to_numpy()) for name, column in scores.items() if len(column)}
    return Evaluation(metric, values.get("score"), values.get("resampled"))

"""The loop that raises and lowers a model's compression while it fine-tunes the model. Start reading here.

`fine_tune` is the whole loop: ask the search policy for an epoch, train, judge, tell the policy, save.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from kedro_aat.budget import Budget, Outcome
from kedro_aat.certificate import Certificate, bootstrap_standard_error, certify, paired_standard_error
from kedro_aat.compression.controller import CompressionController, CompressionStage, rates_of
from kedro_aat.errors import CheckpointError, ConfigurationError, MetricError
from kedro_aat.reading import reading
from kedro_aat.search.policy import Epoch, EpochResult, Problem, SearchPolicy, Stop
from kedro_aat.training.checkpoints import Checkpoint, RunCheckpoints
from kedro_aat.training.progress import LoopProgress
from kedro_aat.training.records import (
    EpochRecord,
    FineTuned,
    best_within,
    exceeds_time_limit,
    pareto_front,
    read_records,
)
from kedro_aat.training.runner import Evaluation, TrainingRunner
from kedro_aat.validated import parse

logger = logging.getLogger(__name__)

# Rates are below 1, but a user may pass a model whose weights are all zero, which reports 1.
MAXIMAL_INITIAL_RATE = 1 - 1e-9

# Warn if the standard error exceeds this fraction of the tolerated drop: random error would then dominate.
LARGEST_RESOLVING_ERROR = 1 / 3


def fine_tune(
    runner: TrainingRunner,
    policy: SearchPolicy[Any],
    problem: Problem,
    budget: Budget,
    checkpoints: RunCheckpoints,
    progress: LoopProgress,
    *,
    baseline: Evaluation | None = None,
    time_limit: float | None = None,
) -> FineTuned:
    """Fine-tunes the runner's model as the policy asks, and leaves it at the best rate within budget.

    Continues from the latest of `checkpoints`. Ctrl-C and SIGTERM end the search with the best model so far.

    Args:
        runner: The model, its controller and the user's functions.
        policy: Search policy, which chooses the rates.
        problem: Limits of the rates.
        budget: Accuracy budget, which judges each epoch.
        checkpoints: Checkpoints of this run.
        progress: Shows each epoch.
        baseline: The uncompressed model on the validation split; its scores per example, or its metric on resamples,
            give each margin a paired standard error.
        time_limit: Seconds after which no epoch begins, including earlier attempts at this run; None for no limit.

    Raises:
        MetricError: If a metric or loss is not finite; the model is then in its last good state.
    """
    history: list[EpochRecord] = []
    on_front: set[int] = set()
    state = policy.initial(problem)
    if (checkpoint := checkpoints.latest()) is not None:
        history, state = _resume(runner, policy, checkpoint)
        on_front = set(checkpoints.numbers)
        if checkpoints.is_finished:
            logger.info("The run in %s has ended; using its result", checkpoints.folder)
        else:
            logger.info("Continuing after epoch %d of the run in %s", history[-1].epoch, checkpoints.folder)
    still_needed = state.needed
    with progress, _interruptible():
        try:
            while isinstance(move := policy.ask(state), Epoch):
                if exceeds_time_limit(time_limit, history):
                    stop = state.stop(f"The time limit of {time_limit:.0f} s leaves no time for another epoch.")
                    break
                state, record = _try(runner, policy, move, state, budget, baseline, checkpoints, history)
                history.append(record)
                saved = {"search": state.model_dump_json(), "history": [vars(row) for row in history]}
                # Checkpoint 0 is the initial model. The previous one and what it needs stay in case this one turns
                # out to be damaged.
                on_front = pareto_front(history, on_front | {record.checkpoint})
                keep = {0, record.checkpoint - 1} | on_front | state.needed | still_needed
                checkpoint = runner.checkpoint(record.checkpoint, saved)
                checkpoints.save(checkpoint, runner.dump, keep=keep, wait=False)
                still_needed = state.needed
                progress.show(record)
                _warn_if_unresolved(budget, history)
            else:
                stop = move
                if time_limit is None:  # otherwise the run may continue with more time
                    checkpoints.finish()
        except KeyboardInterrupt:
            checkpoint = checkpoints.latest()
            if checkpoint is None:  # not even the first validation finished
                raise
            history, state = _resume(runner, policy, checkpoint)
            stop = state.stop("The run was interrupted.").model_copy(update={"outcome": Outcome.INTERRUPTED})
        except MetricError as error:
            if (checkpoint := checkpoints.latest()) is not None:
                runner.restore_model(checkpoint)
            raise MetricError(
                f"{error} The checkpoints are in {checkpoints.folder}; remove that folder to start over."
            ) from None
    return _finish(runner, stop, history, checkpoints)


def _try(
    runner: TrainingRunner,
    policy: SearchPolicy[Any],
    move: Epoch,
    state: Any,
    budget: Budget,
    baseline: Evaluation | None,
    checkpoints: RunCheckpoints,
    history: list[EpochRecord],
) -> tuple[Any, EpochRecord]:
    """Trains and judges one epoch, and tells the policy."""
    started = time.perf_counter()
    loss = _prepare_and_train(runner, move, checkpoints, current=len(history) - 1)
    learning_rate = runner.learning_rate
    evaluation = runner.validate()
    seen = _judge(runner, budget, move, evaluation.metric, standard_error_of(baseline, evaluation), history)
    state = policy.tell(state, seen)
    if move.train:
        runner.update_learning_rate(seen.metric, loss)
    record = EpochRecord(
        **seen.model_dump(exclude={"early_stop"}),
        epoch=runner.cumulative_epoch_count,
        started_from=move.start_from,
        loss=loss,
        learning_rate=learning_rate,
        lr_scale=move.lr_scale,
        best_rate=state.best.achieved_rate if state.best else None,
        seconds=time.perf_counter() - started,
    )
    return state, record


def _prepare_and_train(
    runner: TrainingRunner, move: Epoch, checkpoints: RunCheckpoints, *, current: int
) -> float | None:
    """Restores and trains as `move` says; `current` is the checkpoint that matches the model's present state."""
    if move.start_from is not None and move.start_from != current:
        start = checkpoints.load(move.start_from)
        runner.restore_model(start)
        if not move.new_optimizer:
            runner.restore_optimizers(start)
    if move.rate_path is not None:
        runner.set_rate(move.rate_path)
    if move.new_optimizer:
        runner.reset_training()
    runner.scale_learning_rate(move.lr_scale)
    loss = runner.train_epoch() if move.train else None
    if move.rate_path is not None and len(move.rate_path) > 1:
        # A training function may take fewer steps than expected, and so not reach the end of the path.
        runner.finish_rate_path(move.rate_path[-1])
    if move.rate_path is not None:
        runner.adapt()
    return loss


def _judge(
    runner: TrainingRunner,
    budget: Budget,
    move: Epoch,
    metric: float,
    standard_error: float | None,
    history: list[EpochRecord],
) -> EpochResult:
    controller = runner.compression_controller
    rates = rates_of(controller)
    requested_rate = rates.requested_rate
    if move.rate_path is not None:
        requested_rate = move.rate_path[-1]
    elif move.start_from is not None:
        requested_rate = history[move.start_from].requested_rate
    elif runner.is_searching:
        requested_rate = history[-1].requested_rate
    fully_compressed = controller.compression_stage() == CompressionStage.FULLY_COMPRESSED
    return EpochResult(
        checkpoint=len(history),
        trained=move.train,
        requested_rate=requested_rate,
        achieved_rate=rates.achieved_rate,
        metric=metric,
        margin=budget.margin(metric),
        standard_error=standard_error,
        fully_compressed=fully_compressed,
        early_stop=move.train and fully_compressed and runner.stops_early(metric),
    )


def standard_error_of(baseline: Evaluation | None, evaluation: Evaluation) -> float | None:
    """Standard error of the difference of two metrics.

    Args:
        baseline: The uncompressed model; None if unknown.
        evaluation: The compressed model on the same examples.

    Returns:
        The standard error; None without scores per example or metrics on resamples.
    """
    if baseline is None:
        return None
    if baseline.scores is not None and evaluation.scores is not None:
        return paired_standard_error(baseline.scores.cpu().numpy(), evaluation.scores.cpu().numpy())
    if baseline.resampled is not None and evaluation.resampled is not None:
        return bootstrap_standard_error(baseline.resampled.cpu().numpy(), evaluation.resampled.cpu().numpy())
    return None


def certify_evaluations(
    baseline: Evaluation, candidate: Evaluation, budget: Budget, alpha: float
) -> Certificate | None:
    """Tests once whether the candidate keeps the budget; None if an evaluation has no scores.

    Args:
        baseline: The uncompressed model on the test split.
        candidate: The compressed model on it.
        budget: Its drop and direction are tested.
        alpha: Accepted probability of certifying a model that breaks its budget.
    """
    if baseline.scores is None or candidate.scores is None:
        return None
    return certify(
        baseline.scores.cpu().numpy(),
        candidate.scores.cpu().numpy(),
        tolerated_drop=budget.drop,
        higher_is_better=budget.higher_is_better,
        alpha=alpha,
    )


def _warn_if_unresolved(budget: Budget, history: list[EpochRecord]) -> None:
    """Warns once per run, at the first standard error that is too large."""
    limit = LARGEST_RESOLVING_ERROR * budget.drop
    *before, standard_error = (row.standard_error or 0.0 for row in history)
    if standard_error > limit > 0 and max(before, default=0.0) <= limit:
        times = (standard_error / limit) ** 2
        logger.warning(
            "The standard error of a measured drop is %.4g, too large for a budget of %.4g. Use about %.1f times as "
            "many validation examples to bring it to a third of the budget, or raise search.acceptance_z.",
            standard_error,
            budget.drop,
            times,
        )


def _resume(runner: TrainingRunner, policy: SearchPolicy[Any], checkpoint: Checkpoint) -> tuple[list[EpochRecord], Any]:
    with reading(checkpoint.folder):  # it is undamaged, but may be of another model, or changed by hand
        runner.resume(checkpoint)
        history, state = records_of(checkpoint), policy.load(checkpoint.state["search"])
    if len(history) <= checkpoint.number:
        raise CheckpointError(f"{checkpoint.folder} is damaged: its history has only {len(history)} epochs")
    return history, state


def records_of(checkpoint: Checkpoint | None) -> list[EpochRecord]:
    """The trajectory up to a checkpoint; empty without one."""
    return [] if checkpoint is None else read_records(checkpoint.state["history"])


def choose(runner: TrainingRunner, policy: SearchPolicy[Any], budget: Budget, checkpoints: RunCheckpoints) -> FineTuned:
    """Reads a model for another budget off the Pareto front of a run, without training.

    Args:
        runner: The model, its controller and the user's functions.
        policy: Search policy of the run.
        budget: The other budget.
        checkpoints: Checkpoints of the run.

    Raises:
        CheckpointError: If there is no run with these settings.
    """
    checkpoint = checkpoints.latest()
    if checkpoint is None:
        raise CheckpointError(
            "There is no run with these settings to choose from. Run the pipeline first with the same settings, "
            "without `choose`."
        )
    history, _ = _resume(runner, policy, checkpoint)
    best = best_within(history, checkpoints.numbers, budget)
    if best is None:
        stop = Stop(
            outcome=Outcome.INFEASIBLE, best=None, reason="No model on the Pareto front keeps the chosen budget."
        )
    else:
        num_models = len(pareto_front(history, checkpoints.numbers))
        reason = f"Chosen from the {num_models} models on the Pareto front, without training."
        stop = Stop(outcome=Outcome.WITHIN_BUDGET, best=best.checkpoint, reason=reason)
    return _finish(runner, stop, history, checkpoints)


def _finish(runner: TrainingRunner, stop: Stop, history: list[EpochRecord], checkpoints: RunCheckpoints) -> FineTuned:
    """Loads the model that is returned, and validates it once more."""
    if stop.best is not None:
        runner.restore_model(checkpoints.load(stop.best))
    else:
        runner.restore_model(checkpoints.load(0))
        runner.uncompress()
    return FineTuned(
        outcome=stop.outcome,
        reason=stop.reason,
        best=None if stop.best is None else history[stop.best],
        metric=runner.validate().metric,
        achieved_rate=runner.achieved_rate,
        history=history,
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lets SIGTERM end a run as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def adaptive_problem(
    controller: CompressionController, budget: Budget, *, minimal_rate: float, maximal_rate: float
) -> Problem:
    """The search problem of a controller, whose own limit may be lower than `maximal_rate`.

    Args:
        controller: The controller with its model.
        budget: Accuracy budget.
        minimal_rate: Lowest rate worth returning, in [0, 1).
        maximal_rate: Highest rate to try, in [0, 1).

    Raises:
        ConfigurationError: If the controller's limit is below `minimal_rate`.
    """
    limit = float(controller.maximal_compression_rate)
    if limit < minimal_rate <= maximal_rate:
        raise ConfigurationError(
            "search",
            [
                f"minimal_rate: {minimal_rate:g} cannot be reached, because this model can lose at most {limit:.4f} "
                "with these compression settings; lower it, or let more layers and channels be removed (scopes, or "
                "round_to and minimal_channels of filter_pruning)"
            ],
        )
    rates = {
        "minimal_rate": minimal_rate,
        "maximal_rate": min(maximal_rate, limit),
        "initial_rate": min(max(float(controller.compression_rate), 0.0), MAXIMAL_INITIAL_RATE),
        "tolerated_drop": budget.drop,
    }
    return parse(Problem, rates, where="search")

"""The loop that raises and lowers a model's compression while it fine-tunes the model. Start reading here.

`fine_tune` is the whole loop: ask the search policy for an epoch, train, judge, tell the policy, save.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from kedro_aat.budget import Budget, Outcome
from kedro_aat.compression.controller import CompressionController, CompressionStage, RanksByTactic, rates_of
from kedro_aat.errors import CheckpointError, ConfigurationError, DivergedError, OutOfMemoryError
from kedro_aat.messages import rounded
from kedro_aat.reading import reading
from kedro_aat.search.policy import Epoch, EpochResult, Problem, SearchPolicy, SearchState, Stop, margin_if_failed
from kedro_aat.training.checkpoints import Checkpoint, RunCheckpoints
from kedro_aat.training.checkpoints.recovery import ALLOWED, load_or_next_best, records_of, search_state
from kedro_aat.training.cost import ask_in_time
from kedro_aat.training.ending import finish
from kedro_aat.training.failures import early_stop, left_in_good_state, refuse_to_repeat
from kedro_aat.training.guards.interruption import interruptible
from kedro_aat.training.progress import LoopProgress
from kedro_aat.training.records import (
    LARGEST_RESOLVING_ERROR,
    EpochRecord,
    FineTuned,
    epochs_used,
    margins_of,
    pareto_front,
)
from kedro_aat.training.runner import Callables, Evaluation, TrainingRunner
from kedro_aat.training.scoring.guard_metrics import guarded
from kedro_aat.training.scoring.scores import standard_error_of
from kedro_aat.training.stopwatch import Stopwatch
from kedro_aat.validated import parse

logger = logging.getLogger(__name__)

# Rates are below 1, but a user may pass a model whose weights are all zero, which reports 1.
MAXIMAL_INITIAL_RATE = 1 - 1e-9


def fine_tune(
    runner: TrainingRunner,
    policy: SearchPolicy[Any],
    problem: Problem,
    budget: Budget,
    checkpoints: RunCheckpoints,
    progress: LoopProgress,
    *,
    baseline: Evaluation | None = None,
    stopwatch: Stopwatch | None = None,
    is_later: bool = False,
) -> FineTuned:
    """Fine-tunes the runner's model as the policy asks, and leaves it at the best rate within budget.

    Continues from the latest of `checkpoints`. Ctrl-C ends the search after the epoch, and a second one or SIGTERM at
    once, with the best model so far. An epoch with a loss or a metric that is NaN or infinite has failed: the model
    goes back to where the epoch began, and the policy is told. An error that is not of the user's code, or any in a
    later search, ends the search early, if a model is within budget.

    Args:
        runner: The model, its controller and the user's functions.
        policy: Search policy, which chooses the rates.
        problem: Limits of the rates.
        budget: Accuracy budget, which judges each epoch.
        checkpoints: Checkpoints of this run.
        progress: Shows each epoch.
        baseline: The uncompressed model on the validation split; its scores per example, or its metric on resamples,
            give each margin a paired standard error.
        stopwatch: Time that the search has used, and its limit; None for no limit. Policies that are to keep a limit
            are `Settings`: before each epoch, they are told how many epochs there is time for.
        is_later: Whether the search follows another one, whose model is delivered if this one finds none.

    Raises:
        MetricError: If a metric is not a number, that of the initial model is not finite, or training fails even at
            rate 0. The model is then in its last good state.
        UserFunctionError: If a function of the user's fails, or leaves something behind that it must not.
        UnrepeatableError: If the returned model, validated again, has another metric.
    """
    stopwatch = stopwatch or Stopwatch()
    stopwatch.lap()
    history, state = _begin(runner, policy, problem, checkpoints)
    rows = [row.plain() for row in history]
    on_front = set(checkpoints.numbers) if history else set()
    before = state
    with left_in_good_state(runner, policy, checkpoints), progress, interruptible() as interruption:
        try:
            progress.begin(budget, history, epochs_used(history))
            refuse_to_repeat(history)
            while True:
                cost, planned, move = ask_in_time(policy, state, history, stopwatch)
                if isinstance(move, Stop):
                    stop = _interrupted(state) if interruption.is_requested else move
                    if stopwatch.limit is None:  # otherwise the run may continue with more time
                        checkpoints.finish()
                    break
                if interruption.is_requested:
                    stop = _interrupted(state)
                    break
                checkpoints.require_writable()
                progress.expect(cost)
                interruption.work = f"epoch {runner.cumulative_epoch_count + 1}" if move.train else "the validation"
                state, record = _try_in_memory(runner, planned, move, state, budget, baseline, checkpoints, history)
                record = replace(record, seconds=stopwatch.lap())
                history.append(record)
                rows.append(record.plain())
                # Checkpoint 0 is the initial model. The previous one and what it needs stay in case this one turns
                # out to be damaged.
                available = on_front | {record.checkpoint}
                on_front = pareto_front([history[number] for number in sorted(available)], available)
                # No name for the checkpoint: it would hold the tensors of the optimizer through the next epoch.
                checkpoints.save(
                    runner.checkpoint(
                        record.checkpoint, {ALLOWED: policy.maximal_total_epochs}, {"search": state, "history": rows}
                    ),
                    runner.dump,
                    keep={0, record.checkpoint - 1} | on_front | state.needed | before.needed,
                    keep_optimizers={record.checkpoint - 1} | state.needed_optimizers | before.needed_optimizers,
                    wait=False,
                )
                before = state
                progress.show(record, epochs_used(history))
                _warn_if_unresolved(budget, history)
                refuse_to_repeat(history)
        except KeyboardInterrupt:
            last = checkpoints.latest()
            if last is None:  # not even the first validation finished
                raise
            history, state = _resume(runner, policy, last)
            stop = _interrupted(state)
        except Exception as error:
            early = early_stop(error, policy, checkpoints, is_later=is_later)
            if early is None:
                raise
            stop, history = early
    with left_in_good_state(runner, policy, checkpoints):
        return finish(runner, stop, history, checkpoints, budget, problem.minimal_rate)


def _begin(
    runner: TrainingRunner, policy: SearchPolicy[Any], problem: Problem, checkpoints: RunCheckpoints
) -> tuple[list[EpochRecord], Any]:
    """Continues from the latest of `checkpoints`, or begins a search."""
    if (checkpoint := checkpoints.latest()) is None:
        return [], policy.initial(problem)
    history, state = _resume(runner, policy, checkpoint)
    if checkpoints.is_finished:
        logger.info("The run in %s has ended; using its result", checkpoints.folder)
    else:
        logger.info("Continuing after epoch %d of the run in %s", history[-1].epoch, checkpoints.folder)
    return history, state


def _interrupted(state: SearchState) -> Stop:
    return state.stop("The run was interrupted.").model_copy(update={"outcome": Outcome.INTERRUPTED})


def _try_in_memory(
    runner: TrainingRunner,
    policy: SearchPolicy[Any],
    move: Epoch,
    state: Any,
    budget: Budget,
    baseline: Evaluation | None,
    checkpoints: RunCheckpoints,
    history: list[EpochRecord],
) -> tuple[Any, EpochRecord]:
    """Does as `_try`, and again with smaller parts of a batch as long as the memory is not enough."""
    while True:
        try:
            return _try(runner, policy, move, state, budget, baseline, checkpoints, history)
        except OutOfMemoryError as error:
            if not history or not runner.halve_batch(error.role):
                raise
        # Not in the handler, since the error keeps what the epoch had allocated.
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        runner.resume(checkpoints.load(history[-1].checkpoint))


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
    loss, evaluation = None, None
    try:
        move = _restore_start(runner, move, checkpoints, history, budget)
        loss = _prepare_and_train(runner, move)
        learning_rate = runner.learning_rate
        evaluation = guarded(runner.validate(), budget, f"epoch {runner.cumulative_epoch_count}")
    except DivergedError as error:
        if not move.train:
            raise
        learning_rate = runner.learning_rate
        logger.warning("Epoch %d failed: %s", runner.cumulative_epoch_count, error)
    seen = _judge(runner, budget, move, baseline, evaluation, history)
    if seen.failed:
        number = len(history) - 1 if move.start_from is None else move.start_from
        runner.roll_back(checkpoints.load(number), new_optimizer=move.new_optimizer)
    state = policy.tell(state, seen)
    if move.train and seen.metric is not None:
        runner.update_learning_rate(seen.metric, loss)
    margins = margins_of(evaluation.metric, evaluation.also, budget) if evaluation else {}
    record = EpochRecord(
        **seen.model_dump(exclude={"early_stop"}) | margins,
        epoch=runner.cumulative_epoch_count,
        started_from=move.start_from,
        loss=loss,
        learning_rate=learning_rate,
        lr_scale=move.lr_scale,
        best_rate=state.best.achieved_rate if state.best else None,
        seconds=0.0,  # the loop measures it
        tactic=move.tactic or (history[-1].tactic if history else None),
    )
    return state, record


def _restore_start(
    runner: TrainingRunner,
    move: Epoch,
    checkpoints: RunCheckpoints,
    history: list[EpochRecord],
    budget: Budget,
) -> Epoch:
    """Restores the checkpoint that an epoch starts from, if it names one, or the one that takes its place."""
    if move.start_from is None or move.start_from == len(history) - 1:  # the model is in that state
        return move
    start = load_or_next_best(checkpoints, move.start_from, history, budget, optimizers=not move.new_optimizer)
    runner.restore_model(start)
    if not move.new_optimizer:
        runner.restore_optimizers(start)
    return move.model_copy(update={"start_from": start.number})


def _prepare_and_train(runner: TrainingRunner, move: Epoch) -> float | None:
    """Trains as `move` says, from where it starts."""
    if move.tactic is not None:
        runner.use(move.tactic)
    if move.rate_path is not None:
        runner.set_rate(move.rate_path)
    if move.new_optimizer:
        runner.reset_training()
    with runner.annealing(move.lr_scale, move.lr_scale_at_end):
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
    baseline: Evaluation | None,
    evaluation: Evaluation | None,
    history: list[EpochRecord],
) -> EpochResult:
    """The result of an epoch; it failed if there is no evaluation."""
    controller = runner.compression_controller
    rates = runner.rates()
    requested_rate = rates.requested_rate
    if move.rate_path is not None:
        requested_rate = move.rate_path[-1]
    elif move.start_from is not None:
        requested_rate = history[move.start_from].requested_rate
    elif runner.is_searching:
        requested_rate = history[-1].requested_rate
    fully_compressed = controller.compression_stage() == CompressionStage.FULLY_COMPRESSED
    metric = evaluation.metric if evaluation else None
    margin = budget.smallest_margin(evaluation.metric, evaluation.also) if evaluation else margin_if_failed(budget.drop)
    return EpochResult(
        checkpoint=len(history),
        trained=move.train,
        requested_rate=requested_rate,
        achieved_rate=rates.achieved_rate,
        metric=metric,
        margin=margin,
        standard_error=standard_error_of(baseline, evaluation) if evaluation else None,
        cost=runner.epoch_cost if move.train else 0.0,
        fully_compressed=fully_compressed,
        early_stop=metric is not None and move.train and fully_compressed and runner.stops_early(metric),
    )


def _warn_if_unresolved(budget: Budget, history: list[EpochRecord]) -> None:
    """Warns once per run, at the first model within budget whose standard error is too large.

    That of a model which is far from the baseline says nothing of those that matter, and the baseline itself has none.
    """
    limit = LARGEST_RESOLVING_ERROR * budget.drop
    judged = [row for row in history if row.trained and row.margin >= 0]
    *before, standard_error = (0.0, *(row.standard_error or 0.0 for row in judged))
    if history[-1] in judged[-1:] and standard_error > limit > 0 and max(before, default=0.0) <= limit:
        times = (standard_error / limit) ** 2
        logger.warning(
            "The standard error of a measured drop is %.4g, too large for a budget of %.4g. Use about %s times as "
            "many validation examples to bring it to a third of the budget, or raise search.acceptance_z.",
            standard_error,
            budget.drop,
            rounded(times),
        )


def _resume(runner: TrainingRunner, policy: SearchPolicy[Any], checkpoint: Checkpoint) -> tuple[list[EpochRecord], Any]:
    with reading(checkpoint.folder):  # it is undamaged, but may be of another model, or changed by hand
        runner.resume(checkpoint)
        history, state = records_of(checkpoint), search_state(policy, checkpoint)
    if len(history) <= checkpoint.number:
        raise CheckpointError(f"{checkpoint.folder} is damaged: its history has only {len(history)} epochs")
    return history, state


def adaptive_problem(
    controller: CompressionController,
    budget: Budget,
    *,
    minimal_rate: float,
    maximal_rate: float,
    callables: Callables | None = None,
) -> Problem:
    """The search problem of a controller, whose own limit may be lower than `maximal_rate`.

    Args:
        controller: The controller with its model.
        budget: Accuracy budget.
        minimal_rate: Lowest rate worth returning, in [0, 1).
        maximal_rate: Highest rate to try, in [0, 1).
        callables: The functions that train; None if they are not known yet.

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
    rates: dict[str, Any] = {
        "minimal_rate": minimal_rate,
        "maximal_rate": min(maximal_rate, limit),
        "initial_rate": min(max(rates_of(controller).requested_rate, 0.0), MAXIMAL_INITIAL_RATE),
        "tolerated_drop": budget.drop,
    }
    if isinstance(controller, RanksByTactic):
        rates |= {
            "first_target_rate": controller.first_target_rate,
            "regrows": controller.regrows,
            "rankings": [ranking.model_dump() for ranking in controller.rankings],
        }
    if callables is not None:
        rates |= {"can_sample": callables.sample_gradients is not None, "can_distill": callables.distill is not None}
    return parse(Problem, rates, where="search")

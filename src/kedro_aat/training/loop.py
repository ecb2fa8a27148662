"""The loop that raises and lowers a model's compression while it is fine-tuned. Begin reading here.

`fine_tune` is the whole of it: ask the search policy for an epoch, train, judge, tell, save. The two classes
below it give it the interface of NNCF 2.x.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.budget import Budget, Outcome
from kedro_aat.certificate import paired_standard_error
from kedro_aat.compression.controller import CompressionController, CompressionStage, report
from kedro_aat.errors import MetricError
from kedro_aat.search.policy import Epoch, EpochResult, Problem, SearchPolicy, Stop
from kedro_aat.search.stepping import UNLIMITED_EPOCHS
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore, RunCheckpoints, hash_tensors
from kedro_aat.training.nncf_config import AccuracyAwareSettings, NNCFConfig
from kedro_aat.training.progress import LoopProgress
from kedro_aat.training.records import EpochRecord, FineTuned
from kedro_aat.training.runner import Callables, Evaluation, TrainingRunner
from kedro_aat.training.statistics import TrainingLoopStatistics
from kedro_aat.validated import parse

logger = logging.getLogger(__name__)

# A rate is below 1; a model of nothing but zeros, which reports 1, may still be given.
MAXIMAL_INITIAL_RATE = 1 - 1e-9


def fine_tune(
    runner: TrainingRunner,
    policy: SearchPolicy[Any],
    problem: Problem,
    budget: Budget,
    checkpoints: RunCheckpoints,
    progress: LoopProgress,
    *,
    baseline_scores: Tensor | None = None,
) -> FineTuned:
    """Fine-tunes the runner's model as the policy asks, and leaves it at the best rate within budget.

    Goes on where `checkpoints` stand. Ctrl-C and SIGTERM end the search with the best model so far. With the baseline's
    scores, (N,), one a validation example, each margin gets its paired standard error.

    Raises:
        MetricError: If a metric or loss is not finite; the model is then in its last good state.
    """
    history: list[EpochRecord] = []
    state = policy.initial(problem)
    if (checkpoint := checkpoints.latest()) is not None:
        history, state = _resume(runner, policy, checkpoint)
        if checkpoints.is_finished:
            logger.info("The run in %s has ended; its result is taken", checkpoints.folder)
        else:
            logger.info("Going on after epoch %d of the run in %s", history[-1].epoch, checkpoints.folder)
    still_needed = state.needed
    stop: Stop | None = None
    with progress, _interruptible():
        try:
            while isinstance(move := policy.ask(state), Epoch):
                started = time.perf_counter()
                loss = _prepare_and_train(runner, move, checkpoints, here=len(history) - 1)
                learning_rate = runner.learning_rate
                evaluation = runner.validate()
                standard_error = _standard_error(baseline_scores, evaluation.scores)
                seen = _judge(runner, budget, move, evaluation.metric, standard_error, history)
                state = policy.tell(state, seen)
                if move.train:
                    runner.update_learning_rate(seen.metric, loss)
                record = EpochRecord(
                    checkpoint=seen.checkpoint,
                    epoch=runner.cumulative_epoch_count,
                    trained=move.train,
                    started_from=move.start_from,
                    requested_rate=seen.requested_rate,
                    achieved_rate=seen.achieved_rate,
                    metric=seen.metric,
                    margin=seen.margin,
                    standard_error=seen.standard_error,
                    loss=loss,
                    learning_rate=learning_rate,
                    lr_scale=move.lr_scale,
                    fully_compressed=seen.fully_compressed,
                    best_rate=state.best.achieved_rate if state.best else None,
                    seconds=time.perf_counter() - started,
                )
                history.append(record)
                saved = {"search": state.model_dump_json(), "history": [vars(row) for row in history]}
                # The first is the model as it was given. The one before this, with what it needs, is there for
                # the case that this one is found damaged.
                keep = {0, seen.checkpoint - 1} | _frontier(history) | state.needed | still_needed
                checkpoint = runner.checkpoint(seen.checkpoint, saved)
                checkpoints.save(checkpoint, runner.dump, keep=keep, wait=False)
                still_needed = state.needed
                progress.show(record)
            stop = move
        except KeyboardInterrupt:
            checkpoint = checkpoints.latest()
            if checkpoint is None:  # not even the first validation came to its end
                raise
            history, state = _resume(runner, policy, checkpoint)
            stop = state.stop("The run was interrupted.").model_copy(update={"outcome": Outcome.INTERRUPTED})
        except MetricError as error:
            if (checkpoint := checkpoints.latest()) is not None:
                runner.restore_model(checkpoint)
            raise MetricError(
                f"{error} The checkpoints are in {checkpoints.folder}; remove that folder to start over."
            ) from None
    if stop.outcome is not Outcome.INTERRUPTED:
        checkpoints.finish()
    return _finish(runner, stop, history, checkpoints)


def _prepare_and_train(runner: TrainingRunner, move: Epoch, checkpoints: RunCheckpoints, *, here: int) -> float | None:
    """Does what `move` says, up to the validation; `here` is the checkpoint that the model stands at."""
    if move.start_from is not None and move.start_from != here:
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
        # A training function may step less often than was thought, and so not reach the path's end.
        runner.finish_rate_path(move.rate_path[-1])
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
    rates = report(controller)
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


def _standard_error(baseline_scores: Tensor | None, scores: Tensor | None) -> float | None:
    """Of the difference of the two metrics; None where either model has no scores."""
    if baseline_scores is None or scores is None:
        return None
    return paired_standard_error(baseline_scores.cpu().numpy(), scores.cpu().numpy())


def _frontier(history: list[EpochRecord]) -> set[int]:
    """Checkpoints within budget that no other one beats in both rate and metric."""
    within = [row for row in history if row.margin >= 0 and row.fully_compressed]
    frontier: set[int] = set()
    best_margin = float("-inf")
    for row in sorted(within, key=lambda row: (-row.achieved_rate, -row.margin)):
        if row.margin > best_margin:
            frontier.add(row.checkpoint)
            best_margin = row.margin
    return frontier


def _resume(runner: TrainingRunner, policy: SearchPolicy[Any], checkpoint: Checkpoint) -> tuple[list[EpochRecord], Any]:
    runner.resume(checkpoint)
    history = [EpochRecord(**row) for row in checkpoint.state["history"]]
    return history, policy.load(checkpoint.state["search"])


def _finish(runner: TrainingRunner, stop: Stop, history: list[EpochRecord], checkpoints: RunCheckpoints) -> FineTuned:
    """Loads what is returned, and validates it once more."""
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
    """Lets SIGTERM end a run in the way Ctrl-C does."""

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


class BaseEarlyExitCompressionTrainingLoop:
    """What both loops share.

    Args:
        nncf_config: An `NNCFConfig`, or a dict of the same form.
        compression_controller: Any object with the interface of `CompressionController`.
        uncompressed_model_accuracy: Metric of the model before compression; an `Evaluation` with scores lets margins
            have a paired standard error.
        lr_updates_needed: Whether the loop steps the learning-rate schedulers after each epoch.
        verbose: Whether to show progress.
        dump_checkpoints: Whether checkpoints stay on disk; without them a killed run starts over.

    Attributes:
        outcome: How the run ended; None before.
        history: The trajectory, one `EpochRecord` an epoch.

    Raises:
        ConfigurationError: Lists every mistake in the configuration.
    """

    def __init__(
        self,
        nncf_config: NNCFConfig | dict[str, Any],
        compression_controller: CompressionController,
        uncompressed_model_accuracy: float | Evaluation,
        lr_updates_needed: bool = True,
        verbose: bool = True,
        dump_checkpoints: bool = True,
    ) -> None:
        self.nncf_config = NNCFConfig.from_dict(nncf_config)
        self.compression_controller = compression_controller
        self.lr_updates_needed = lr_updates_needed
        self.verbose = verbose
        self.dump_checkpoints = dump_checkpoints
        self.outcome: Outcome | None = None
        self.history: list[EpochRecord] = []
        self._settings = AccuracyAwareSettings.from_config(self.nncf_config)
        self._baseline_scores: Tensor | None = None
        if isinstance(uncompressed_model_accuracy, Evaluation):
            self._baseline_scores = uncompressed_model_accuracy.scores
            uncompressed_model_accuracy = uncompressed_model_accuracy.metric
        self._budget = self._settings.budget.budget(
            uncompressed_model_accuracy, higher_is_better=self._settings.higher_is_better
        )
        self._result: FineTuned | None = None
        self._problem = Problem()
        self._policy: SearchPolicy[Any] = self._settings.early_exit

    def run(
        self,
        model: nn.Module,
        train_epoch_fn: Any,
        validate_fn: Any,
        configure_optimizers_fn: Any = None,
        dump_checkpoint_fn: Any = None,
        load_checkpoint_fn: Any = None,
        early_stopping_fn: Any = None,
        tensorboard_writer: Any = None,
        log_dir: str | Path | None = None,
        update_learning_rate_fn: Any = None,
    ) -> nn.Module:
        """Fine-tunes `model` until the search ends.

        A run that was killed goes on where it stood when the same call is made again with the same functions; one
        that ended is not touched, and a new one is made beside it.

        Args:
            model: The controller's model; changed in place.
            train_epoch_fn: `(controller, model, epoch=, optimizer=, lr_scheduler=)` -> mean loss or None.
            validate_fn: `(model, epoch=)` or `(model)` -> metric, a float or an `Evaluation`.
            configure_optimizers_fn: `()` -> `(optimizer or list, lr_scheduler or list or None)`.
            dump_checkpoint_fn: `(model, controller, runner, save_dir)` -> path of what it wrote.
            load_checkpoint_fn: `(model, path)`.
            early_stopping_fn: `(metric)` -> True to end this phase of training.
            tensorboard_writer: A `SummaryWriter`.
            log_dir: Where checkpoints go, `runs` by default.
            update_learning_rate_fn: `(lr_scheduler, epoch, metric, loss)`, called after each epoch.

        Returns:
            `model`, at the highest rate within budget; or as it was given, at rate 0, if there is none.
        """
        callables = Callables(
            train_epoch=train_epoch_fn,
            validate=validate_fn,
            configure_optimizers=configure_optimizers_fn,
            dump_checkpoint=dump_checkpoint_fn,
            load_checkpoint=load_checkpoint_fn,
            early_stopping=early_stopping_fn,
            update_learning_rate=update_learning_rate_fn,
        )
        runner = TrainingRunner(
            model,
            self.compression_controller,
            callables,
            uncompressed_model_accuracy=self._budget.baseline,
            minimal_tolerable_accuracy=self._budget.lowest_tolerated,
            higher_is_better=self._budget.higher_is_better,
            lr_updates_needed=self.lr_updates_needed,
        )
        total = self._policy.maximal_total_epochs
        progress = LoopProgress(
            verbose=self.verbose, total=total if total < UNLIMITED_EPOCHS else None, writer=tensorboard_writer
        )
        with ExitStack() as stack:
            folder = Path(log_dir or "runs")
            if not self.dump_checkpoints:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            identity = {
                "config": self.nncf_config,
                "budget": self._budget.model_dump(),
                "problem": self._problem.model_dump(),
                "model": fingerprint(model),
                "functions": callables.fingerprint,
            }
            checkpoints = stack.enter_context(CheckpointStore(folder).open(identity, reuse_finished=False))
            result = fine_tune(
                runner,
                self._policy,
                self._problem,
                self._budget,
                checkpoints,
                progress,
                baseline_scores=self._baseline_scores,
            )
        self._result, self.outcome, self.history = result, result.outcome, result.history
        if self.verbose:
            logger.info("%s: %s %s", result.outcome, result.reason, result.outcome.advice)
            logger.info("\n%s", self.statistics.to_str())
        return model

    @property
    def statistics(self) -> TrainingLoopStatistics:
        """The closing figures.

        Raises:
            RuntimeError: Before `run` has ended.
        """
        if self._result is None:
            raise RuntimeError("There are no statistics before run() has ended.")
        return statistics_of(self._result, self._budget)


class EarlyExitCompressionTrainingLoop(BaseEarlyExitCompressionTrainingLoop):
    """Trains under the controller's own schedule, and stops at the first epoch within budget."""


class AdaptiveCompressionTrainingLoop(BaseEarlyExitCompressionTrainingLoop):
    """Seeks the highest rate within budget, with the policy that `params.search` of the config names.

    Args:
        nncf_config: See `BaseEarlyExitCompressionTrainingLoop`.
        compression_controller: Likewise; its `compression_rate` must be settable.
        uncompressed_model_accuracy: Likewise.
        lr_updates_needed: Likewise.
        verbose: Likewise.
        minimal_compression_rate: Lowest rate worth returning, in [0, 1).
        maximal_compression_rate: Highest rate to try, in [0, 1); the controller may lower it.
        dump_checkpoints: See `BaseEarlyExitCompressionTrainingLoop`.
    """

    def __init__(
        self,
        nncf_config: NNCFConfig | dict[str, Any],
        compression_controller: CompressionController,
        uncompressed_model_accuracy: float | Evaluation,
        lr_updates_needed: bool = True,
        verbose: bool = True,
        minimal_compression_rate: float = 0.0,
        maximal_compression_rate: float = 0.95,
        dump_checkpoints: bool = True,
    ) -> None:
        super().__init__(
            nncf_config,
            compression_controller,
            uncompressed_model_accuracy,
            lr_updates_needed,
            verbose,
            dump_checkpoints,
        )
        self._policy = self._settings.search
        self._problem = adaptive_problem(
            compression_controller,
            self._budget,
            minimal_rate=minimal_compression_rate,
            maximal_rate=maximal_compression_rate,
        )


def create_accuracy_aware_training_loop(
    nncf_config: NNCFConfig | dict[str, Any],
    compression_ctrl: CompressionController,
    uncompressed_model_accuracy: float | Evaluation,
    **runner_args: Any,
) -> BaseEarlyExitCompressionTrainingLoop:
    """The loop that `accuracy_aware_training.mode` names, made with `runner_args`."""
    settings = AccuracyAwareSettings.from_config(NNCFConfig.from_dict(nncf_config))
    kind = EarlyExitCompressionTrainingLoop if settings.mode == "early_exit" else AdaptiveCompressionTrainingLoop
    return kind(nncf_config, compression_ctrl, uncompressed_model_accuracy, **runner_args)


def adaptive_problem(
    controller: CompressionController, budget: Budget, *, minimal_rate: float, maximal_rate: float
) -> Problem:
    """The search problem of a controller, whose own limit may be lower than `maximal_rate`."""
    limit = float(controller.maximal_compression_rate)
    rates = {
        "minimal_rate": minimal_rate,
        "maximal_rate": min(maximal_rate, limit),
        "initial_rate": min(max(float(controller.compression_rate), 0.0), MAXIMAL_INITIAL_RATE),
        "tolerated_drop": budget.drop,
    }
    return parse(Problem, rates, where="search")


def statistics_of(result: FineTuned, budget: Budget) -> TrainingLoopStatistics:
    """The closing figures of a search."""
    degradation = budget.degradation(result.metric)
    relative = 100 * degradation / abs(budget.baseline) if budget.baseline else float("nan")
    return TrainingLoopStatistics(
        uncompressed_accuracy=budget.baseline,
        compression_rate=result.achieved_rate,
        compressed_accuracy=result.metric,
        absolute_accuracy_degradation=degradation,
        relative_accuracy_degradation=relative,
        accuracy_budget=budget.margin(result.metric),
    )


def fingerprint(model: nn.Module) -> str:
    """A hash of all parameters and buffers."""
    state = model.state_dict().items()
    return hash_tensors((name, tensor) for name, tensor in state if isinstance(tensor, torch.Tensor))

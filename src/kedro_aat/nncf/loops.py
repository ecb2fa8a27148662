"""The two training loops of NNCF 2.x and their factory; the work is done by `training.loop.fine_tune`."""

from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from kedro_aat.budget import Outcome
from kedro_aat.compression.controller import CompressionController, ModelController
from kedro_aat.errors import ConfigurationError, InterruptedRunError, RankError
from kedro_aat.messages import shown
from kedro_aat.nncf.config import NNCF_MAXIMAL_RATE, AccuracyAwareSettings, NNCFConfig
from kedro_aat.nncf.finished import FinishedLoop
from kedro_aat.nncf.ranks import agreed, begin_alike, runner_class
from kedro_aat.nncf.registered import callables_of
from kedro_aat.nncf.without_rate import RatelessController
from kedro_aat.ranks import group
from kedro_aat.search import Frontier
from kedro_aat.search.policy import Problem, SearchPolicy, updated
from kedro_aat.search.stepping import UNLIMITED_EPOCHS
from kedro_aat.storage import local_path
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.checkpoints.recovery import recover
from kedro_aat.training.failures import alone
from kedro_aat.training.fingerprints.identity import fingerprint, ingredients_of
from kedro_aat.training.guards.user_functions import name_of
from kedro_aat.training.loop import adaptive_problem, fine_tune
from kedro_aat.training.progress import LoopProgress
from kedro_aat.training.progress.tensorboard import ScalarsTracker
from kedro_aat.training.ranks.leading import Ending, LeadingRunner, follow, leading
from kedro_aat.training.records import EpochRecord, FineTuned
from kedro_aat.training.runner import Callables, Evaluation, TrainingRunner

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


class BaseEarlyExitCompressionTrainingLoop(FinishedLoop):
    """The base of both loops.

    Args:
        nncf_config: An `NNCFConfig`, or a dict with the same keys.
        compression_controller: Any object with the interface of `CompressionController`.
        uncompressed_model_accuracy: Metric of the model before compression. With an `Evaluation` that has scores, each
            margin gets a paired standard error.
        lr_updates_needed: Whether the loop steps the learning-rate schedulers after each epoch.
        verbose: Whether to show progress.
        dump_checkpoints: Whether to keep checkpoints on disk; without them a killed run starts over.

    Attributes:
        after_upgrade: Whether an unfinished run of another version of kedro-aat is continued (`continue`), or a new one
            begins beside it (`start_anew`); None raises an error if there is one. Set it before `run`.
        outcome: How the run ended; None until then.
        history: The trajectory, one `EpochRecord` per epoch.

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
        self.after_upgrade: Literal["continue", "start_anew"] | None = None
        self.outcome: Outcome | None = None
        self.history: list[EpochRecord] = []
        self._settings = AccuracyAwareSettings.from_config(self.nncf_config)
        if not isinstance(uncompressed_model_accuracy, Evaluation):
            uncompressed_model_accuracy = Evaluation(uncompressed_model_accuracy)
        self._baseline = uncompressed_model_accuracy
        self._budget = self._settings.budget.budget(
            self._baseline.metric, higher_is_better=self._settings.higher_is_better, also=self._baseline.also
        )
        self._result = self._certified = self._costs = None
        self._run_name = self._metric = ""
        self._problem = Problem()
        self._more_callables: dict[str, Any] = {}
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

        To resume a run that was killed, make the same call with the same functions. A run that has ended is left
        untouched: the next call starts a new one in a folder of its own.

        Args:
            model: The controller's model; modified in place.
            train_epoch_fn: `(controller, model, epoch=, optimizer=, lr_scheduler=)` -> mean loss or None.
            validate_fn: `(model, epoch=)` or `(model)` -> metric, a float or an `Evaluation`.
            configure_optimizers_fn: `()` -> `(optimizer or list, lr_scheduler or list or None)`.
            dump_checkpoint_fn: `(model, controller, runner, save_dir)` -> path of the file that it wrote.
            load_checkpoint_fn: `(model, path)` -> None.
            early_stopping_fn: `(metric)` -> True to end this phase of training.
            tensorboard_writer: A `SummaryWriter`.
            log_dir: Folder for checkpoints; `runs` by default.
            update_learning_rate_fn: `(lr_scheduler, epoch, metric, loss)` -> None, called after each epoch.

        Returns:
            `model`, at the highest rate within budget. If no rate is within budget, with its original weights and
            rate 0.
        """
        callables = Callables(
            train_epoch=train_epoch_fn,
            validate=validate_fn,
            configure_optimizers=configure_optimizers_fn,
            dump_checkpoint=dump_checkpoint_fn,
            load_checkpoint=load_checkpoint_fn,
            early_stopping=early_stopping_fn,
            update_learning_rate=update_learning_rate_fn,
            **self._more_callables,
        )
        controller = self.compression_controller
        begin_alike(model, controller)
        runner = runner_class()(
            model,
            controller,
            agreed(callables, model),
            uncompressed_model_accuracy=self._budget.baseline,
            minimal_tolerable_accuracy=self._budget.lowest_tolerated,
            higher_is_better=self._budget.higher_is_better,
            lr_updates_needed=self.lr_updates_needed,
        )
        result: FineTuned
        if not isinstance(runner, LeadingRunner) and group.is_distributed():
            result, self._run_name = follow(runner)
        else:
            with leading(runner) if isinstance(runner, LeadingRunner) else nullcontext(Ending()) as end:
                end.value = result, self._run_name = self._search(runner, callables, tensorboard_writer, log_dir)
        self._result, self.outcome, self.history = result, result.outcome, result.history
        self._metric = name_of(validate_fn).rpartition(".")[2]
        self._certified = self._costs = None
        if self.verbose and group.is_main():
            with shown():
                logger.info("%s: %s %s", result.outcome, result.reason, result.outcome.advice)
                logger.info("\n%s", self.statistics.to_str())
        return model

    def _search(
        self, runner: TrainingRunner, callables: Callables, tensorboard_writer: Any, log_dir: str | Path | None
    ) -> tuple[FineTuned, str]:
        """Fine-tunes the runner's model; returns how the search ended, and the name of its run."""
        model, controller, limit = runner.model, self.compression_controller, self._policy.maximal_total_epochs
        scalars = ScalarsTracker(tensorboard_writer)
        progress = LoopProgress(
            verbose=self.verbose,
            total=limit if limit < UNLIMITED_EPOCHS else None,
            algorithm=controller.settings.algorithm if isinstance(controller, ModelController) else "",
            on_epoch=scalars.epoch,
        )
        with ExitStack() as stack:
            stack.callback(scalars.finish, None)
            stack.enter_context(shown() if self.verbose else nullcontext())
            folder = local_path(log_dir or "runs")
            if not self.dump_checkpoints:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            judged = {"budget": self._budget, "problem": self._problem}
            identity = {
                "config": self.nncf_config,
                **{name: part.identity() for name, part in judged.items()},
                "model": fingerprint(model),
                "functions": callables.fingerprint,
            }
            registered = (self.nncf_config.criterion, self.nncf_config.criterion_fn)
            objects = [each for each in (*vars(callables).values(), *registered) if each is not None]
            more, packages = ingredients_of(objects, [], model, self._budget.baseline)
            identity |= more
            store = CheckpointStore(folder)
            whole = {name: part.identity(defaults=True) for name, part in judged.items()}
            opened = store.open(
                identity,
                ingredients=identity | whole | {"packages": packages},
                reuse_finished=False,
                after_upgrade=self.after_upgrade,
            )
            checkpoints = stack.enter_context(opened)
            recover(runner, self._policy, self._problem, self._budget, checkpoints)
            try:
                result = fine_tune(
                    runner,
                    self._policy,
                    self._problem,
                    self._budget,
                    checkpoints,
                    progress,
                    baseline=self._baseline,
                )
            except RankError as error:
                raise alone(error, self._policy, checkpoints) from error.__cause__
            if isinstance(runner, LeadingRunner) and runner.is_alone:  # the others cannot go on
                raise InterruptedRunError(f"The run was stopped. {result.outcome.advice}")
            return result, checkpoints.folder.name


class EarlyExitCompressionTrainingLoop(BaseEarlyExitCompressionTrainingLoop):
    """Trains with the controller's own schedule, and stops after the first epoch within budget."""


class AdaptiveCompressionTrainingLoop(BaseEarlyExitCompressionTrainingLoop):
    """Searches for the highest rate within budget, with the policy that `params.search` of the config names.

    Args:
        nncf_config: An `NNCFConfig`, or a dict with the same keys.
        compression_controller: Any object with the interface of `CompressionController` whose `compression_rate` can
            be set.
        uncompressed_model_accuracy: Metric of the model before compression. With an `Evaluation` that has scores, each
            margin gets a paired standard error.
        lr_updates_needed: Whether the loop steps the learning-rate schedulers after each epoch.
        verbose: Whether to show progress.
        minimal_compression_rate: Lowest rate worth returning, in [0, 1).
        maximal_compression_rate: Highest rate to try, in [0, 1); the controller may lower it. The default is 0.95 for
            the searches of NNCF, and 0.998 for `frontier`.
        dump_checkpoints: Whether to keep checkpoints on disk; without them a killed run starts over.

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
        minimal_compression_rate: float = 0.0,
        maximal_compression_rate: float = NNCF_MAXIMAL_RATE,
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
        file = self.nncf_config.parsed
        keeps_zeros_only = file.adaptive is None and file.keeps_zeros
        if keeps_zeros_only or isinstance(compression_controller, RatelessController):
            mistake = "the configuration names no algorithm with a rate; the mode early_exit needs none"
            raise ConfigurationError("compression", [mistake])
        is_default = maximal_compression_rate is NNCF_MAXIMAL_RATE
        problem = adaptive_problem(
            compression_controller,
            self._budget,
            minimal_rate=minimal_compression_rate,
            maximal_rate=self._settings.maximal_rate if is_default else maximal_compression_rate,
        )
        if isinstance(self._policy, Frontier):
            more = callables_of(self.nncf_config, compression_controller)
            problem = updated(problem, can_sample="sample_gradients" in more, can_distill="distill" in more)
            self._more_callables = more
        self._problem = problem


def create_accuracy_aware_training_loop(
    nncf_config: NNCFConfig | dict[str, Any],
    compression_ctrl: CompressionController,
    uncompressed_model_accuracy: float | Evaluation,
    **runner_args: Any,
) -> BaseEarlyExitCompressionTrainingLoop:
    """Creates the loop that `accuracy_aware_training.mode` names.

    Args:
        nncf_config: An `NNCFConfig`, or a dict with the same keys.
        compression_ctrl: Any object with the interface of `CompressionController`.
        uncompressed_model_accuracy: Metric of the model before compression, or its `Evaluation`.
        **runner_args: Further arguments of the loop's class.

    Raises:
        ConfigurationError: Lists every mistake in the configuration.
    """
    config = NNCFConfig.from_dict(nncf_config)
    settings = AccuracyAwareSettings.from_config(config)
    loop = EarlyExitCompressionTrainingLoop if settings.mode == "early_exit" else AdaptiveCompressionTrainingLoop
    return loop(config, compression_ctrl, uncompressed_model_accuracy, **runner_args)

"""Calls the user's functions, one epoch at a time, and saves and restores all state of the training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kedro_aat.budget import require_finite
from kedro_aat.compression.controller import CompressionController, CompressionReport, RanksByTactic, rates_of
from kedro_aat.compression.schedule import FollowsRatePath, TellsProgress
from kedro_aat.messages import doing
from kedro_aat.search.tactics import Ranking, Tactic
from kedro_aat.training.callables import Callables, Evaluation, bind_known, evaluate
from kedro_aat.training.checkpoints import Checkpoint
from kedro_aat.training.checkpoints.parts import optimizer_placed_as, placed_as
from kedro_aat.training.guards.user_functions import (
    calling,
    left_unchanged,
    require_same_names,
    warn_of_evaluation_mode,
)
from kedro_aat.training.learning_rates import learning_rate_of, listed, scale_learning_rates, step_schedulers
from kedro_aat.training.random_state import rng_state, set_rng_state

__all__ = ["Callables", "Evaluation", "TrainingRunner", "bind_known", "evaluate", "listed"]

logger = logging.getLogger(__name__)


class TrainingRunner:
    """Trains and validates through the user's functions alone.

    Args:
        model: The model under compression.
        compression_controller: Its controller.
        callables: The user's functions.
        uncompressed_model_accuracy: Metric of the uncompressed model; None while a baseline is trained.
        minimal_tolerable_accuracy: The worst metric within budget; None while a baseline is trained.
        higher_is_better: Direction of the metric.
        lr_updates_needed: Whether learning-rate schedulers step after each epoch.
        learning_rate_factor: Factor on all learning rates that are configured, above 0.

    Attributes:
        model: The model under compression.
        compression_controller: Its controller.
        optimizer: What `configure_optimizers_fn` last returned: an optimizer, a list of optimizers, or None.
        lr_scheduler: The learning-rate scheduler from the same call: one, a list, or None.
        cumulative_epoch_count: Epochs trained in total.
        training_epoch_count: Epochs trained since the optimizer was last configured.
        current_val_metric_value: The last metric; None before the first validation.
        best_val_metric_value: The best metric since the optimizer was last configured; None before the first one.
        current_loss: Mean loss of the last epoch; None if unknown.
        uncompressed_model_accuracy: Metric of the uncompressed model; None while a baseline is trained.
        minimal_tolerable_accuracy: The worst metric within budget; None while a baseline is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        compression_controller: CompressionController,
        callables: Callables,
        *,
        uncompressed_model_accuracy: float | None = None,
        minimal_tolerable_accuracy: float | None = None,
        higher_is_better: bool = True,
        lr_updates_needed: bool = True,
        learning_rate_factor: float = 1.0,
    ) -> None:
        self.model = model
        self.compression_controller = compression_controller
        self.callables = callables
        self.uncompressed_model_accuracy = uncompressed_model_accuracy
        self.minimal_tolerable_accuracy = minimal_tolerable_accuracy
        self.higher_is_better = higher_is_better
        self.lr_updates_needed = lr_updates_needed
        self.learning_rate_factor = learning_rate_factor
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        self.lr_scale = 1.0
        self.cumulative_epoch_count = 0
        self.training_epoch_count = 0
        self.current_val_metric_value: float | None = None
        self.best_val_metric_value: float | None = None
        self.current_loss: float | None = None
        self.is_searching = False
        self._state_names: frozenset[str] | None = None
        self._has_told_mode = False

    # --- one epoch -------------------------------------------------------------------------------------------

    def reset_training(self) -> None:
        """Starts a phase of training with new optimizers and schedulers, and no best metric yet."""
        self.training_epoch_count = 0
        self.best_val_metric_value = None
        self.lr_scale = 1.0
        if self.callables.configure_optimizers is not None:
            with calling(
                self.callables.configure_optimizers, "configure_optimizers", f"epoch {self.cumulative_epoch_count}"
            ):
                self.optimizer, self.lr_scheduler = self.callables.configure_optimizers()
            if self.learning_rate_factor != 1.0:
                scale_learning_rates(self.optimizer, self.lr_scheduler, self.learning_rate_factor)

    def scale_learning_rate(self, scale: float) -> None:
        """Multiplies the learning rates that the optimizers were configured with by `scale`."""
        ratio = scale / self.lr_scale
        self.lr_scale = scale
        if ratio != 1.0:
            scale_learning_rates(self.optimizer, self.lr_scheduler, ratio)

    def use(self, tactic: Tactic) -> None:
        """Trains and ranks from now on as a tactic says, except for its learning rate."""
        controller = self.compression_controller
        if isinstance(controller, RanksByTactic) and tactic.ranking != Ranking():
            controller.rank_by(tactic.ranking)
            observe = getattr(controller, "observe_gradients", None)
            if tactic.ranking.importance == "taylor" and observe is not None and self.callables.sample_gradients:
                with self._calling(self.callables.sample_gradients, "sample_gradients"):
                    self.callables.sample_gradients(observe)
        if self.callables.distill is not None:
            self.callables.distill(tactic.distill)

    @contextlib.contextmanager
    def annealing(self, scale: float, scale_at_end: float | None) -> Iterator[None]:
        """Sets the learning-rate scale of an epoch, which moves linearly to `scale_at_end` within it.

        It is the mean of both if nothing steps the controller's scheduler, or the number of steps is unknown.
        """
        scheduler, end = self.compression_controller.scheduler, scale if scale_at_end is None else scale_at_end
        self.scale_learning_rate((scale + end) / 2)
        if end == scale or not (self.is_searching and isinstance(scheduler, TellsProgress)):
            yield
            return
        scheduler.on_step = lambda share: self.scale_learning_rate(scale + (end - scale) * share)
        try:
            yield
        finally:
            scheduler.on_step = None

    def set_rate(self, path: tuple[float, ...]) -> None:
        """Sets the rate, or the path of rates within an epoch, instead of the controller's own schedule."""
        controller = self.compression_controller
        if not self.is_searching:
            controller.disable_scheduler()
            self.is_searching = True
        if len(path) > 1 and isinstance(controller.scheduler, FollowsRatePath):
            controller.scheduler.follow_rate_path(path)
        else:
            controller.compression_rate = path[-1]

    def adapt(self) -> None:
        """Adapts the model to a new rate without training, if there is a function for that."""
        if self.callables.adapt is not None:
            with self._calling(self.callables.adapt, "adapt"):
                self.callables.adapt(self.model)

    def finish_rate_path(self, rate: float) -> None:
        """Sets the path's last rate if the training function took too few steps to reach it."""
        if rates_of(self.compression_controller).requested_rate != rate:
            self.compression_controller.compression_rate = rate

    def uncompress(self) -> None:
        """Sets rate 0, if the controller has a rate that can be set."""
        with contextlib.suppress(AttributeError, NotImplementedError):
            self.compression_controller.compression_rate = 0.0

    def train_epoch(self) -> float | None:
        """Runs one epoch of the user's training function.

        Returns:
            Its mean loss; None if it returned nothing.

        Raises:
            MetricError: If the loss is not a number; `DivergedError` if it is NaN or infinite.
            UserFunctionError: If the function fails; `OutOfMemoryError` if there is too little memory.
        """
        self.compression_controller.scheduler.epoch_step()
        train = self.callables.train_epoch
        calling_train = self._calling(train, "train_epoch", self.cumulative_epoch_count + 1)
        with calling_train, doing(f"training of epoch {self.cumulative_epoch_count + 1}", self._position, "steps"):
            loss = train(
                self.compression_controller,
                self.model,
                epoch=self.cumulative_epoch_count,
                optimizer=self.optimizer,
                lr_scheduler=self.lr_scheduler,
            )
        self.cumulative_epoch_count += 1
        self.training_epoch_count += 1
        if not self.model.training and not self._has_told_mode:
            self._has_told_mode = True
            warn_of_evaluation_mode(train, self.cumulative_epoch_count)
        named = f"the loss of epoch {self.cumulative_epoch_count}"
        self.current_loss = None if loss is None else require_finite(loss, named)
        return self.current_loss

    def _position(self) -> tuple[int, int | None]:
        """Steps of the epoch that are done, and all of them, as far as the controller's scheduler knows."""
        scheduler = self.compression_controller.scheduler
        return getattr(scheduler, "current_step", -1) + 1, getattr(scheduler, "steps_per_epoch", None)

    @property
    def epoch_cost(self) -> float:
        """What the last epoch cost, as a share of an epoch of the uncompressed model, in (0, 1]."""
        return 1.0 if self.callables.cost is None else self.callables.cost()

    def validate(self) -> Evaluation:
        """Runs the user's validation function, without gradients.

        Raises:
            MetricError: If the metric is not a number; `DivergedError` if it is NaN or infinite.
            UserFunctionError: If the function fails, or changes the model.
        """
        validate, epoch = self.callables.validate, self.cumulative_epoch_count
        # Quantizers find ranges in the first forward pass, and keep them in buffers.
        is_first = self.current_val_metric_value is None
        with left_unchanged(self.model, validate, epoch, only_parameters=is_first):
            evaluation = evaluate(
                self.model,
                validate,
                epoch=epoch,
                batch_size=self.callables.batch_size,
                can_be_halved=self._advises_halving("validate"),
            )
        metric = self.current_val_metric_value = evaluation.metric
        best, choose = self.best_val_metric_value, max if self.higher_is_better else min
        self.best_val_metric_value = metric if best is None else choose(best, metric)
        return evaluation

    def stops_early(self, metric: float) -> bool:
        """Whether the user's early-stopping function ends this phase of training."""
        function = self.callables.early_stopping
        if function is None:
            return False
        with self._calling(function, "early_stopping"):
            return bool(function(metric))

    def update_learning_rate(self, metric: float, loss: float | None) -> None:
        """Steps the learning-rate schedulers after an epoch, by the user's function if there is one."""
        if not self.lr_updates_needed:
            return
        if (update := self.callables.update_learning_rate) is not None:
            with self._calling(update, "update_learning_rate"):
                update(self.lr_scheduler, self.training_epoch_count, metric, loss)
            return
        step_schedulers(self.lr_scheduler, metric)

    @property
    def learning_rate(self) -> float | None:
        """Learning rate of the first parameter group; None without an optimizer, or if it has none."""
        return learning_rate_of(self.optimizer)

    # --- state -----------------------------------------------------------------------------------------------

    def checkpoint(self, number: int, state: dict[str, Any], growing: Mapping[str, Any] | None = None) -> Checkpoint:
        """All state at an epoch boundary.

        Args:
            number: Number of the checkpoint.
            state: State of the search, as JSON data.
            growing: What grows with the epochs.

        Raises:
            UserFunctionError: If the names in the model's state have changed since the run began.
        """
        controller = self.compression_controller
        get_state = getattr(controller, "get_state", None)
        model = self.model.state_dict()
        names = frozenset(model)
        self._state_names = self._state_names or names
        require_same_names(self._state_names, names, self.cumulative_epoch_count)
        return Checkpoint(
            number=number,
            model=model,
            training={
                "optimizers": [optimizer.state_dict() for optimizer in listed(self.optimizer)],
                "lr_schedulers": [scheduler.state_dict() for scheduler in listed(self.lr_scheduler)],
                "controller": get_state() if get_state is not None else {},
                "callables": self.callables.state.state_dict() if self.callables.state else {},
                "rng": rng_state(),
            },
            state=state
            | {
                "lr_scale": self.lr_scale,
                "cumulative_epoch_count": self.cumulative_epoch_count,
                "training_epoch_count": self.training_epoch_count,
                "best_val_metric_value": self.best_val_metric_value,
                "is_searching": self.is_searching,
            },
            growing=growing or {},
        )

    def halve_batch(self, role: str) -> bool:
        """Lets the function that has this role need less memory; False if it cannot."""
        halve = self.callables.halve_batch
        return halve is not None and role in self.callables.in_parts and halve()

    def _advises_halving(self, role: str) -> bool:
        return self.callables.halve_batch is None and role in self.callables.in_parts

    def _calling(
        self, function: Callable[..., Any], role: str, epoch: int | None = None
    ) -> contextlib.AbstractContextManager[None]:
        epoch = self.cumulative_epoch_count if epoch is None else epoch
        halving = self._advises_halving(role)
        return calling(function, role, f"epoch {epoch}", batch_size=self.callables.batch_size, can_be_halved=halving)

    @property
    def dump(self) -> Callable[[Path], object] | None:
        """The user's function that writes checkpoints, for `RunCheckpoints.save`; None if there is none.

        If the user only has a function that loads checkpoints, it gets what NNCF wrote by default: a dict with
        `state_dict` and `epoch`.
        """
        dump, load = self.callables.dump_checkpoint, self.callables.load_checkpoint
        if dump is not None:

            def call(folder: Path) -> object:
                with self._calling(dump, "dump_checkpoint"):
                    return dump(self.model, self.compression_controller, self, str(folder))

            return call
        return self._dump_as_nncf if load is not None else None

    def _dump_as_nncf(self, folder: Path) -> Path:
        path, compression = folder / "checkpoint.pth", self.compression_controller.get_compression_state()
        contents = {"epoch": self.cumulative_epoch_count, "state_dict": self.model.state_dict()}
        torch.save(contents | {"compression_state": compression}, path)
        return path

    def restore_model(self, checkpoint: Checkpoint) -> None:
        """Restores model and controller from `checkpoint`."""
        if (load := self.callables.load_checkpoint) is not None:
            assert checkpoint.folder is not None
            with self._calling(load, "load_checkpoint"):
                load(self.model, str(checkpoint.folder / checkpoint.value("dumped")))
        else:
            self.model.load_state_dict(placed_as(checkpoint.model, self.model))
        load_state = getattr(self.compression_controller, "load_state", None)
        if load_state is not None:
            load_state(checkpoint.training["controller"])

    def restore_optimizers(self, checkpoint: Checkpoint) -> None:
        """Configures new optimizers and learning-rate schedulers, and restores their state from `checkpoint`.

        They stay new, after a warning, if the checkpoint has lost it: older ones keep only what a search asks for.
        """
        self.reset_training()
        self._restore_callables(checkpoint)
        if "optimizers" not in checkpoint.training:
            logger.warning("Checkpoint %d has no optimizers any more; it goes on with new ones.", checkpoint.number)
            return
        for optimizer, saved in zip(listed(self.optimizer), checkpoint.training["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_placed_as(saved, optimizer))
        for scheduler, saved in zip(listed(self.lr_scheduler), checkpoint.training["lr_schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.lr_scale = checkpoint.value("lr_scale")
        self.training_epoch_count = checkpoint.value("training_epoch_count")

    def _restore_callables(self, checkpoint: Checkpoint) -> None:
        if self.callables.state is not None:
            self.callables.state.load_state_dict(checkpoint.training["callables"])

    def roll_back(self, checkpoint: Checkpoint, *, new_optimizer: bool = False) -> None:
        """Returns to `checkpoint` after an epoch that failed; the epoch counts, and random numbers go on.

        Args:
            checkpoint: Where the epoch began.
            new_optimizer: Whether it began with a new optimizer.
        """
        if new_optimizer:
            self.reset_training()
            self._restore_callables(checkpoint)
        else:
            self.restore_optimizers(checkpoint)
        self.restore_model(checkpoint)
        self.best_val_metric_value = checkpoint.value("best_val_metric_value")

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continues exactly where `checkpoint` was written, including the random generators."""
        if checkpoint.value("is_searching") and not self.is_searching:
            self.compression_controller.disable_scheduler()
            self.is_searching = True
        self.restore_optimizers(checkpoint)
        self.restore_model(checkpoint)
        self.cumulative_epoch_count = checkpoint.value("cumulative_epoch_count")
        self.best_val_metric_value = checkpoint.value("best_val_metric_value")
        self._state_names = frozenset(checkpoint.model)
        set_rng_state(checkpoint.training["rng"])

    def rates(self) -> CompressionReport:
        """The requested and the achieved rate of the model."""
        return rates_of(self.compression_controller)

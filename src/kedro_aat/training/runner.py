"""Calls the user's functions, one epoch at a time, and saves and restores all state of the training."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kedro_aat.budget import require_finite
from kedro_aat.compression.controller import CompressionController, rates_of
from kedro_aat.compression.schedule import FollowsRatePath
from kedro_aat.errors import ConfigurationError
from kedro_aat.training.checkpoints import Checkpoint
from kedro_aat.training.identity import hash_sources
from kedro_aat.training.random_state import rng_state, set_rng_state

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful


@dataclass(frozen=True)
class Evaluation:
    """What a validation function may return instead of a number.

    Attributes:
        metric: Metric over the whole split.
        scores: One score per validation example, in a fixed order, (N,); None if the metric is not their mean.
        resampled: Metric on R resamples of the examples, the same for every model, (R,); the source of the standard
            error of a metric without scores.
    """

    metric: float
    scores: Tensor | None = None
    resampled: Tensor | None = None


@dataclass(frozen=True)
class Callables:
    """The functions that a user passes to `run`; only the first two are required."""

    train_epoch: Callable[..., Any]
    validate: Callable[..., Any]
    configure_optimizers: Callable[[], tuple[Any, Any]] | None = None
    dump_checkpoint: Callable[..., Any] | None = None
    load_checkpoint: Callable[..., Any] | None = None
    early_stopping: Callable[[float], bool] | None = None
    update_learning_rate: Callable[..., Any] | None = None
    adapt: Callable[[nn.Module], object] | None = None
    state: Stateful | None = None

    def __post_init__(self) -> None:
        mistakes = [
            f"{name}_fn: must be callable, but got {function!r}"
            for name, function in vars(self).items()
            if name != "state"
            and not (callable(function) or (function is None and name not in ("train_epoch", "validate")))
        ]
        if mistakes:
            raise ConfigurationError("run", mistakes)

    @property
    def fingerprint(self) -> str:
        """Hash of the functions' source."""
        return hash_sources(value for name, value in vars(self).items() if name != "state" and value is not None)


def evaluate(model: nn.Module, validate: Callable[..., Any], *, epoch: int = 0) -> Evaluation:
    """Calls a validation function on a model, without gradients.

    Args:
        model: The model, compressed or not, or an exported file that runs as a module.
        validate: Takes the model, and `epoch` if it has such a parameter; returns a number or an `Evaluation`.
        epoch: Number of epochs trained so far.

    Raises:
        MetricError: If the metric is not a finite number.
    """
    with torch.no_grad():
        result = bind_known(validate, epoch=epoch)(model)
    if not isinstance(result, Evaluation):
        result = Evaluation(result)
    return replace(result, metric=require_finite(result.metric, f"the metric of epoch {epoch}"))


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
    ) -> None:
        self.model = model
        self.compression_controller = compression_controller
        self.callables = callables
        self.uncompressed_model_accuracy = uncompressed_model_accuracy
        self.minimal_tolerable_accuracy = minimal_tolerable_accuracy
        self.higher_is_better = higher_is_better
        self.lr_updates_needed = lr_updates_needed
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        self.lr_scale = 1.0
        self.cumulative_epoch_count = 0
        self.training_epoch_count = 0
        self.current_val_metric_value: float | None = None
        self.best_val_metric_value: float | None = None
        self.current_loss: float | None = None
        self.is_searching = False

    # --- one epoch -------------------------------------------------------------------------------------------

    def reset_training(self) -> None:
        """Starts a phase of training with new optimizers and schedulers, and no best metric yet."""
        self.training_epoch_count = 0
        self.best_val_metric_value = None
        self.lr_scale = 1.0
        if self.callables.configure_optimizers is not None:
            self.optimizer, self.lr_scheduler = self.callables.configure_optimizers()

    def scale_learning_rate(self, scale: float) -> None:
        """Multiplies the learning rates that the optimizers were configured with by `scale`."""
        ratio = scale / self.lr_scale
        self.lr_scale = scale
        if ratio == 1.0:
            return
        for optimizer in listed(self.optimizer):
            for group in optimizer.param_groups:
                # OneCycleLR and CyclicLR keep their limits in the parameter groups.
                for key in ("lr", "initial_lr", "max_lr", "min_lr"):
                    if key in group:
                        group[key] = group[key] * ratio
        for scheduler in _all_schedulers(self.lr_scheduler):
            for key in ("base_lrs", "max_lrs", "_last_lr"):
                if isinstance(getattr(scheduler, key, None), list):
                    setattr(scheduler, key, [rate * ratio for rate in getattr(scheduler, key)])

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
            MetricError: If the loss is not a finite number.
        """
        self.compression_controller.scheduler.epoch_step()
        loss = self.callables.train_epoch(
            self.compression_controller,
            self.model,
            epoch=self.cumulative_epoch_count,
            optimizer=self.optimizer,
            lr_scheduler=self.lr_scheduler,
        )
        self.cumulative_epoch_count += 1
        self.training_epoch_count += 1
        self.current_loss = (
            None if loss is None else require_finite(loss, f"the loss of epoch {self.cumulative_epoch_count}")
        )
        return self.current_loss

    def validate(self) -> Evaluation:
        """Runs the user's validation function, without gradients.

        Raises:
            MetricError: If the metric is not a finite number.
        """
        evaluation = evaluate(self.model, self.callables.validate, epoch=self.cumulative_epoch_count)
        metric = self.current_val_metric_value = evaluation.metric
        if self.best_val_metric_value is None or self._is_better(metric, self.best_val_metric_value):
            self.best_val_metric_value = metric
        return evaluation

    def stops_early(self, metric: float) -> bool:
        """Whether the user's early-stopping function ends this phase of training."""
        function = self.callables.early_stopping
        return function is not None and bool(function(metric))

    def update_learning_rate(self, metric: float, loss: float | None) -> None:
        """Steps the learning-rate schedulers after an epoch, by the user's function if there is one."""
        if not self.lr_updates_needed:
            return
        if self.callables.update_learning_rate is not None:
            self.callables.update_learning_rate(self.lr_scheduler, self.training_epoch_count, metric, loss)
            return
        for scheduler in listed(self.lr_scheduler):
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(metric)
            else:
                scheduler.step()

    @property
    def learning_rate(self) -> float | None:
        """Learning rate of the first parameter group; None without an optimizer."""
        optimizers = listed(self.optimizer)
        return float(optimizers[0].param_groups[0]["lr"]) if optimizers else None

    # --- state -----------------------------------------------------------------------------------------------

    def checkpoint(self, number: int, state: dict[str, Any]) -> Checkpoint:
        """All state at an epoch boundary, together with `state` from the search."""
        controller = self.compression_controller
        get_state = getattr(controller, "get_state", None)
        return Checkpoint(
            number=number,
            model=self.model.state_dict(),
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
        )

    @property
    def dump(self) -> Callable[[Path], object] | None:
        """The user's function that writes checkpoints, for `RunCheckpoints.save`; None if there is none.

        If the user only has a function that loads checkpoints, it gets what NNCF wrote by default: a dict with
        `state_dict` and `epoch`.
        """
        dump, load = self.callables.dump_checkpoint, self.callables.load_checkpoint
        if dump is not None:
            return lambda folder: dump(self.model, self.compression_controller, self, str(folder))
        return self._dump_as_nncf if load is not None else None

    def _dump_as_nncf(self, folder: Path) -> Path:
        path = folder / "checkpoint.pth"
        contents = {
            "epoch": self.cumulative_epoch_count,
            "state_dict": self.model.state_dict(),
            "compression_state": self.compression_controller.get_compression_state(),
        }
        torch.save(contents, path)
        return path

    def restore_model(self, checkpoint: Checkpoint) -> None:
        """Restores model and controller from `checkpoint`."""
        if self.callables.load_checkpoint is not None:
            assert checkpoint.folder is not None
            self.callables.load_checkpoint(self.model, str(checkpoint.folder / checkpoint.value("dumped")))
        else:
            self.model.load_state_dict(checkpoint.model)
        load_state = getattr(self.compression_controller, "load_state", None)
        if load_state is not None:
            load_state(checkpoint.training["controller"])

    def restore_optimizers(self, checkpoint: Checkpoint) -> None:
        """Configures new optimizers and learning-rate schedulers, and restores their state from `checkpoint`."""
        self.reset_training()
        for optimizer, saved in zip(listed(self.optimizer), checkpoint.training["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(listed(self.lr_scheduler), checkpoint.training["lr_schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        if self.callables.state is not None:
            self.callables.state.load_state_dict(checkpoint.training["callables"])
        self.lr_scale = checkpoint.value("lr_scale")
        self.training_epoch_count = checkpoint.value("training_epoch_count")

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continues exactly where `checkpoint` was written, including the random generators."""
        if checkpoint.value("is_searching") and not self.is_searching:
            self.compression_controller.disable_scheduler()
            self.is_searching = True
        self.restore_optimizers(checkpoint)
        self.restore_model(checkpoint)
        self.cumulative_epoch_count = checkpoint.value("cumulative_epoch_count")
        self.best_val_metric_value = checkpoint.value("best_val_metric_value")
        set_rng_state(checkpoint.training["rng"])

    def _is_better(self, metric: float, than: float) -> bool:
        return metric > than if self.higher_is_better else metric < than

    @property
    def achieved_rate(self) -> float:
        """Achieved rate of the model."""
        return rates_of(self.compression_controller).achieved_rate


def listed(one_or_many: Any) -> list[Any]:
    """One, several or None, as a list."""
    if one_or_many is None:
        return []
    return list(one_or_many) if isinstance(one_or_many, list | tuple) else [one_or_many]


def _all_schedulers(scheduler: Any) -> Iterator[Any]:
    """All schedulers, including those inside SequentialLR and ChainedScheduler."""
    for one in listed(scheduler):
        yield one
        yield from _all_schedulers(getattr(one, "_schedulers", None))


def bind_known(function: Callable[..., Any], **extra: Any) -> Callable[..., Any]:
    """`function` with those extra arguments that it has parameters for."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return partial(function, **{key: value for key, value in extra.items() if takes_all or key in parameters})

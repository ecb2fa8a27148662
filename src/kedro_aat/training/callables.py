"""The user's functions, and what a validation function returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from kedro_aat.budget import require_finite
from kedro_aat.errors import ConfigurationError, MetricError
from kedro_aat.messages import doing
from kedro_aat.numerics import exact_float32
from kedro_aat.training.fingerprints.identity import hash_sources
from kedro_aat.training.guards.user_functions import calling

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful


@dataclass(frozen=True)
class Linearization:
    """What the linearization of a metric leaves open.

    Attributes:
        effective_examples: Effective number of examples behind that part of the metric that has the fewest, such as
            those of the rarest class; with few, the metric is far from linear.
        per_squared_error: Change of an example's score with its squared error, if its errors have no limit that the
            metric knows. `score_range` is then that of the scores without this change.
    """

    effective_examples: float
    per_squared_error: float | None = None


@dataclass(frozen=True, init=False)
class Evaluation:
    """What a validation function may return instead of a number.

    Scores may be a tensor on any device, an array or a list. Truth values are scores of 0 and 1. All
    arguments are attributes, too.

    Args:
        metric: Metric over the whole split.
        scores: One score per validation example, in a fixed order, (N,); None if there are none. Their mean is the
            metric.
        resampled: Metric on R resamples of the examples, the same for every model, (R,); or other R values whose
            standard deviation is the metric's standard error, such as those of `resampling.Jackknife`. The source of
            the standard error of a metric without scores.
        score_range: Lowest and highest possible score of an example, infinite if there is no limit; None if unknown.
        is_linearized: Whether the metric is no mean over examples, and the scores are its linearization: the metric
            plus each example's first-order influence on it.
        linearization: What is known of the linearization; None if nothing is, or if there is none.
        groups: Number of the group that each example belongs to, (N,), if examples of one group depend on each other.
        also: Values of the guards (`budget.also`) by name: a number each, or one per class, (C,), which becomes the
            numbers `NAME, class 0` and so on.
    """

    metric: float
    scores: Tensor | None
    resampled: Tensor | None
    score_range: tuple[float, float] | None
    is_linearized: bool
    groups: Tensor | None
    also: Mapping[str, float]
    linearization: Linearization | None

    def __init__(
        self,
        metric: float,
        scores: Tensor | ArrayLike | None = None,
        resampled: Tensor | ArrayLike | None = None,
        score_range: tuple[float, float] | None = None,
        is_linearized: bool = False,
        groups: Tensor | ArrayLike | None = None,
        also: Mapping[str, Any] | None = None,
        linearization: Linearization | None = None,
    ) -> None:
        tensors = {"scores": scores, "resampled": resampled, "groups": groups}
        fields = {name: None if values is None else _as_tensor(name, values) for name, values in tensors.items()}
        if score_range is None and (found := fields["scores"]) is not None and found.dtype is torch.bool:
            score_range = (0.0, 1.0)
        known = {
            "metric": metric,
            "score_range": None if score_range is None else (float(score_range[0]), float(score_range[1])),
            "is_linearized": is_linearized,
            "linearization": linearization,
            "also": dict(_named_numbers(also or {})),
        }
        for name, value in {**known, **fields}.items():
            object.__setattr__(self, name, value)  # as in any frozen dataclass


def _named_numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The values by name, and those of a vector by name and class."""
    for name, value in values.items():
        try:
            numbers = torch.as_tensor(value, dtype=torch.float64).cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise MetricError(f"{name} must be a number, or one per class, but: {error}") from None
        if numbers.dim() > 1:
            raise MetricError(f"{name} must be a number, or one per class, but has the shape {tuple(numbers.shape)}")
        if numbers.dim() == 0:
            yield name, numbers.item()
        else:
            yield from ((f"{name}, class {index}", number.item()) for index, number in enumerate(numbers))


def _as_tensor(name: str, values: Any) -> Tensor:
    """Tensor of a tensor, an array, or a list of numbers or of tensors with one number each."""
    try:
        if isinstance(values, list | tuple):
            values = [value.item() if isinstance(value, Tensor | np.generic) else value for value in values]
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MetricError(f"{name} of an Evaluation must be numbers, one per example, but: {error}") from None


@dataclass(frozen=True)
class Callables:
    """The functions that a user passes to `run`; only the first two are required.

    `halve_batch` lets the functions `in_parts` compute each batch in twice as many parts, and returns False if it
    cannot; it is None if the user has not asked for it.
    `sample_gradients` calls a function after each of some batches, when the model has its gradients. `distill` switches
    distillation on or off. `cost` returns what the last epoch cost, as a share of an epoch of the uncompressed model.
    """

    train_epoch: Callable[..., Any]
    validate: Callable[..., Any]
    configure_optimizers: Callable[[], tuple[Any, Any]] | None = None
    dump_checkpoint: Callable[..., Any] | None = None
    load_checkpoint: Callable[..., Any] | None = None
    early_stopping: Callable[[float], bool] | None = None
    update_learning_rate: Callable[..., Any] | None = None
    adapt: Callable[[nn.Module], object] | None = None
    halve_batch: Callable[[], bool] | None = None
    sample_gradients: Callable[[Callable[[], object]], object] | None = None
    distill: Callable[[bool], object] | None = None
    cost: Callable[[], float] | None = None
    state: Stateful | None = None
    batch_size: int | None = None
    in_parts: Collection[str] = ()

    def __post_init__(self) -> None:
        mistakes = [
            f"{name}_fn: must be callable, but got {function!r}"
            for name, function in vars(self).items()
            if name not in ("state", "batch_size", "in_parts")
            and not (callable(function) or (function is None and name not in ("train_epoch", "validate")))
        ]
        if mistakes:
            raise ConfigurationError("run", mistakes)

    @property
    def fingerprint(self) -> str:
        """Hash of the functions' source."""
        ours = ("state", "batch_size", "halve_batch", "in_parts", "sample_gradients", "distill", "cost")
        return hash_sources(value for name, value in vars(self).items() if name not in ours and value is not None)


def evaluate(
    model: nn.Module,
    validate: Callable[..., Any],
    *,
    epoch: int = 0,
    batch_size: int | None = None,
    subject: str | None = None,
    can_be_halved: bool = False,
) -> Evaluation:
    """Calls a validation function on a model, without gradients, in exact float32.

    Args:
        model: The model, compressed or not, or an exported file that runs as a module.
        validate: Takes the model, and `epoch` if it has such a parameter; returns a number or an `Evaluation`.
        epoch: Number of epochs trained so far.
        batch_size: Examples in a batch, for an error about memory; None if unknown.
        subject: What is validated, for errors; None for the model after `epoch`.
        can_be_halved: Whether an error about memory advises to let the batch be halved.

    Raises:
        MetricError: If the metric is not a number; `DivergedError` if it is NaN or infinite.
        UserFunctionError: If the function fails; `OutOfMemoryError` if there is too little memory.
    """
    subject = subject or f"epoch {epoch}"
    named = calling(validate, "validate", subject, batch_size=batch_size, can_be_halved=can_be_halved)
    with named, torch.no_grad(), exact_float32(), doing(f"validation of {subject}"):
        result = bind_known(validate, epoch=epoch)(model)
    if not isinstance(result, Evaluation):
        result = Evaluation(result)
    return replace(result, metric=require_finite(result.metric, f"the metric of {subject}"))


def bind_known(function: Callable[..., Any], **extra: Any) -> Callable[..., Any]:
    """`function` with those extra arguments that it has parameters for."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return partial(function, **{key: value for key, value in extra.items() if takes_all or key in parameters})


def with_batches(train_epoch: Callable[..., Any], batches: Callable[[int], Any]) -> Callable[..., Any]:
    """A training function of the user's; if it has a parameter `data`, it gets `batches(epoch)`."""

    @wraps(train_epoch)
    def train(controller: Any, model: nn.Module, *, epoch: int, **more: Any) -> Any:
        return bind_known(train_epoch, data=batches(epoch))(controller, model, epoch=epoch, **more)

    return train

"""What the loops do beside the work of a single process if several processes run the script, as with torchrun.

Rank 0 decides, and the others make the same calls of the user's functions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from kedro_aat.budget import FLOAT32_ROUNDING
from kedro_aat.compression.controller import CompressionController, ModelController
from kedro_aat.errors import MetricError
from kedro_aat.ranks import group
from kedro_aat.training.callables import Callables, Evaluation
from kedro_aat.training.guards.user_functions import name_of
from kedro_aat.training.ranks.leading import LeadingRunner
from kedro_aat.training.runner import TrainingRunner


def runner_class() -> type[TrainingRunner]:
    """The class of this process's runner."""
    return LeadingRunner if group.is_distributed() and group.is_main() else TrainingRunner


def begin_alike(model: nn.Module, controller: CompressionController) -> None:
    """Gives the models of all ranks rank 0's parameters and buffers; nothing in a single process.

    Args:
        model: The model, with or without DistributedDataParallel around it.
        controller: Its controller, which gets the state of rank 0's if it is ours.
    """
    if isinstance(controller, ModelController):
        controller.distributed()
    elif group.is_distributed():
        for tensor in (*model.parameters(), *model.buffers()):
            group.copied(tensor.detach())


def agreed(callables: Callables, model: nn.Module) -> Callables:
    """The user's functions, with one result on all ranks; as they are in a single process.

    The loss is the mean of the ranks'. The metric must be the same everywhere. Buffers, such as the statistics of
    BatchNorms, are rank 0's after each of the functions that change them.

    Args:
        callables: The user's functions.
        model: The model, with or without DistributedDataParallel around it.
    """
    if not group.is_distributed():
        return callables
    adapt, sample = callables.adapt, callables.sample_gradients
    return replace(
        callables,
        train_epoch=_with_mean_loss(_with_same_buffers(callables.train_epoch, model)),
        validate=_with_one_metric(callables.validate),
        adapt=None if adapt is None else _with_same_buffers(adapt, model),
        sample_gradients=None if sample is None else _with_same_buffers(sample, model),
    )


def _with_same_buffers(function: Callable[..., Any], model: nn.Module) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        for buffer in model.buffers():
            group.copied(buffer)
        return result

    return call


def _with_mean_loss(train_epoch: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(train_epoch)
    def call(*args: Any, **kwargs: Any) -> Any:
        own = train_epoch(*args, **kwargs)
        gathered = group.gathered(_number(own))
        losses = [loss for loss in gathered if loss is not None]
        return sum(losses) / len(losses) if len(losses) == len(gathered) else own

    return call


def _with_one_metric(validate: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(validate)
    def call(*args: Any, **kwargs: Any) -> Any:
        own = validate(*args, **kwargs)
        metrics = group.gathered(_number(own.metric if isinstance(own, Evaluation) else own))
        if not all(_are_equal(metric, metrics[0]) for metric in metrics):
            values = ", ".join(f"{metric!r}" for metric in metrics)
            raise MetricError(
                f"The {len(metrics)} ranks got different metrics from validate_fn ({name_of(validate)}): {values}. "
                "One decision needs one metric. If each rank validates its part of the data, gather the results: a "
                "torchmetrics metric does so in compute(); else sum up the counts with torch.distributed.all_reduce "
                "before you divide, or let each rank validate all data. The same data must give the same metric."
            )
        return own

    return call


def _number(value: Any) -> float | None:
    """A number in any form; None if it is none, of which others complain."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _are_equal(metric: float | None, other: float | None) -> bool:
    if metric is None or other is None:
        return metric is other
    both_nan = math.isnan(metric) and math.isnan(other)
    return both_nan or metric == other or abs(metric - other) <= FLOAT32_ROUNDING * max(abs(metric), abs(other))

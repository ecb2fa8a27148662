"""Scales the learning rates of optimizers and schedulers of any class, or says why that is impossible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kedro_aat.errors import ConfigurationError
from kedro_aat.imports import Imported

# OneCycleLR and CyclicLR keep their limits in the parameter groups.
_OF_GROUP = ("lr", "initial_lr", "max_lr", "min_lr")
_OF_SCHEDULER = ("base_lrs", "max_lrs", "_last_lr")


def build_scheduler(settings: Imported, optimizer: Any) -> Any:
    """A scheduler, and the schedulers that its arguments name, such as those of SequentialLR.

    Args:
        settings: What is built.
        optimizer: Given to each as `optimizer`, or as the first argument of what has no such parameter.
    """
    if settings.has_parameter("optimizer"):
        return settings.make(optimizer=optimizer)
    return settings.make(optimizer)


def scale_learning_rates(optimizers: Any, schedulers: Any, ratio: float) -> None:
    """Multiplies all learning rates of optimizers, and those that their schedulers start from, by `ratio`.

    Args:
        optimizers: One optimizer, a list, or None.
        schedulers: One learning-rate scheduler, a list, or None.
        ratio: Factor, above 0.

    Raises:
        ConfigurationError: If a parameter group has no learning rate.
    """
    for optimizer in listed(optimizers):
        for group in optimizer.param_groups:
            if group.get("lr") is None:
                name = type(optimizer).__qualname__
                raise ConfigurationError(
                    "training",
                    [
                        f"optimizer: the learning rate has to be multiplied by {ratio:g}, but {name} has none: its "
                        "parameter groups need a number under 'lr'. Give it one, choose another optimizer, or set "
                        "learning_rate_factor of the stage to 1 and a search.kind that keeps the learning rate"
                    ],
                )
            group.update({key: group[key] * ratio for key in _OF_GROUP if group.get(key) is not None})
    for scheduler in _all_schedulers(schedulers):
        for key in _OF_SCHEDULER:
            rates = getattr(scheduler, key, None)
            if isinstance(rates, list | tuple):
                setattr(scheduler, key, type(rates)(rate * ratio for rate in rates))
            elif isinstance(rates, np.ndarray):
                setattr(scheduler, key, rates * ratio)


def learning_rate_of(optimizers: Any) -> float | None:
    """Learning rate of the first parameter group; None without an optimizer, or if it has none."""
    rates = [optimizer.param_groups[0].get("lr") for optimizer in listed(optimizers)[:1]]
    return None if not rates or rates[0] is None else float(rates[0])


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


def step_schedulers(lr_scheduler: Any, metric: float) -> None:
    """Steps learning-rate schedulers after an epoch.

    Args:
        lr_scheduler: One, a list, or None.
        metric: Metric of the epoch.
    """
    from torch.optim.lr_scheduler import ReduceLROnPlateau  # settings, which import this module, do without torch

    for scheduler in listed(lr_scheduler):
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(metric)
        else:
            scheduler.step()

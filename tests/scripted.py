"""A scripted model, whose accuracy is a formula of its rate and the number of trained epochs.

The traces of NNCF 2.19 were recorded with it. Other tests use it to run a search without minutes of training. Its
state is a buffer, so that checkpoints save and restore it like that of any model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ScriptedModel(nn.Module):
    """Model whose `state` holds (rate, epochs at this rate, epochs of these weights), in float64."""

    state: Tensor

    def __init__(self, initial_rate: float) -> None:
        super().__init__()
        self.register_buffer("state", torch.tensor([initial_rate, 0.0, 0.0], dtype=torch.float64))
        self.weight = nn.Parameter(torch.zeros(1))

    def accuracy(self, formula: dict[str, Any]) -> float:
        rate, epochs_at_rate, epochs = self.state.tolist()
        r = max(rate, 0.0)
        value: float = formula["base"] - formula["a"] * r ** formula["k"]
        value += formula["recovery"] * r * (1 - math.exp(-epochs_at_rate / formula["tau"]))
        value += formula["drift"] * epochs
        value += formula["noise"] * math.sin(1000 * rate + 7 * epochs_at_rate + 3 * epochs)
        return min(max(value, 0.0), formula["cap"]) if formula["clip"] else value


class ScriptedScheduler:
    def __init__(self, model: ScriptedModel, increment: float) -> None:
        self.model, self.increment = model, increment

    def step(self, next_step: int | None = None) -> None: ...

    def epoch_step(self, next_epoch: int | None = None) -> None:
        self.model.state[0] += self.increment

    def get_state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


class ScriptedController:
    """The fewest members that a user's own controller must have."""

    name = "scripted"
    loss = None

    def __init__(
        self,
        model: ScriptedModel,
        *,
        maximal_rate: float = 1.0,
        increment: float = 0.0,
        is_partial_until_search: bool = False,
    ) -> None:
        self.model = model
        self.maximal_compression_rate = maximal_rate
        self.scheduler = ScriptedScheduler(model, increment)
        self.is_partial = is_partial_until_search

    @property
    def compression_rate(self) -> float:
        return float(self.model.state[0])

    @compression_rate.setter
    def compression_rate(self, rate: float) -> None:
        self.model.state[0], self.model.state[1] = rate, 0.0

    def compression_stage(self) -> Any:
        from kedro_aat import CompressionStage  # NNCF has its own, where the traces are recorded

        return CompressionStage.PARTIALLY_COMPRESSED if self.is_partial else CompressionStage.FULLY_COMPRESSED

    def disable_scheduler(self) -> None:
        self.scheduler.increment, self.is_partial = 0.0, False

    def statistics(self) -> None: ...

    def get_compression_state(self) -> dict[str, Any]:
        return {}

    def get_state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...

    def strip(self) -> nn.Module:
        return self.model

    def export_model(self, path: Any, *args: Any, **kwargs: Any) -> None: ...


def train_epoch(controller: Any, model: ScriptedModel, **_: Any) -> float:
    model.state[1:] += 1
    return 0.0


def validation_of(formula: dict[str, Any]) -> Callable[..., float]:
    def validate(model: ScriptedModel, epoch: int) -> float:
        return model.accuracy(formula)

    return validate


def sgd_for(model: nn.Module) -> Callable[[], tuple[torch.optim.Optimizer, None]]:
    return lambda: (torch.optim.SGD(model.parameters(), lr=1.0), None)


class NoImprovement:
    """Returns True on the second successive call without a new best metric, and then starts over."""

    def __init__(self) -> None:
        self.best, self.num_bad = -math.inf, 0

    def __call__(self, metric: float) -> bool:
        if metric > self.best:
            self.best, self.num_bad = metric, 0
            return False
        self.num_bad += 1
        if self.num_bad < 2:
            return False
        self.__init__()  # type: ignore[misc]
        return True


def early_stopping(kind: str | None) -> Callable[[float], bool] | None:
    """The early-stopping function with the name that a trace uses; None for none."""
    if kind is None:
        return None
    if kind == "no_improve_2":
        return NoImprovement()
    limit = float(kind.removeprefix("below_"))
    return lambda metric: metric < limit

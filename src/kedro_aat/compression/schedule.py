"""Rate schedules within and across epochs.

A schedule is a pure function of the (fractional) epoch; a scheduler counts epochs and steps, asks the schedule
and sets the rate. Once a search has taken over, `PathScheduler` follows the path that the policy asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kedro_aat.search.policy import Rate
from kedro_aat.validated import Settings

# What `adaptive` adds to the rate every `patience` epochs; NNCF 2.x has no key for it either.
ADAPTIVE_INCREMENT = 0.05


class ScheduleSettings(Settings):
    """A rate over the epochs of training.

    Attributes:
        kind: `constant` keeps `initial_rate`. `polynomial` and `exponential` go from `initial_rate` to
            `target_rate` in `target_epoch` epochs, the latter with a density that falls geometrically.
            `multistep` sets `multistep_rates[i]` from epoch `multistep_epochs[i - 1]` on. `adaptive` adds
            0.05 every `patience` epochs.
        freeze_epoch: From this epoch on the masks no longer follow the weights.
        power: Exponent of `polynomial`, above 0.
        concave: Whether `polynomial` rises fast first (concave) or last (convex).
        update_per_optimizer_step: Whether the rate moves at every `step()` rather than once an epoch.
        steps_per_epoch: Optimizer steps in an epoch; counted in the first epoch if None.
    """

    kind: Literal["constant", "polynomial", "exponential", "multistep", "adaptive"] = "constant"
    initial_rate: Rate = 0.0
    target_rate: Rate = 0.5
    target_epoch: Annotated[int, Field(ge=0)] = 90
    freeze_epoch: Annotated[int, Field(ge=0)] = 100
    power: Annotated[float, Field(gt=0)] = 0.9
    concave: bool = True
    multistep_epochs: tuple[Annotated[int, Field(ge=0)], ...] = (90,)
    multistep_rates: tuple[Rate, ...] = (0.1, 0.5)
    patience: Annotated[int, Field(ge=1)] = 1
    update_per_optimizer_step: bool = False
    steps_per_epoch: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleSettings:
        if self.kind == "multistep" and len(self.multistep_rates) != len(self.multistep_epochs) + 1:
            raise ValueError(
                f"multistep needs one rate more than epochs, but got {len(self.multistep_rates)} rates "
                f"for {len(self.multistep_epochs)} epochs"
            )
        if sorted(set(self.multistep_epochs)) != list(self.multistep_epochs):
            raise ValueError(f"the epochs of multistep must rise, but got {list(self.multistep_epochs)}")
        return self

    def rate(self, epoch: float) -> float:
        """The rate at a (fractional) epoch of at least 0."""
        first, last = self.initial_rate, self.target_rate
        progress = min(1.0, epoch / self.target_epoch) if self.target_epoch else 1.0
        match self.kind:
            case "constant":
                return first
            case "polynomial" if self.concave:
                return first + (last - first) * (1 - math.pow(1 - progress, self.power))
            case "polynomial":
                return first + (last - first) * math.pow(progress, self.power)
            case "exponential":
                return 1 - (1 - first) * math.pow((1 - last) / (1 - first), progress)
            case "multistep":
                return self.multistep_rates[sum(epoch >= start for start in self.multistep_epochs)]
            case "adaptive":
                return min(last, first + ADAPTIVE_INCREMENT * (int(epoch) // self.patience))

    @property
    def final_rate(self) -> float:
        """The rate at which the schedule ends."""
        return {"constant": self.initial_rate, "multistep": self.multistep_rates[-1]}.get(self.kind, self.target_rate)


class EpochScheduler:
    """Counts epochs and steps, and sets the scheduled rate.

    Attributes:
        current_epoch: Number of the epoch under way, -1 before the first.
        current_step: Number of the step under way within it, -1 before the first.
    """

    def __init__(self, settings: ScheduleSettings, set_rate: Callable[[float], None]) -> None:
        self.settings = settings
        self._set_rate = set_rate
        self._steps_per_epoch = settings.steps_per_epoch
        self.current_epoch = -1
        self.current_step = -1

    @property
    def target_level(self) -> float:
        """The rate at which the schedule ends, under NNCF's name for it."""
        return self.settings.final_rate

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begins an epoch: the next, or the one named."""
        if self.current_epoch >= 0 and self.current_step >= 0 and self.settings.steps_per_epoch is None:
            self._steps_per_epoch = self.current_step + 1
        self.current_epoch = self.current_epoch + 1 if next_epoch is None else next_epoch
        self.current_step = -1
        if self.current_epoch < self.settings.freeze_epoch or self.current_epoch == 0:
            self._set_rate(self.settings.rate(self.current_epoch))

    def step(self, next_step: int | None = None) -> None:
        """Begins an optimizer step: the next, or the one named."""
        self.current_step = self.current_step + 1 if next_step is None else next_step
        if self.settings.update_per_optimizer_step and self._steps_per_epoch:
            epoch = max(self.current_epoch, 0) + self.current_step / self._steps_per_epoch
            if epoch < self.settings.freeze_epoch:
                self._set_rate(self.settings.rate(epoch))

    def get_state(self) -> dict[str, Any]:
        """Plain data from which `load_state` goes on."""
        return {
            "current_epoch": self.current_epoch,
            "current_step": self.current_step,
            "steps_per_epoch": self._steps_per_epoch,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `get_state` gave."""
        self.current_epoch = state["current_epoch"]
        self.current_step = state["current_step"]
        self._steps_per_epoch = state.get("steps_per_epoch", self._steps_per_epoch)


class PathScheduler:
    """Follows the path of rates that a policy asked for within one epoch, in equal parts of its steps.

    The last rate is set at once, so that a training function which never calls `step` trains at it; the
    first call of `step` then goes back to the beginning of the path.
    """

    def __init__(self, set_rate: Callable[[float], None], steps_per_epoch: int | None) -> None:
        self._set_rate = set_rate
        self._steps_per_epoch = steps_per_epoch
        self._path: tuple[float, ...] = ()
        self._position = -1
        self.current_step = -1

    def follow(self, path: tuple[float, ...]) -> None:
        """Takes a new path, of at least one rate."""
        self._path, self._position = path, -1
        self._set_rate(path[-1])

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begins an epoch; the length of the one before serves where the number of steps is unknown."""
        if self.current_step >= 0:
            self._steps_per_epoch = self.current_step + 1
        self.current_step = -1

    def step(self, next_step: int | None = None) -> None:
        """Begins an optimizer step: moves on along the path."""
        self.current_step = self.current_step + 1 if next_step is None else next_step
        if len(self._path) < 2 or self._steps_per_epoch is None:
            return
        position = min(self.current_step * len(self._path) // self._steps_per_epoch, len(self._path) - 1)
        if position != self._position:
            self._position = position
            self._set_rate(self._path[position])
        if position == len(self._path) - 1:
            self._path = ()

    def get_state(self) -> dict[str, Any]:
        """Plain data from which `load_state` goes on; a path never outlives its epoch."""
        return {"steps_per_epoch": self._steps_per_epoch if self.current_step < 0 else self.current_step + 1}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `get_state` gave, also where that was another scheduler's."""
        self._steps_per_epoch = state.get("steps_per_epoch", self._steps_per_epoch)

"""Rate schedules across epochs and within one epoch.

A schedule is a pure function of the (fractional) epoch. A scheduler counts epochs and steps, asks the schedule and sets
the rate. Once a search has taken over, `PathScheduler` follows the rate path that the search policy asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import Field, model_validator

from kedro_aat.search.policy import Count, Rate
from kedro_aat.validated import Settings

# Added to the rate by `adaptive` every `patience` epochs; NNCF 2.x uses the same number and has no key for it either.
ADAPTIVE_INCREMENT = 0.05

_RISES = ("polynomial", "exponential", "exponential_with_bias")

# `exponential_with_bias` reaches this share of the target rate after this share of the epochs (He et al. 2018).
_EARLY_RATE = 3 / 4
_EARLY_EPOCHS = 1 / 8


class ScheduleSettings(Settings):
    """The compression rate as a function of the epoch.

    Attributes:
        kind: `constant` keeps `initial_rate`. `polynomial`, `exponential` and `exponential_with_bias` go from
            `initial_rate` to `target_rate` in `target_epoch` epochs: with `exponential` the density (1 - rate) falls
            geometrically, and `exponential_with_bias`, a * exp(-k t) + b, reaches three quarters of `target_rate`
            after an eighth of the epochs (He et al. 2018, arXiv:1808.07471). `multistep` sets `multistep_rates[i]`
            from epoch `multistep_epochs[i - 1]` on. `adaptive` adds 0.05 in every `patience`-th epoch, the first one
            included if `patience` is 1, up to `target_rate`.
        initial_rate: Rate before the first epoch, in [0, 1), and at the beginning of all kinds but `multistep`.
        target_rate: Rate at the end of the schedule, in [0, 1); not used by `constant` and `multistep`.
        target_epoch: Length in epochs of `polynomial`, `exponential` and `exponential_with_bias`.
        start_epoch: Epochs before `polynomial`, `exponential` or `exponential_with_bias` begins; the other kinds
            ignore it.
        start_rate: Rate in these epochs, in [0, 1); `initial_rate` if None.
        freeze_epoch: From this epoch on, the masks are recomputed only if the rate changes.
        power: Exponent of `polynomial`, above 0.
        concave: Whether `polynomial` rises fast at first (concave) or at the end (convex).
        multistep_epochs: Epochs at which `multistep` changes the rate, in rising order.
        multistep_rates: Rates of `multistep`, in [0, 1); one more than `multistep_epochs`.
        patience: Epochs between two increments of `adaptive`.
        update_per_optimizer_step: Whether the rate changes at every `step()` instead of once per epoch.
        steps_per_epoch: Optimizer steps per epoch; counted in the first epoch if None.
        begins_after_counting: Whether the epoch in which the steps are counted comes before epoch 0 of a schedule that
            changes the rate at every step, as in NNCF 2.x, whatever number of steps is known from elsewhere.
    """

    kind: Literal["constant", "polynomial", "exponential", "exponential_with_bias", "multistep", "adaptive"] = (
        "constant"
    )
    initial_rate: Rate = 0.0
    target_rate: Rate = 0.5
    target_epoch: Count = 90
    start_epoch: Count = 0
    start_rate: Rate | None = None
    freeze_epoch: Count = 100
    power: Annotated[float, Field(gt=0, le=100)] = 0.9
    concave: bool = True
    multistep_epochs: tuple[Count, ...] = (90,)
    multistep_rates: tuple[Rate, ...] = (0.1, 0.5)
    patience: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    update_per_optimizer_step: bool = False
    steps_per_epoch: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    begins_after_counting: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleSettings:
        if self.kind == "multistep":
            require_steps(self.multistep_epochs, self.multistep_rates)
        if self.kind == "exponential_with_bias" and self.initial_rate >= _EARLY_RATE * self.target_rate:
            raise ValueError(
                "the schedule exponential_with_bias must begin below three quarters of its target rate "
                f"({self.target_rate}), but begins at {self.initial_rate}"
            )
        return self

    def rate(self, epoch: float) -> float:
        """Returns the rate at a (fractional) epoch of at least 0."""
        first, last = self.initial_rate, self.target_rate
        if self.kind in _RISES:
            if epoch < self.start_epoch:
                return first if self.start_rate is None else self.start_rate
            epoch -= self.start_epoch
        progress = epoch / self.target_epoch if self.target_epoch else 1.0
        if progress >= 1 and self.kind in _RISES:
            return last  # without the rounding errors of the formulas
        match self.kind:
            case "constant":
                return first
            case "polynomial" if self.concave:
                return first + (last - first) * (1 - math.pow(1 - progress, self.power))
            case "polynomial":
                return first + (last - first) * math.pow(progress, self.power)
            case "exponential":
                return 1 - (1 - first) * math.pow((1 - last) / (1 - first), progress)
            case "exponential_with_bias":
                k = _steepness((_EARLY_RATE * last - first) / (last - first))
                return first + (last - first) * math.expm1(-k * progress) / math.expm1(-k)
            case "multistep":
                return self.multistep_rates[sum(epoch >= start for start in self.multistep_epochs)]
            case "adaptive":
                return min(last, first + ADAPTIVE_INCREMENT * ((int(epoch) + 1) // self.patience))

    @property
    def final_rate(self) -> float:
        """The rate at the end of the schedule."""
        match self.kind:
            case "constant":
                return self.initial_rate
            case "multistep":
                return self.multistep_rates[-1]
            case _:
                return self.target_rate


@functools.cache
def _steepness(share: float) -> float:
    """Returns the k for which (1 - exp(-k t)) / (1 - exp(-k)) is `share` at t = 1/8; negative if `share` < 1/8."""
    low, high = -100.0, 100.0  # for shares from 1e-38 to 0.999996
    for _ in range(60):
        k = (low + high) / 2 or 1e-9  # k = 0 would be a straight line, for which the formula is 0 / 0
        low, high = (k, high) if math.expm1(-k * _EARLY_EPOCHS) / math.expm1(-k) < share else (low, k)
    return k


def require_steps(epochs: Sequence[int], rates: Sequence[float]) -> None:
    """Checks the epochs and rates of a `multistep` schedule.

    Raises:
        ValueError: If there is not one rate more than epochs, or the epochs do not rise.
    """
    if len(rates) != len(epochs) + 1:
        raise ValueError(
            f"a multistep schedule needs one rate more than epochs, but got {len(rates)} rates for {len(epochs)} epochs"
        )
    if sorted(set(epochs)) != list(epochs):
        raise ValueError(f"the epochs of a multistep schedule must rise, but got {list(epochs)}")


class EpochScheduler:
    """Counts epochs and steps, and sets the scheduled rate.

    Args:
        settings: The schedule.
        set_rate: Called with each new rate.
        before_step: Called at the beginning of every `step`.

    Attributes:
        current_epoch: Number of the current epoch, -1 before the first.
        current_step: Number of the current step within the epoch, -1 before the first.
        steps_per_epoch: Optimizer steps per epoch; None until it is set or counted.
        changes_rate: Whether the rate may change within an epoch; it may at each call.
    """

    changes_rate = True

    def __init__(
        self,
        settings: ScheduleSettings,
        set_rate: Callable[[float], None],
        before_step: Callable[[], None] | None = None,
    ) -> None:
        self.settings = settings
        self._set_rate = set_rate
        self._before_step = before_step
        self.steps_per_epoch = settings.steps_per_epoch
        self._rate: float | None = None
        self.current_epoch = -1
        self.current_step = -1
        self._is_counting = (
            settings.begins_after_counting and settings.update_per_optimizer_step and settings.steps_per_epoch is None
        )

    @property
    def target_level(self) -> float:
        """The rate at the end of the schedule, under NNCF's name for it."""
        return self.settings.final_rate

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begins an epoch: the next one, or the given one."""
        has_stepped = self.current_step >= 0 and (self.current_epoch >= 0 or self._is_counting)
        if has_stepped and self.settings.steps_per_epoch is None:
            self.steps_per_epoch = self.current_step + 1
        if self._is_counting:
            self._is_counting = not has_stepped
            if self._is_counting:
                return
        self.current_epoch = self.current_epoch + 1 if next_epoch is None else next_epoch
        self.current_step = -1
        self._set_rate_of(self.current_epoch)

    def step(self, next_step: int | None = None) -> None:
        """Begins an optimizer step: the next one, or the given one."""
        if self._before_step is not None:
            self._before_step()
        self.current_step = self.current_step + 1 if next_step is None else next_step
        if self.settings.update_per_optimizer_step and self.steps_per_epoch and not self._is_counting:
            self._set_rate_of(max(self.current_epoch, 0) + self.current_step / self.steps_per_epoch)

    def _set_rate_of(self, epoch: float) -> None:
        """Sets the rate of `epoch`; from `freeze_epoch` on, only if it changes, so that the masks stay the same."""
        rate = self.settings.rate(epoch)
        if epoch < self.settings.freeze_epoch or rate != self._rate:
            self._rate = rate
            self._set_rate(rate)

    def get_state(self) -> dict[str, Any]:
        """Returns plain data for `load_state`."""
        return {
            "rate": self._rate,
            "current_epoch": self.current_epoch,
            "current_step": self.current_step,
            "steps_per_epoch": self.steps_per_epoch,
            "is_counting": self._is_counting,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from what `get_state` returned."""
        self._rate = state.get("rate")
        self._is_counting = state.get("is_counting", False)
        self.current_epoch = state["current_epoch"]
        self.current_step = state["current_step"]
        self.steps_per_epoch = state.get("steps_per_epoch", self.steps_per_epoch)


@runtime_checkable
class FollowsRatePath(Protocol):
    """A scheduler that can change the rate along a path within an epoch."""

    def follow_rate_path(self, path: tuple[float, ...]) -> None:
        """Sets the path of the next epoch, at least one rate."""
        ...


@runtime_checkable
class TellsProgress(Protocol):
    """A scheduler that tells how far an epoch is.

    Attributes:
        on_step: Called in every `step` with the share of the epoch that is over at the middle of that step.
    """

    on_step: Callable[[float], None] | None


class PathScheduler:
    """Follows the rate path that a search policy asked for within one epoch; each rate has equally many steps.

    The last rate is set at once, so that a training function that never calls `step` trains at this rate. The first
    call of `step` then goes back to the beginning of the path.

    Args:
        set_rate: Called with each new rate.
        steps_per_epoch: Optimizer steps per epoch; None if unknown.
        before_step: Called at the beginning of every `step`.

    Attributes:
        on_step: Called in every `step` with the share of the epoch that is over at the middle of that step.
    """

    def __init__(
        self,
        set_rate: Callable[[float], None],
        steps_per_epoch: int | None,
        before_step: Callable[[], None] | None = None,
    ) -> None:
        self._set_rate = set_rate
        self._before_step = before_step
        self.steps_per_epoch = steps_per_epoch
        self._path: tuple[float, ...] = ()
        self._position = -1
        self._rate_of_path: float | None = None
        self._is_path_new = False
        self._has_begun = False  # steps before the first epoch do not count
        self.current_step = -1
        self.on_step: Callable[[float], None] | None = None

    @property
    def changes_rate(self) -> bool:
        """Whether the rate may change before the end of the epoch."""
        return len(self._path) > 1

    def follow_rate_path(self, path: tuple[float, ...]) -> None:
        """Sets the path of the next epoch, at least one rate, and the path's last rate."""
        self._path, self._position, self._is_path_new = path, -1, True
        self._rate_of_path = None
        self._set_rate_of_path(path[-1])

    def _set_rate_of_path(self, rate: float) -> None:
        """Sets a rate of the path, unless it is the one before: ranking all weights again takes long."""
        if rate != self._rate_of_path:
            self._rate_of_path = rate
            self._set_rate(rate)

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begins an epoch, with as many steps as were counted in the previous one."""
        if self._has_begun and self.current_step >= 0:
            self.steps_per_epoch = self.current_step + 1
        self._has_begun, self.current_step = True, -1
        if not self._is_path_new:
            self._path = ()  # a path lasts one epoch
        self._is_path_new = False

    def step(self, next_step: int | None = None) -> None:
        """Begins an optimizer step, and sets the path's rate at this step."""
        if self._before_step is not None:
            self._before_step()
        self.current_step = self.current_step + 1 if next_step is None else next_step
        if self.on_step is not None and self.steps_per_epoch is not None:
            self.on_step(min((self.current_step + 0.5) / self.steps_per_epoch, 1.0))
        if len(self._path) < 2 or self.steps_per_epoch is None:
            return
        last = len(self._path) - 1
        # The last step trains at the last rate, even if the epoch has fewer steps than the path.
        is_last = self.current_step >= self.steps_per_epoch - 1
        position = last if is_last else min(self.current_step * len(self._path) // self.steps_per_epoch, last)
        if position != self._position:
            self._position = position
            self._set_rate_of_path(self._path[position])
        if position == len(self._path) - 1:
            self._path = ()

    def get_state(self) -> dict[str, Any]:
        """Returns plain data for `load_state`; a path is not part of it, since it lasts one epoch."""
        return {"steps_per_epoch": self.steps_per_epoch if self.current_step < 0 else self.current_step + 1}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from what `get_state` returned, also if that was an `EpochScheduler`'s state."""
        counted = state.get("current_step", -1) + 1
        self.steps_per_epoch = state.get("steps_per_epoch") or counted or self.steps_per_epoch

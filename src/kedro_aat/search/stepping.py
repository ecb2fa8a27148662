"""The strategies of NNCF 2.x, step for step: `early_exit`, `uniform_decrease` and `interpolate`.

The rate starts where the controller's own schedule leaves it after an initial phase. From then on each rate
gets up to `patience_epochs`, less if it comes within budget; then the next rate is chosen, and training
goes on from the best checkpoint within budget.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Field

from kedro_aat.search.policy import (
    Epoch,
    EpochResult,
    Problem,
    SearchState,
    Stop,
    Trial,
    with_trial,
    worth_returning,
)
from kedro_aat.validated import Settings

# The original's default limit on all epochs, which stands for none.
UNLIMITED_EPOCHS = 10000
# Rates at which the interpolated margin is read off, and how far below zero it is pinned at rate 1,
# in tolerated drops: both are the original's.
NUM_INTERPOLATION_POINTS = 1000
DROPS_BELOW_AT_RATE_ONE = 20


class EarlyExitState(SearchState):
    """Epochs trained so far, and the last result."""

    num_epochs: int = 0
    last: EpochResult | None = None

    @property
    def is_over(self) -> bool:
        """Whether the last epoch came within budget fully compressed, or the user's function said stop."""
        return self.last is not None and (
            self.last.early_stop or (self.last.fully_compressed and self.last.margin >= 0)
        )


class EarlyExit(Settings):
    """Trains under the controller's own schedule until the metric is within budget.

    Attributes:
        maximal_total_epochs: Limit on the epochs trained.
    """

    kind: Literal["early_exit"] = "early_exit"
    maximal_total_epochs: Annotated[int, Field(ge=0)] = UNLIMITED_EPOCHS

    def initial(self, problem: Problem) -> EarlyExitState:
        """No epoch yet; the rate limits play no part in this strategy."""
        return EarlyExitState()

    def ask(self, state: EarlyExitState) -> Epoch | Stop:
        """A validation of the model as given, then one epoch after another."""
        if state.last is None:
            return Epoch(train=False, new_optimizer=True)
        if state.is_over or state.num_epochs >= self.maximal_total_epochs:
            return state.stop(self._reason(state.last, state))
        return Epoch()

    def tell(self, state: EarlyExitState, seen: EpochResult) -> EarlyExitState:
        """Counts the epoch and keeps it if it is the best of its rate."""
        return EarlyExitState(
            num_epochs=state.num_epochs + seen.trained,
            last=seen,
            candidates=with_trial(state.candidates, seen),
        )

    def load(self, state: str) -> EarlyExitState:
        """The state from its JSON."""
        return EarlyExitState.model_validate_json(state)

    def _reason(self, last: EpochResult, state: EarlyExitState) -> str:
        if last.fully_compressed and last.margin >= 0:
            return "The metric came within budget."
        if last.early_stop:
            return "The early-stopping function ended the training."
        if not state.candidates:
            return (
                f"The model never became fully compressed in {state.num_epochs} epochs: let the controller's "
                "schedule end sooner, or raise maximal_total_epochs."
            )
        return f"All {state.num_epochs} epochs were used."


class SteppingState(SearchState):
    """State of both stepping strategies.

    Attributes:
        phase: `initial` until the controller's schedule had its epochs, `restart` while the best of them
            is validated anew, then `search`.
        early_exit: The initial phase, which is an early-exit training of its own.
        target_rate: The rate that is being trained; None while the controller's schedule decides.
        step: Size of the last change of rate; halves (say) whenever the direction turns.
        lr_scale: Factor on the learning rates; falls whenever the direction turns.
        direction: Of the last change, 1 up or -1 down; None before the first.
        epochs_at_rate: Trained at `target_rate` since it was set.
        best_margin: Largest at this rate since it was set; None before any.
        must_change: Whether the rate changes before the next epoch whatever was reached.
        margins: Of each rate the margin of its latest epoch, in the order in which rates came.
    """

    problem: Problem
    phase: Literal["initial", "restart", "search"] = "initial"
    early_exit: EarlyExitState = EarlyExitState()
    num_epochs: int = 0
    target_rate: float | None = None
    step: float
    lr_scale: float = 1.0
    direction: Literal[-1, 1] | None = None
    epochs_at_rate: int = 0
    best_margin: float | None = None
    must_change: bool = False
    current_rate: float
    margins: tuple[tuple[float, float], ...] = ()

    @property
    def returned(self) -> Trial | None:
        """The best, if it is worth it."""
        return worth_returning(self.best, self.problem)


class SteppingSettings(Settings):
    """Settings of both stepping strategies, under NNCF's names and with its defaults.

    Attributes:
        initial_training_phase_epochs: Epochs under the controller's own schedule before the search.
        patience_epochs: Epochs given to one rate.
        initial_compression_rate_step: First change of rate, in (0, 1).
        compression_rate_step_reduction_factor: The step is multiplied by this when the direction turns.
        minimal_compression_rate_step: The search ends when the step has fallen below this.
        lr_reduction_factor: The learning rate is multiplied by this when the direction turns.
        maximal_total_epochs: Limit on all epochs, the initial phase included.
    """

    initial_training_phase_epochs: Annotated[int, Field(ge=0)] = 5
    patience_epochs: Annotated[int, Field(ge=0)] = 3
    initial_compression_rate_step: Annotated[float, Field(gt=0, lt=1)] = 0.1
    compression_rate_step_reduction_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    minimal_compression_rate_step: Annotated[float, Field(gt=0, lt=1)] = 0.025
    lr_reduction_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    maximal_total_epochs: Annotated[int, Field(ge=0)] = UNLIMITED_EPOCHS


class _Stepping(SteppingSettings):
    """What `uniform_decrease` and `interpolate` share: all but the choice of the next rate."""

    def initial(self, problem: Problem) -> SteppingState:
        """Before the first validation of the model as given."""
        return SteppingState(
            problem=problem, step=self.initial_compression_rate_step, current_rate=problem.initial_rate
        )

    def ask(self, state: SteppingState) -> Epoch | Stop:
        """The next epoch, or the end."""
        return self._decide(state)[1]

    def tell(self, state: SteppingState, seen: EpochResult) -> SteppingState:
        """Folds a result into the state in which its epoch left the search."""
        decided, _ = self._decide(state)
        changes: dict[str, Any] = {
            "num_epochs": decided.num_epochs + seen.trained,
            "current_rate": seen.requested_rate,
            "best_margin": seen.margin if decided.best_margin is None else max(decided.best_margin, seen.margin),
        }
        if decided.phase == "initial":
            changes["early_exit"] = EarlyExit().tell(decided.early_exit, seen)
        if decided.phase == "search":
            changes["epochs_at_rate"] = decided.epochs_at_rate + 1
            changes["must_change"] = seen.early_stop
        changes["candidates"] = with_trial(decided.candidates, seen)
        latest = dict(decided.margins) | {seen.requested_rate: seen.margin}
        changes["margins"] = tuple(latest.items())
        return _updated(decided, **changes)

    def load(self, state: str) -> SteppingState:
        """The state from its JSON."""
        return SteppingState.model_validate_json(state)

    def _decide(self, state: SteppingState) -> tuple[SteppingState, Epoch | Stop]:
        """What comes next, and the state as it is while that is under way."""
        if state.phase == "initial":
            limit = min(self.initial_training_phase_epochs, self.maximal_total_epochs)
            move = EarlyExit(maximal_total_epochs=limit).ask(state.early_exit)
            if isinstance(move, Epoch):
                return state, move
            start_from = state.best.checkpoint if state.best else None
            restart = Epoch(train=False, start_from=start_from, new_optimizer=True)
            return _updated(state, phase="restart", best_margin=None), restart
        if state.num_epochs >= self.maximal_total_epochs:
            return state, state.stop(f"All {state.num_epochs} epochs were used.")
        if not self._is_change_due(state):
            return state, Epoch(lr_scale=state.lr_scale)
        # The step is tested here, when a change is due, and not before every epoch: the original gave
        # its last rate a single epoch in place of its patience.
        if state.step < self.minimal_compression_rate_step:
            return state, state.stop(f"The change of rate fell below {self.minimal_compression_rate_step:g}.")
        return self._change_rate(state)

    def _is_change_due(self, state: SteppingState) -> bool:
        return (
            state.phase == "restart"  # the first change is forced
            or state.must_change
            or state.epochs_at_rate >= self.patience_epochs
            or (state.best_margin is not None and state.best_margin >= 0)
        )

    def _change_rate(self, state: SteppingState) -> tuple[SteppingState, Epoch | Stop]:
        problem = state.problem
        rate, step = self._next_rate(state)
        direction: Literal[-1, 1] = 1 if rate >= state.current_rate else -1
        turned = state.direction is not None and direction != state.direction
        lr_scale = state.lr_scale * (self.lr_reduction_factor if turned else 1.0)
        if rate < problem.minimal_rate and direction == 1:
            rate = problem.minimal_rate  # a model given below it is on its way up
        if rate < problem.minimal_rate:
            return state, state.stop(f"The next rate would be below the minimal {problem.minimal_rate:g}.")
        if rate > problem.maximal_rate:
            # The original stopped here, and so never trained at the maximal rate.
            if direction == 1 and state.current_rate >= problem.maximal_rate:
                return state, state.stop(f"The maximal rate {problem.maximal_rate:g} was reached.")
            rate = problem.maximal_rate
        if rate == state.target_rate:
            return state, state.stop("The search settled on a rate.")
        decided = _updated(
            state,
            phase="search",
            target_rate=rate,
            step=step,
            lr_scale=lr_scale,
            direction=direction,
            epochs_at_rate=0,
            best_margin=None,
            must_change=False,
        )
        epoch = Epoch(
            rate_path=(rate,),
            lr_scale=lr_scale,
            start_from=state.best.checkpoint if state.best else None,
            new_optimizer=True,
        )
        return decided, epoch

    @abstractmethod
    def _next_rate(self, state: SteppingState) -> tuple[float, float]:
        """The next rate, perhaps outside the limits, and the size of the step that led to it."""


class UniformDecrease(_Stepping):
    """Steps up after a rate within budget and down after one that is not; halves the step at each turn."""

    kind: Literal["uniform_decrease"] = "uniform_decrease"

    def _next_rate(self, state: SteppingState) -> tuple[float, float]:
        assert state.best_margin is not None  # every phase begins with a validation
        direction = 1 if state.best_margin >= 0 else -1
        turned = state.direction is not None and direction != state.direction
        step = state.step * (self.compression_rate_step_reduction_factor if turned else 1.0)
        return state.current_rate + direction * step, step


class Interpolate(_Stepping):
    """Steps to where a curve through the margins seen so far crosses zero.

    The curve is pinned to the full tolerated drop at rate 0 and to minus 20 of it at rate 1, passes exactly
    through all points, and is linear below four of them and a cubic spline from four on.
    """

    kind: Literal["interpolate"] = "interpolate"

    def _next_rate(self, state: SteppingState) -> tuple[float, float]:
        import numpy as np
        from scipy.interpolate import CubicSpline

        drop = state.problem.tolerated_drop
        ends = {0.0: drop, 1.0: -DROPS_BELOW_AT_RATE_ONE * drop}
        points = sorted((ends | dict(state.margins)).items())
        rates, margins = np.array(points).T
        grid = np.linspace(0.0, 1.0, NUM_INTERPOLATION_POINTS)
        predicted = np.interp(grid, rates, margins) if len(points) < 4 else CubicSpline(rates, margins)(grid)
        rate = float(grid[np.abs(predicted).argmin()])
        rate = min(max(rate, state.problem.minimal_rate), state.problem.maximal_rate)
        return rate, abs(rate - state.current_rate)


def _updated(state: SteppingState, **changes: Any) -> SteppingState:
    # Built anew, since `model_copy` skips validation.
    return SteppingState(**{**dict(state), **changes})

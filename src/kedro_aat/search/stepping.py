"""The strategies of NNCF 2.x, with the same decisions: `early_exit`, `uniform_decrease` and `interpolate`.

The rate starts where the controller's own schedule leaves it after an initial phase. From then on each rate gets up to
`patience_epochs`, or fewer if it comes within budget; then the next rate is chosen, and training continues from the
best checkpoint within budget. An epoch that fails (NaN or infinite) ends its rate.

Settings and fields of states keep NNCF's word `step` for an increment of the rate.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Field

from kedro_aat.search.policy import (
    DROPS_BELOW_IF_FAILED,
    LR_FACTOR_IF_FAILED,
    Count,
    Epoch,
    EpochResult,
    Problem,
    SearchState,
    Stop,
    Trial,
    updated,
    with_trial,
    worth_returning,
)
from kedro_aat.validated import Settings

# NNCF's default limit on all epochs, which means no limit.
UNLIMITED_EPOCHS = 10000
# Number of rates between 0 and 1 at which the interpolated margin is computed; NNCF's.
NUM_INTERPOLATION_POINTS = 1000
# The margin at rate 1 is assumed to be this many tolerated drops below zero; NNCF's.
DROPS_BELOW_AT_RATE_ONE = DROPS_BELOW_IF_FAILED
# Failed epochs in a row after which `early_exit` ends.
MAXIMAL_FAILURES = 3


class EarlyExitState(SearchState):
    """State of `early_exit`.

    Attributes:
        num_epochs: Number of epochs trained so far.
        last: The last result; None before the first.
        lr_scale: Factor on the learning rates; falls with each epoch that fails.
        num_failed: Number of failed epochs since the last one that did not fail.
    """

    num_epochs: int = 0
    last: EpochResult | None = None
    lr_scale: float = 1.0
    num_failed: int = 0

    @property
    def needed_optimizers(self) -> frozenset[int]:
        """None: training goes on from the latest checkpoint."""
        return frozenset()

    @property
    def is_over(self) -> bool:
        """Whether the last epoch was fully compressed and within budget, or no further epoch would help."""
        return self.last is not None and (
            self.last.early_stop
            or (self.last.fully_compressed and self.last.margin >= 0)
            or self.num_failed >= MAXIMAL_FAILURES
        )


class EarlyExit(Settings):
    """Trains under the controller's own schedule until the metric is within budget.

    Attributes:
        maximal_total_epochs: Limit on the number of epochs trained.
    """

    kind: Literal["early_exit"] = "early_exit"
    maximal_total_epochs: Count = UNLIMITED_EPOCHS

    def initial(self, problem: Problem) -> EarlyExitState:
        """Returns the state before the first epoch; this strategy ignores the limits on rates."""
        return EarlyExitState()

    def ask(self, state: EarlyExitState) -> Epoch | Stop:
        """Asks for a validation of the model, then for one epoch after another."""
        if state.last is None:
            return Epoch(train=False, new_optimizer=True)
        if state.is_over or state.num_epochs >= self.maximal_total_epochs:
            return state.stop(self._reason(state.last, state))
        return Epoch(lr_scale=state.lr_scale)

    def tell(self, state: EarlyExitState, result: EpochResult) -> EarlyExitState:
        """Counts the epoch and keeps it if it is the best of its rate."""
        return EarlyExitState(
            num_epochs=state.num_epochs + result.trained,
            last=result,
            lr_scale=state.lr_scale * (LR_FACTOR_IF_FAILED if result.failed else 1.0),
            num_failed=state.num_failed + 1 if result.failed else 0,
            candidates=with_trial(state.candidates, result),
        )

    def load(self, state: str) -> EarlyExitState:
        """Reads a state from its JSON."""
        return EarlyExitState.model_validate_json(state)

    def _reason(self, last: EpochResult, state: EarlyExitState) -> str:
        if last.fully_compressed and last.margin >= 0:
            return "The metric came within budget."
        if last.early_stop:
            return "The early-stopping function ended the training."
        if state.num_failed >= MAXIMAL_FAILURES:
            return f"The loss or the metric of {state.num_failed} epochs in a row was NaN or infinite."
        if not state.candidates:
            return (
                f"The model never became fully compressed in {state.num_epochs} epochs: let the controller's "
                "schedule end sooner, or raise maximal_total_epochs."
            )
        return f"All {state.num_epochs} epochs were used."


class SteppingState(SearchState):
    """State of both stepping strategies.

    Attributes:
        problem: The problem to solve.
        phase: `initial` until the controller's schedule has had its epochs, `restart` while the best of them is
            validated again, then `search`.
        early_exit: State of the initial phase, which is an early-exit training of its own.
        num_epochs: Number of epochs trained so far.
        target_rate: The rate that is being trained; None while the controller's schedule decides.
        step: Size of the last increment, at least 0; by default it halves whenever the direction turns.
        lr_scale: Factor on the learning rates; falls whenever the direction turns.
        direction: Direction of the last increment, 1 up or -1 down; None before the first.
        epochs_at_rate: Number of epochs trained at `target_rate` since it was set.
        best_margin: Largest margin at this rate since it was set; None before its first epoch.
        must_change: Whether the rate must change before the next epoch, whatever was reached.
        current_rate: Requested rate of the latest epoch.
        margins: Each rate and the margin of its latest epoch, in the order in which the rates were first requested.
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
    def needed_optimizers(self) -> frozenset[int]:
        """None: each rate begins with a new optimizer."""
        return frozenset()

    @property
    def returned(self) -> Trial | None:
        """The best, if it is worth returning."""
        return worth_returning(self.best, self.problem)


class SteppingSettings(Settings):
    """Settings of both stepping strategies, under NNCF's names and with its defaults.

    Attributes:
        initial_training_phase_epochs: Epochs under the controller's own schedule before the search.
        patience_epochs: Maximal number of epochs at one rate.
        initial_compression_rate_step: First increment, in (0, 1).
        compression_rate_step_reduction_factor: Factor on the increment when the direction turns, in (0, 1].
        minimal_compression_rate_step: The search ends when the increment has fallen below this, in (0, 1).
        lr_reduction_factor: Factor on the learning rate when the direction turns, in (0, 1].
        maximal_total_epochs: Limit on all epochs, including those of the initial phase.
    """

    initial_training_phase_epochs: Count = 5
    patience_epochs: Count = 3
    initial_compression_rate_step: Annotated[float, Field(gt=0, lt=1)] = 0.1
    compression_rate_step_reduction_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    minimal_compression_rate_step: Annotated[float, Field(gt=0, lt=1)] = 0.025
    lr_reduction_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    maximal_total_epochs: Count = UNLIMITED_EPOCHS


class _Stepping(SteppingSettings):
    """Everything that `uniform_decrease` and `interpolate` share, except the choice of the next rate."""

    def initial(self, problem: Problem) -> SteppingState:
        """Returns the state before the first validation of the model."""
        return SteppingState(
            problem=problem, step=self.initial_compression_rate_step, current_rate=problem.initial_rate
        )

    def ask(self, state: SteppingState) -> Epoch | Stop:
        """Returns the next epoch, or ends the search."""
        return self._decide(state)[1]

    def tell(self, state: SteppingState, result: EpochResult) -> SteppingState:
        """Adds a result to the state in which the search was while its epoch ran."""
        decided, _ = self._decide(state)
        best_margin = result.margin if decided.best_margin is None else max(decided.best_margin, result.margin)
        margins = dict(decided.margins)
        if not (result.failed and result.requested_rate in margins):  # a measured margin says more
            margins[result.requested_rate] = result.margin
        changes: dict[str, Any] = {
            "num_epochs": decided.num_epochs + result.trained,
            "current_rate": result.requested_rate,
            "best_margin": best_margin,
            "candidates": with_trial(decided.candidates, result),
            "margins": tuple(margins.items()),
        }
        if decided.phase == "initial":
            changes["early_exit"] = EarlyExit().tell(decided.early_exit, result)
        if decided.phase == "search":
            changes["epochs_at_rate"] = decided.epochs_at_rate + 1
            changes["must_change"] = result.early_stop or result.failed
        return updated(decided, **changes)

    def load(self, state: str) -> SteppingState:
        """Reads a state from its JSON."""
        return SteppingState.model_validate_json(state)

    def _decide(self, state: SteppingState) -> tuple[SteppingState, Epoch | Stop]:
        """Returns the next epoch or the end, and the state of the search while it is in progress."""
        if state.phase == "initial":
            limit = min(self.initial_training_phase_epochs, self.maximal_total_epochs)
            decision = EarlyExit(maximal_total_epochs=limit).ask(state.early_exit)
            if isinstance(decision, Epoch):
                return state, decision
            start_from = state.best.checkpoint if state.best else None
            restart = Epoch(train=False, start_from=start_from, new_optimizer=True)
            return updated(state, phase="restart", best_margin=None), restart
        if state.num_epochs >= self.maximal_total_epochs:
            return state, state.stop(f"All {state.num_epochs} epochs were used.")
        if not self._is_change_due(state):
            return state, Epoch(lr_scale=state.lr_scale)
        # The increment is tested here, when a change is due, and not before every epoch: NNCF gives its last rate a
        # single epoch instead of its patience.
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
            rate = problem.minimal_rate  # a model that begins below it is on its way up
        if rate < problem.minimal_rate:
            return state, state.stop(f"The next rate would be below the minimal {problem.minimal_rate:g}.")
        if rate > problem.maximal_rate:
            # NNCF stops here, and so never trains at the maximal rate.
            if direction == 1 and state.current_rate >= problem.maximal_rate:
                return state, state.stop(f"The maximal rate {problem.maximal_rate:g} was reached.")
            rate = problem.maximal_rate
        if rate == state.target_rate:
            return state, state.stop("The search settled on a rate.")
        decided = updated(
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
        """Returns the next rate, perhaps outside the limits, and the size of the increment that leads to it."""


class UniformDecrease(_Stepping):
    """Raises a rate that is within budget and lowers one that is not; halves the increment at each turn."""

    kind: Literal["uniform_decrease"] = "uniform_decrease"

    def _next_rate(self, state: SteppingState) -> tuple[float, float]:
        assert state.best_margin is not None  # since every phase begins with a validation
        direction = 1 if state.best_margin >= 0 else -1
        turned = state.direction is not None and direction != state.direction
        step = state.step * (self.compression_rate_step_reduction_factor if turned else 1.0)
        return state.current_rate + direction * step, step


class Interpolate(_Stepping):
    """Goes to the rate at which a curve through the margins so far crosses zero.

    The curve passes through the tolerated drop at rate 0, through minus 20 tolerated drops at rate 1, and through all
    measured points. It is linear below four points, both ends included, and a cubic spline from four on.
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

"""The default strategy: it models the rate-accuracy frontier, climbs to it, and settles where the budget is just kept.

Rates are handled as u = -ln(1 - rate), the log of the size ratio, in which equal increments are equal factors in size;
margins are handled in tolerated drops. First come trials: each trains one rate at a falling learning rate until it is
accepted or cannot be accepted any more. Then comes the polish: one run of epochs at a falling learning rate, in which
the rate is steered to where the margin expected at its end, estimated from all its epochs, is just large enough. No
single lucky epoch decides what is returned.

A trial ends with an epoch that fails (NaN or infinite), and the next one begins at a lower learning rate. After a
failed epoch of the polish the rate falls.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kedro_aat.search.beliefs import HEIGHT, JITTER, RECOVERY_RATIO, Floats, expectation, posterior
from kedro_aat.search.policy import (
    LR_FACTOR_IF_FAILED,
    UNIT_WITHOUT_DROP,
    Count,
    Epoch,
    EpochResult,
    Problem,
    SearchState,
    Stop,
    Trial,
    updated,
    worth_returning,
)
from kedro_aat.validated import Settings

# The power of the probability of success: below 1, since a failed trial costs only a few epochs.
BOLDNESS = 0.7
# A smaller expected gain is not worth a trial. In u: about 1 % in size.
LEAST_GAIN = 0.01
# A failed checkpoint within this distance is resumed: what it has learned outweighs the change of rate. In u.
NEAR = 0.06
# Number of failed checkpoints that are kept for that.
NUM_RESUMABLE = 4
# Increments grow to at most this many times the first while trials succeed at their first epoch.
MAXIMAL_GROWTH = 4
# Number of epochs that a trial gets beyond `epochs_per_rate`, while it is expected to succeed.
NUM_EXTRA_EPOCHS = 2

# Share of the distance to the intended rate that one epoch of the polish covers.
STEERING = 0.5
# The largest rise per epoch of the polish, in u. It shrinks to nothing over the second half: a rise causes damage that
# takes epochs to recover from, and a fall causes none.
MAXIMAL_RISE = 0.1
# The largest fall per epoch of the polish, in u.
MAXIMAL_FALL = 0.15
# The polish keeps a reserve of z times the geometric mean of a standard error and of the margin that is lost over this
# much u. That is more than z standard errors if these cost less size than that, since safety is cheap there, and less
# if they would cost most of what there is to gain.
RESERVE = 0.1


class TrialHistory(Settings):
    """One proposal with all its epochs.

    Attributes:
        u: Position of the proposal.
        results: One result per epoch.
        accepted: Whether the last one was accepted.
    """

    u: float
    results: tuple[EpochResult, ...] = ()
    accepted: bool = False

    @property
    def best(self) -> EpochResult:
        """The epoch with the largest margin; a failed one only if there is no other."""
        return max(self.results, key=lambda result: (not result.failed, result.margin))

    @property
    def failed(self) -> bool:
        """Whether it ended with an epoch that failed."""
        return self.results[-1].failed


class FrontierState(SearchState):
    """What the search knows.

    Attributes:
        problem: The problem to solve.
        num_epochs: Number of epochs trained so far.
        first: Validation of the model at the beginning; None before it.
        trials: All trials that have ended.
        current: The trial in progress; None if there is none.
        maximal_step: Maximal increment of the next proposal above the best, in u.
        polish: Results of the polish so far.
        polish_epochs: Length of the polish; None before it begins.
        slope: Loss of margin per u near the boundary, in drops, as the trials suggest.
        settled: The latest epoch of the polish that was accepted.
    """

    problem: Problem
    num_epochs: int = 0
    first: EpochResult | None = None
    trials: tuple[TrialHistory, ...] = ()
    current: TrialHistory | None = None
    maximal_step: float
    polish: tuple[EpochResult, ...] = ()
    polish_epochs: int | None = None
    slope: float = 1.0
    settled: Trial | None = None

    @property
    def best(self) -> Trial | None:
        """What the polish settled on, even if one lucky epoch reached more; before the polish the best trial."""
        return self.settled or super().best

    @property
    def returned(self) -> Trial | None:
        """The best, if it is worth returning."""
        return worth_returning(self.best, self.problem)

    @property
    def resumable(self) -> tuple[TrialHistory, ...]:
        """Failed trials that a later one may continue."""
        return tuple(trial for trial in self.trials if not (trial.accepted or trial.best.failed))[-NUM_RESUMABLE:]

    @property
    def needed(self) -> frozenset[int]:
        """The best checkpoint, and those that a trial or the polish may start from."""
        needed = set(super().needed)
        if self.polish_epochs is None:
            needed |= {trial.best.checkpoint for trial in self.resumable}
            needed |= {self.current.best.checkpoint} if self.current else set()
            needed |= {self.first.checkpoint} if self.first and not self.best else set()
        return frozenset(needed)

    def in_drops(self, value: float) -> float:
        """Converts a margin to tolerated drops, with a bound, so that sums of squares stay finite."""
        drop = self.problem.tolerated_drop
        return min(max(value / (drop if drop > 1e-9 else UNIT_WITHOUT_DROP), -1e3), 1e3)

    @property
    def standard_error(self) -> float:
        """Standard error of a margin, in drops; 0 if it is unknown."""
        return self.in_drops((self.first and self.first.standard_error) or 0.0)

    @property
    def offset(self) -> float:
        """How much too large margins are believed to be, in drops.

        The uncompressed model is validated twice: for the baseline, and first in the search. Its true margin is the
        tolerated drop, so the rest of the measured margin is noise. Half of that is the baseline's, which all later
        margins share. More than two standard errors cannot be noise.
        """
        if self.first is None or self.problem.initial_rate > 0:
            return 0.0
        limit = 2 * self.standard_error
        return 0.5 * min(max(self.in_drops(self.first.margin) - 1, -limit), limit)


class Frontier(Settings):
    """Searches for the highest rate within budget, and uses all epochs that it may use.

    Attributes:
        maximal_total_epochs: Limit on the number of epochs trained.
        acceptance_z: Number of standard errors from which `RESERVE` makes the reserve of the polish. Larger numbers
            return lower rates that truly break the budget less often; 0 keeps no reserve. Trials are accepted as
            measured, since they only determine where to continue from.
        epochs_per_rate: Epochs of a trial, unless it is accepted or given up before.
        num_path_steps: Number of equal increments by which the rate rises within the first epoch of a trial.
        polish_share: Share of the epochs that is reserved for the polish.
        first_step: Maximal increment above the best, in u; doubles while trials succeed at their first epoch.
        lowest_trial_lr: Learning-rate scale at the end of a trial, which begins with 1.
        polish_lr: Learning-rate scale at the beginning of the polish.
        lowest_polish_lr: Learning-rate scale at the end of the polish.
    """

    kind: Literal["frontier"] = "frontier"
    maximal_total_epochs: Count = 60
    acceptance_z: Annotated[float, Field(ge=0, le=100)] = 0.5
    epochs_per_rate: Annotated[int, Field(ge=1, le=10_000)] = 4
    num_path_steps: Annotated[int, Field(ge=1, le=10_000)] = 8
    polish_share: Annotated[float, Field(ge=0, le=1)] = 0.4
    first_step: Annotated[float, Field(gt=0, le=100)] = 0.8
    lowest_trial_lr: Annotated[float, Field(gt=0, le=1)] = 0.15
    polish_lr: Annotated[float, Field(gt=0, le=1)] = 0.5
    lowest_polish_lr: Annotated[float, Field(gt=0, le=1)] = 0.02

    def initial(self, problem: Problem) -> FrontierState:
        """Returns the state before the first validation of the model."""
        return FrontierState(problem=problem, maximal_step=self.first_step)

    def ask(self, state: FrontierState) -> Epoch | Stop:
        """Returns the next epoch, or ends the search."""
        return self._decide(state)[1]

    def tell(self, state: FrontierState, result: EpochResult) -> FrontierState:
        """Adds a result to the state in which the search was while its epoch ran."""
        decided, _ = self._decide(state)
        changes: dict[str, Any] = {"num_epochs": decided.num_epochs + result.trained}
        accepted = result.fully_compressed and result.margin >= 0
        if decided.polish_epochs is not None:
            changes["polish"] = (*decided.polish, result)
            if accepted:
                expected, _ = self._expected_at_end(updated(decided, **changes))
                shift = self.acceptance_z * decided.standard_error
                if expected >= max(0.0, min(shift, self._reserve(decided)) + decided.offset):
                    changes["settled"] = Trial.from_result(result)
            return updated(decided, **changes)
        if decided.first is None:
            changes["first"] = result
        else:
            assert decided.current is not None
            results = (*decided.current.results, result)
            changes["current"] = TrialHistory(u=decided.current.u, results=results, accepted=accepted)
        if accepted:
            changes["candidates"] = (*decided.candidates, Trial.from_result(result))
        return updated(decided, **changes)

    def load(self, state: str) -> FrontierState:
        """Reads a state from its JSON."""
        return FrontierState.model_validate_json(state)

    def _decide(self, state: FrontierState) -> tuple[FrontierState, Epoch | Stop]:
        """Returns the next epoch or the end, and the state of the search while it is in progress."""
        if (first := state.first) is None:
            return state, Epoch(train=False, new_optimizer=True)
        num_left = self.maximal_total_epochs - state.num_epochs
        if num_left <= 0:
            return state, state.stop(f"All {state.num_epochs} epochs were used.")
        if state.polish_epochs is not None:
            return state, self._next_of_polish(state, state.polish_epochs)
        if (trial := state.current) is not None:
            if not self._is_over(state, trial):
                return state, Epoch(lr_scale=self._trial_lr(state, len(trial.results)))
            state = self._with_ended(state, trial)
        if num_left > self.polish_share * self.maximal_total_epochs and (u := self._proposal(state)) is not None:
            return self._start_trial(state, first, u)
        return self._start_polish(state, first, num_left)

    # Trials

    def _start_trial(self, state: FrontierState, first: EpochResult, u: float) -> tuple[FrontierState, Epoch]:
        """Starts from the best checkpoint, or from a failed one whose rate is close to the proposal's."""
        start, start_u = first.checkpoint, u_of(state.problem.initial_rate)
        if state.best is not None:
            start, start_u = state.best.checkpoint, u_of(state.best.requested_rate)
        nearest = min(state.resumable, key=lambda trial: abs(trial.u - u), default=None)
        if nearest is not None and abs(nearest.u - u) <= NEAR:
            start, start_u = nearest.best.checkpoint, nearest.u
        epoch = Epoch(
            rate_path=self._path(state.problem, start_u, u),
            lr_scale=self._trial_lr(state, 0),
            start_from=start,
            new_optimizer=True,
        )
        return updated(state, current=TrialHistory(u=u)), epoch

    def _path(self, problem: Problem, start: float, end: float) -> tuple[float, ...]:
        """Returns rates from one u to another, both limited to the rates of the problem."""
        num = self.num_path_steps
        path = [start + (end - start) * (index + 1) / num for index in range(num)]
        return tuple(min(max(-math.expm1(-u), problem.minimal_rate), problem.maximal_rate) for u in path)

    def _trial_lr(self, state: FrontierState, num_epochs: int) -> float:
        share = min(1.0, num_epochs / max(1, self.epochs_per_rate - 1))
        num_failed = len(list(itertools.takewhile(lambda trial: trial.failed, reversed(state.trials))))
        return float(self.lowest_trial_lr**share * LR_FACTOR_IF_FAILED**num_failed)

    def _is_over(self, state: FrontierState, trial: TrialHistory) -> bool:
        last = trial.results[-1]
        if trial.accepted or last.early_stop or last.failed:
            return True
        unsuccessful = (other for other in state.trials if not (other.accepted or other.best.failed))
        if any(self._has_equal_mask(last, other.best) for other in unsuccessful):
            return True
        num_left = self.epochs_per_rate + NUM_EXTRA_EPOCHS - len(trial.results)
        if num_left <= 0 or len(trial.results) < 2:  # one epoch says nothing about the recovery
            return num_left <= 0
        previous, latest = (state.in_drops(result.margin) for result in trial.results[-2:])
        recovery = max(latest - previous, 0.0) * sum(RECOVERY_RATIO**epoch for epoch in range(1, num_left + 1))
        return latest + recovery < (-JITTER if len(trial.results) < self.epochs_per_rate else 0.0)

    @staticmethod
    def _has_equal_mask(result: EpochResult, failed: EpochResult) -> bool:
        """Whether another request led to the model that failed; a resumed trial makes the same request."""
        return result.achieved_rate == failed.achieved_rate and result.requested_rate != failed.requested_rate

    def _with_ended(self, state: FrontierState, trial: TrialHistory) -> FrontierState:
        increment = self.first_step
        if trial.accepted and len(trial.results) == 1:  # far from the boundary: climb faster
            increment = min(2 * state.maximal_step, MAXIMAL_GROWTH * self.first_step)
        return updated(state, trials=(*state.trials, trial), current=None, maximal_step=increment)

    def _proposal(self, state: FrontierState) -> float | None:
        """Returns the u with the largest expected gain in size; None if none is worth a trial."""
        boundaries, _, likelihood = self._posterior(state)
        share = likelihood.sum(1)
        chance = (1 - np.cumsum(share) + share / 2).clip(0, 1)  # probability that the boundary lies above
        lowest, highest = u_of(state.problem.minimal_rate), u_of(state.problem.maximal_rate)
        # Without a best the lowest rate must itself be worth something.
        best = u_of(state.best.requested_rate) if state.best else lowest - NEAR
        limit = min(highest, best + state.maximal_step) if state.best else highest
        proposals = np.linspace(lowest, max(lowest, limit), 200)
        chances = np.interp(proposals, boundaries, chance)
        index = int(((proposals - best) * chances**BOLDNESS).argmax())
        return float(proposals[index]) if (proposals[index] - best) * chances[index] >= LEAST_GAIN else None

    def _posterior(self, state: FrontierState) -> tuple[Floats, Floats, Floats]:
        """Returns boundaries, slopes, and how likely each pair is after the trials."""
        judged = [(trial.u, trial.best) for trial in state.trials]
        if state.first is not None:
            judged.append((u_of(state.problem.initial_rate), state.first))
        u = np.array([u for u, _ in judged])
        margins = np.array([state.in_drops(result.margin) for _, result in judged])
        return posterior(u, margins, state.standard_error, u_of(state.problem.maximal_rate))

    # Polish

    def _start_polish(self, state: FrontierState, first: EpochResult, num_left: int) -> tuple[FrontierState, Epoch]:
        """Starts from the best; without one from the trial that came nearest, whose rate the polish then lowers."""
        start: EpochResult | Trial = first
        if state.best is not None:
            start = state.best
        elif state.resumable:
            start = max((trial.best for trial in state.resumable), key=lambda result: result.margin)
        _, slopes, likelihood = self._posterior(state)
        slope = HEIGHT * float(likelihood.sum(0) @ slopes)
        lowest, highest = state.problem.minimal_rate, state.problem.maximal_rate
        epoch = Epoch(
            rate_path=(min(max(start.requested_rate, lowest), highest),),
            lr_scale=self.polish_lr,
            start_from=start.checkpoint,
            new_optimizer=True,
        )
        return updated(state, polish_epochs=num_left, slope=slope), epoch

    def _next_of_polish(self, state: FrontierState, num_epochs: int) -> Epoch | Stop:
        lr_scale = self._polish_lr(len(state.polish), num_epochs)
        if state.polish[-1].early_stop:
            return state.stop("The early-stopping function ended the polish.")
        if state.polish[-1].failed:
            # The model is back in the state before that epoch.
            u = max(u_of(state.polish[-1].requested_rate) - MAXIMAL_FALL, 0.0)
            return Epoch(rate_path=self._path(state.problem, u, u)[-1:], lr_scale=lr_scale, new_optimizer=True)
        expected, slope = self._expected_at_end(state)
        # The offset may use up the reserve, but never the budget as it was measured.
        intended_margin = max(0.0, self._reserve(state) + state.offset)
        latest_u = u_of(state.polish[-1].requested_rate)
        share_left = 1 - len(state.polish) / num_epochs
        increment = max(STEERING * (expected - intended_margin) / slope, -MAXIMAL_FALL)
        if increment > 0:
            increment = min(increment, MAXIMAL_RISE) * min(1.0, 2 * share_left)
        return Epoch(
            rate_path=self._path(state.problem, latest_u, latest_u + increment),
            lr_scale=lr_scale,
        )

    def _reserve(self, state: FrontierState) -> float:
        return self.acceptance_z * math.sqrt(RESERVE * state.slope * state.standard_error)

    def _polish_lr(self, epoch: int, num_epochs: int) -> float:
        share = epoch / max(1, num_epochs - 1)
        return float(self.polish_lr * (self.lowest_polish_lr / self.polish_lr) ** share)

    def _expected_at_end(self, state: FrontierState) -> tuple[float, float]:
        """Returns the margin at the latest rate when the learning rate has fallen, and its slope, both in drops."""
        num_epochs = state.polish_epochs or 1
        judged = [(epoch, result) for epoch, result in enumerate(state.polish) if not result.failed]
        u = np.array([u_of(result.requested_rate) for _, result in judged])
        lr = np.array([self._polish_lr(epoch, num_epochs) for epoch, _ in judged]) - self.lowest_polish_lr
        margins = np.array([state.in_drops(result.margin) for _, result in judged])
        return expectation(u, lr, margins, state.standard_error, state.slope)


def u_of(rate: float) -> float:
    """Returns -ln(1 - rate), the log of the size ratio."""
    return -math.log1p(-rate)

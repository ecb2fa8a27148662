"""What the default strategy knows: the trials of its climb, and the epochs of its polish."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
from numpy.typing import NDArray

from kedro_aat.budget import UNIT_WITHOUT_DROP
from kedro_aat.search.growing import Growing
from kedro_aat.search.policy import EpochResult, Problem, SearchState, Trial, updated, worth_returning
from kedro_aat.search.tactics import Tactic
from kedro_aat.validated import Settings

# The latest trials whose checkpoints another one may continue.
NUM_RESUMABLE = 3
# Learning rates do not fall below this share, so that they can rise again.
LEAST_LR = 1e-3
# Against division by zero.
LEAST_COST = 1e-3
# Last epochs whose standard errors are averaged, and whose scatter stands in for unknown ones.
NUM_POOLED, NUM_SCATTERED = 3, 8
# Loss of margin per u if no trial has shown it.
USUAL_SLOPE = 4.0
# A trial below this margin, in drops, has shown none.
FAR = -5.0
# The increment with which a search climbs on that is given more epochs, at least: 14% of the size.
REOPENED_INCREMENT = 0.15
# Bound of margins, in drops.
LARGEST_MARGIN = 1e3
# Limits of that loss. Longer trials lose less than those that were measured.
FLATTEST, STEEPEST = 1.0, 8.0


class Attempt(Settings):
    """A trial with all its epochs.

    Attributes:
        start: Checkpoint in which it began.
        start_u: Position of that checkpoint.
        u: Position of the trial.
        tactic: How it trains.
        length: Number of epochs over which its learning rate falls to zero.
        results: One result per epoch.
        accepted: Whether it ended within budget.
        race: Whether it lost the race of learning rates, or still takes part in it.
    """

    start: int
    start_u: float
    u: float
    tactic: Tactic
    length: int
    results: tuple[EpochResult, ...] = ()
    accepted: bool = False
    race: bool = False

    @property
    def last(self) -> EpochResult:
        """Its last epoch."""
        return self.results[-1]

    @property
    def checkpoints(self) -> frozenset[int]:
        """The checkpoints of its epochs."""
        return frozenset(result.checkpoint for result in self.results)

    @property
    def best_margin(self) -> float:
        """The largest margin of its epochs, in metric units; the last one if it diverged in the end."""
        return self.last.margin if self.diverged else max(result.margin for result in self.results)

    @property
    def merit(self) -> tuple[float, float, int]:
        """Orders trials by their largest margin; among equals, by falling learning rate and length."""
        return self.best_margin, -self.tactic.lr_factor, -self.length

    @property
    def is_within_budget(self) -> bool:
        """Whether its last epoch was, so that it ends; an epoch of the race is only compared."""
        return self.last.margin >= 0 and self.last.fully_compressed and not self.race

    @property
    def lr_scales(self) -> tuple[float, float]:
        """The learning-rate scales at both ends of its next epoch: they fall to zero along a cosine."""
        shares = [min((len(self.results) + index) / self.length, 1.0) for index in (0, 1)]
        start, end = (max(0.5 * (1 + math.cos(math.pi * share)), LEAST_LR) for share in shares)
        return self.tactic.lr_factor * start, self.tactic.lr_factor * end

    @property
    def diverged(self) -> bool:
        """Whether its last epoch failed."""
        return self.last.failed


def _safer(safest: tuple[float, Trial | None], trial: Trial) -> tuple[float, Trial | None]:
    lowest, best = safest
    is_first = best is None or (trial.margin, trial.achieved_rate) > (best.margin, best.achieved_rate)
    return lowest, trial if trial.margin >= 0 and trial.requested_rate >= lowest and is_first else best


# The trial within budget with the largest margin, of those that have at least the rate.
_SAFEST: Growing[Trial, tuple[float, Trial | None]] = Growing(lambda lowest: (lowest, None), _safer)


class FrontierState(SearchState):
    """What the search knows.

    Attributes:
        problem: The problem to solve.
        num_epochs: Number of epochs trained so far.
        spent: What they cost, in epochs of the uncompressed model.
        first: Validation of the model at rate 0; None before it.
        attempts: All trials that have ended.
        current: The trial in progress; None if there is none.
        increment: Increment of the next trial of the climb, in u.
        tactic: How the next trial of the climb trains.
        raced: Whether the race of learning rates is over.
        trial_epochs: Epochs of a trial of the climb, if they are more than the settings say.
        polish: Results of the polish so far.
        polish_epochs: Length of the polish; None before it begins.
        slope: Loss of margin per u where the polish began, in drops.
        safe: The latest model whose margin exceeded its reserve; None if there is none.
        returned_before: What a search of fewer epochs, which this one continues, returned with its reserve. Only a
            model of at least its rate replaces it, however the new polish ends.
    """

    problem: Problem
    num_epochs: int = 0
    spent: float = 0.0
    first: EpochResult | None = None
    attempts: tuple[Attempt, ...] = ()
    current: Attempt | None = None
    increment: float
    tactic: Tactic
    raced: bool = False
    trial_epochs: int = 0
    polish: tuple[EpochResult, ...] = ()
    polish_epochs: int | None = None
    slope: float = USUAL_SLOPE
    safe: Trial | None = None
    returned_before: Trial | None = None

    @property
    def wants_accuracy(self) -> bool:
        """Whether the rate is given, and the most accurate model is asked for."""
        return self.problem.goal == "accuracy"

    @property
    def best(self) -> Trial | None:
        """The latest model whose margin exceeded its reserve; without one, that with the largest margin.

        If accuracy is the goal, the model with the largest margin of those at the given rate.
        """
        if self.safe is not None and not self.wants_accuracy:
            return self.safe
        lowest = self.problem.minimal_rate if self.wants_accuracy else 0.0
        return _SAFEST.of(self.candidates, lowest)[1]

    @property
    def returned(self) -> Trial | None:
        """The best, if it is worth returning."""
        return worth_returning(self.best, self.problem)

    @property
    def accepted(self) -> tuple[Attempt, ...]:
        """The trials that ended within budget, by rising rate."""
        return tuple(sorted((each for each in self.attempts if each.accepted), key=lambda each: each.u))

    @property
    def start(self) -> tuple[int, float]:
        """Checkpoint and position of the most compressed model that was accepted."""
        assert self.first is not None
        accepted = self.accepted
        return (accepted[-1].last.checkpoint, accepted[-1].u) if accepted else (self.first.checkpoint, 0.0)

    @property
    def nearest(self) -> Attempt | None:
        """The trial with the best epoch; None before the first one has ended."""
        return max(self.attempts, key=lambda each: each.merit, default=None)

    @property
    def failures(self) -> tuple[Attempt, ...]:
        """The failed trials of the climb at the place where it is now."""
        here: list[Attempt] = []
        for each in reversed(self.attempts):
            if each.accepted or each.race or (here and each.u != here[0].u):
                break
            here.append(each)
        return tuple(here)

    def is_far_again(self, failure: Attempt, near: float) -> bool:
        """Returns whether a trial failed as far as one of the same ranking and distillation at a higher rate.

        Args:
            failure: The trial.
            near: Margin, in drops, up to which a failed trial is far.
        """
        return any(
            each.u > failure.u
            and (each.tactic.ranking, each.tactic.distill) == (failure.tactic.ranking, failure.tactic.distill)
            and self.in_drops(each.best_margin) <= near
            for each in self.attempts
        )

    @property
    def is_at_top(self) -> bool:
        """Whether the polish is at the highest rate, so that it can only make the model safer."""
        return bool(self.polish) and self.polish[-1].requested_rate >= self.problem.maximal_rate

    @property
    def least_diverged(self) -> float:
        """The smallest learning-rate factor of a trial that diverged; infinite if there is none."""
        return min((each.tactic.lr_factor for each in self.attempts if each.diverged), default=math.inf)

    def least_too_high(self, behind: float, behind_in_race: float) -> float:
        """Returns the smallest learning-rate factor that diverged, or did worse than a lower one at the same rate.

        Args:
            behind: How much worse, in drops.
            behind_in_race: The same for the single epochs of the race, which are too short for high learning rates.
        """
        worse = [
            each.tactic.lr_factor
            for each, other in itertools.permutations(self.attempts, 2)
            if each.u == other.u
            and each.tactic.lr_factor > other.tactic.lr_factor
            and self._is_worse(each, other, behind, behind_in_race)
        ]
        return min(*worse, self.least_diverged, math.inf)

    def _is_worse(self, each: Attempt, other: Attempt, behind: float, behind_in_race: float) -> bool:
        missing = self.in_drops(other.best_margin) - self.in_drops(each.best_margin)
        if each.length == other.length == 1:
            return missing > behind_in_race
        return missing > behind and all(not one.race and len(one.results) > 1 for one in (each, other))

    @property
    def latest_cost(self) -> float:
        """What the last epoch cost, above 0; 1 before the first one."""
        latest = self.polish or (self.current.results if self.current else ())
        if not latest and self.attempts:
            latest = self.attempts[-1].results
        return max(latest[-1].cost, LEAST_COST) if latest else 1.0

    @property
    def judged(self) -> tuple[EpochResult, ...]:
        """The results of all trials, and of the polish; without those that failed."""
        trials = (*self.attempts, *([self.current] if self.current else []))
        results = (*itertools.chain.from_iterable(each.results for each in trials), *self.polish)
        return tuple(result for result in results if not result.failed)

    @property
    def needed(self) -> frozenset[int]:
        """The best checkpoint, and those that a trial may start from."""
        needed = {*super().needed, *self.needed_optimizers}
        needed |= {each.last.checkpoint for each in (*self.accepted, *self.attempts[-NUM_RESUMABLE:])}
        needed |= {self.nearest.last.checkpoint} if self.nearest else set()
        if self.current is not None:
            needed |= {self.current.start, *(result.checkpoint for result in self.current.results[-1:])}
        needed |= {self.first.checkpoint} if self.first else set()
        return frozenset(needed)

    @property
    def needed_optimizers(self) -> frozenset[int]:
        """The model that the polish kept, to which it goes back if a rise destroys it."""
        is_of_polish = self.safe is not None and self.polish and self.safe.checkpoint >= self.polish[0].checkpoint
        return frozenset({self.safe.checkpoint} if self.safe is not None and is_of_polish else ())

    def in_drops(self, value: float) -> float:
        """Converts a margin to tolerated drops, with a bound, so that sums of squares stay finite."""
        return min(max(value / self.unit, -LARGEST_MARGIN), LARGEST_MARGIN)

    def all_in_drops(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Converts margins likewise, (K,) -> (K,)."""
        return np.clip(values / self.unit, -LARGEST_MARGIN, LARGEST_MARGIN)

    @property
    def unit(self) -> float:
        """A tolerated drop in metric units, above 0."""
        drop = self.problem.tolerated_drop
        return drop if drop > 1e-9 else UNIT_WITHOUT_DROP

    def standard_error(self, results: tuple[EpochResult, ...]) -> float:
        """The standard error of the last margins, in drops.

        If it is unknown, their scatter from one epoch to the next, which is sqrt(2) times as large; a normal
        distribution's median of magnitudes is .6745 of its standard deviation.
        """
        told = [result.standard_error for result in results[-NUM_POOLED:]]
        known = [self.in_drops(error) for error in told if error is not None]
        if known:
            return statistics.fmean(known)
        margins = [self.in_drops(result.margin) for result in results[-NUM_SCATTERED:] if not result.failed]
        margins = [margin for margin in margins if margin > FAR]  # that a rise destroys a model is no scatter
        differences = [abs(latest - before) for before, latest in itertools.pairwise(margins)]
        return statistics.median(differences) / (0.6745 * math.sqrt(2)) if len(differences) > 1 else 0.0

    def slope_above(self, num_epochs: int) -> float:
        """Loss of margin per u above the last accepted model, in drops, within limits.

        Args:
            num_epochs: Only trials of at least this many epochs count.
        """
        base = self.accepted[-1] if self.accepted else None
        margin, u = (self.in_drops(base.best_margin), base.u) if base else (1.0, 0.0)
        slopes = [
            (margin - self.in_drops(each.best_margin)) / (each.u - u)
            for each in self.attempts
            if each.u > u and len(each.results) >= num_epochs and self.in_drops(each.best_margin) > FAR
        ]
        return min(max(min(slopes, default=USUAL_SLOPE), FLATTEST), STEEPEST)

    def reopened(self) -> FrontierState:
        """Returns the state from which a search climbs on that is given more epochs than its polish was planned for.

        The polish becomes a trial of the climb that ended with the model that it kept. One that kept none is dropped.
        """
        kept = None if self.best is None else self.best.checkpoint
        results = tuple(result for result in self.polish if kept is not None and result.checkpoint <= kept)
        attempts = self.attempts
        if results and results[-1].checkpoint == kept:
            rate, (start, start_u) = results[-1].requested_rate, self.start
            polished = Attempt(
                start=start,
                start_u=start_u,
                u=u_of(rate),
                tactic=self.tactic,
                length=len(results),
                results=tuple(result for result in results if result.requested_rate == rate),
                accepted=True,
            )
            attempts = (*attempts, polished)
        return updated(
            self,
            attempts=attempts,
            polish=(),
            polish_epochs=None,
            increment=max(self.increment, REOPENED_INCREMENT),
            returned_before=self.safe,
        )

    def reason(self, num_epochs: int, polish_lr: float, polished: Tactic) -> str:
        """Returns why a search has ended, how its model was trained, and why it is not what was asked for.

        Args:
            num_epochs: Epochs that the search could use.
            polish_lr: The highest learning-rate scale of the last polish.
            polished: How the returned model was trained if it is one of the polish.
        """
        num_epochs = max(num_epochs, math.ceil(self.spent - 1e-9))  # a search may be given fewer than it has used
        if self.spent > num_epochs - 1:
            ending = f"All {num_epochs} epochs were used."
        else:
            highest = self.problem.maximal_rate
            ending = f"A rate of {highest:.4f} was reached, the highest one." if self.is_at_top else "The polish ended."
        if self.wants_accuracy:
            lowest = self.problem.minimal_rate
            at_rate = [result for result in self.judged if result.requested_rate >= lowest]
            nearest = max(at_rate, key=lambda result: result.margin, default=None)
            if nearest is None:
                return f"No model was trained at the rate of {lowest:.4f} that the limits need. {ending}"
            words = f"The most accurate of {len(at_rate)} models at the rate of {lowest:.4f} that the limits need has "
            words += f"a metric of {nearest.metric:.5g}"
            if self.best is None:
                words += f", and misses the budget by {-nearest.margin:.2g}"
            return f"{words}. {ending}"
        if (returned := self.returned) is not None:
            trained = [(each.tactic, each.tactic.lr_factor, each.checkpoints) for each in self.attempts]
            trained.append((polished, polish_lr, frozenset(result.checkpoint for result in self.polish)))
            for tactic, lr_factor, checkpoints in trained:
                if returned.checkpoint in checkpoints:
                    words = tactic.describe(lr_factor, self.problem.can_distill)
                    ending += f" The model was last trained at {words}."
        highest = max((trial.achieved_rate for trial in self.candidates), default=0.0)
        if self.best is not None and highest > self.best.achieved_rate:
            ending += (
                f" A rate of {highest:.4f} was measured within budget, too, but with a smaller margin than the reserve "
                "that acceptance_z asks for."
            )
        return ending


def u_of(rate: float) -> float:
    """Returns -ln(1 - rate), the log of the size ratio."""
    return -math.log1p(-rate)

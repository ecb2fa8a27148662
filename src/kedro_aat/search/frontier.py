"""The default strategy: it climbs from one compressed model to the next, then trains the best of them well.

Rates are handled as u = -ln(1 - rate), the log of the size ratio, in which equal increments are equal factors in size;
margins are handled in tolerated drops.

The climb: a trial compresses the last accepted model further, and trains it with a new optimizer at a learning rate
that falls to zero, until an epoch is within budget. After an easy success the increment doubles. After a failure the
same increment is tried at another learning rate, then a smaller one with another importance.

The finals: the rest of the epochs goes to long trials at the boundary that the climb found. A model is returned if its
margin exceeds a reserve, which grows with the standard error and with the number of looks.
"""

from __future__ import annotations

import math
import statistics
from typing import Annotated, Any, Literal

from pydantic import Field

from kedro_aat.search.policy import (
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
from kedro_aat.search.tactics import LR_RATIO, Ranking, Tactic, Tactics
from kedro_aat.validated import Settings

FIRST_LR_FACTOR = LR_RATIO**2 / LR_RATIO  # half a decade above the owner's
SHRINKING = 0.55
LEAST_INCREMENT = 0.04
NUM_RACING_EPOCHS = 1
# Attempts at one increment before it shrinks.
ATTEMPTS_PER_INCREMENT = 2
# Share of the reserve that the climb keeps.
CLIMBING_RESERVE = 0.5
HOPELESS = -12.0
NEAR = -5.0
LONG_TRAINING_BONUS = 1.5
LARGEST_RESERVE = 0.6
POOLED = 3


class Attempt(Settings):
    """A trial with all its epochs.

    Attributes:
        phase: `race` compares rankings, `climb` and `final` as above.
        start: Checkpoint in which it began.
        start_u: Position of that checkpoint.
        u: Position of the trial.
        tactic: How it trains.
        length: Number of epochs over which its learning rate falls to zero.
        results: One result per epoch.
        accepted: Whether it ended within budget.
    """

    phase: Literal["race", "climb", "final"]
    start: int
    start_u: float
    u: float
    tactic: Tactic
    length: int
    results: tuple[EpochResult, ...] = ()
    accepted: bool = False

    @property
    def last(self) -> EpochResult:
        """Its last epoch."""
        return self.results[-1]

    @property
    def best_margin(self) -> float:
        """The largest margin of its epochs."""
        return max(result.margin for result in self.results)

    @property
    def diverged(self) -> bool:
        """Whether an epoch failed."""
        return any(result.failed for result in self.results)


class FrontierState(SearchState):
    """What the search knows.

    Attributes:
        problem: The problem to solve.
        num_epochs: Number of epochs trained so far.
        first: Validation of the model at rate 0; None before it.
        attempts: All trials that have ended.
        current: The trial in progress; None if there is none.
        increment: Increment of the next trial, in u.
        tactic: How the next trial trains.
        lr_direction: Direction in which the next other learning rate lies, 1 or -1.
    """

    problem: Problem
    num_epochs: int = 0
    first: EpochResult | None = None
    attempts: tuple[Attempt, ...] = ()
    current: Attempt | None = None
    increment: float
    tactic: Tactic
    lr_direction: Literal[-1, 1] = 1
    safe: Trial | None = None

    @property
    def best(self) -> Trial | None:
        """The most compressed model whose margin exceeds the reserve; without one, that with the largest margin."""
        if self.safe is not None:
            return self.safe
        return max((c for c in self.candidates if c.margin >= 0), key=lambda trial: trial.margin, default=None)

    @property
    def returned(self) -> Trial | None:
        return worth_returning(self.best, self.problem)

    @property
    def accepted(self) -> tuple[Attempt, ...]:
        return tuple(attempt for attempt in self.attempts if attempt.accepted)

    @property
    def needed(self) -> frozenset[int]:
        """The best checkpoint, and those that a trial may start from."""
        needed = set(super().needed)
        needed |= {attempt.last.checkpoint for attempt in self.accepted[-4:]}
        needed |= {attempt.last.checkpoint for attempt in self.attempts[-3:]}
        if self.current is not None:
            needed |= {self.current.start}
        if self.first is not None:
            needed.add(self.first.checkpoint)
        return frozenset(needed)

    def in_drops(self, value: float) -> float:
        """Converts a margin to tolerated drops, with a bound, so that sums of squares stay finite."""
        drop = self.problem.tolerated_drop
        return min(max(value / (drop if drop > 1e-9 else UNIT_WITHOUT_DROP), -1e3), 1e3)


class Frontier(Settings):
    """Searches for the highest rate within budget."""

    kind: Literal["frontier"] = "frontier"
    maximal_total_epochs: Count = 60
    acceptance_z: Annotated[float, Field(ge=0, le=100)] = 0.5
    epochs_per_rate: Annotated[int, Field(ge=1, le=10_000)] = 4
    num_path_steps: Annotated[int, Field(ge=1, le=10_000)] = 1
    polish_share: Annotated[float, Field(ge=0, le=1)] = 0.4
    tactics: Tactics = Tactics()

    def initial(self, problem: Problem) -> FrontierState:
        """Returns the state before the first validation of the model."""
        tactic = Tactic(ranking=self._rankings(problem)[0], lr_factor=self.tactics.first_lr_factor(FIRST_LR_FACTOR))
        if self.tactics.distillation:
            tactic = updated(tactic, distill=self.tactics.distillation[0])
        return FrontierState(problem=problem, increment=u_of(problem.first_target_rate), tactic=tactic)

    def ask(self, state: FrontierState) -> Epoch | Stop:
        """Returns the next epoch, or ends the search."""
        return self._decide(state)[1]

    def tell(self, state: FrontierState, result: EpochResult) -> FrontierState:
        """Adds a result to the state in which the search was while its epoch ran."""
        decided, _ = self._decide(state)
        changes: dict[str, Any] = {"num_epochs": decided.num_epochs + result.trained}
        if result.fully_compressed and result.margin >= 0 and not result.failed:
            changes["candidates"] = (*decided.candidates, Trial.from_result(result))
        if (attempt := decided.current) is None:
            return updated(decided, **changes, first=result)
        attempt = updated(attempt, results=(*attempt.results, result))
        is_safe = result.margin >= 0 and self._estimate(decided, attempt) >= self._reserve(decided, attempt)
        if is_safe and attempt.phase != "race" and (decided.safe is None or result.achieved_rate >= decided.safe.achieved_rate):
            changes["safe"] = Trial.from_result(result)
        return updated(decided, **changes, current=attempt)

    def load(self, state: str) -> FrontierState:
        """Reads a state from its JSON."""
        return FrontierState.model_validate_json(state)

    # Estimates, in drops

    def _estimate(self, state: FrontierState, attempt: Attempt) -> float:
        """The margin of an attempt's last epoch, pooled with those before, so that no lucky epoch is taken."""
        margins = [state.in_drops(result.margin) for result in attempt.results[-POOLED:]]
        return min(margins[-1], statistics.fmean(margins)) if attempt.phase == "final" else margins[-1]

    def _reserve(self, state: FrontierState, attempt: Attempt) -> float:
        errors = [r.standard_error for r in attempt.results[-POOLED:] if r.standard_error is not None]
        if errors:
            error = state.in_drops(statistics.fmean(errors))
        else:
            error = self._scatter(state)
        num_looks = 1 + len(state.accepted)
        return min(self.acceptance_z * math.sqrt(2 * math.log(1 + num_looks)) * error, LARGEST_RESERVE)

    def _scatter(self, state: FrontierState) -> float:
        pairs = [
            state.in_drops(b.margin) - state.in_drops(a.margin)
            for attempt in state.attempts
            for a, b in zip(attempt.results[-3:], attempt.results[-2:], strict=False)
            if not (a.failed or b.failed)
        ]
        return statistics.median(map(abs, pairs)) if pairs else 0.0

    # The next epoch

    def _decide(self, state: FrontierState) -> tuple[FrontierState, Epoch | Stop]:
        """Returns the next epoch or the end, and the state of the search while it is in progress."""
        if state.first is None:
            path = (0.0,) if state.problem.initial_rate > 0 else None
            return state, Epoch(train=False, rate_path=path, new_optimizer=True)
        num_left = self.maximal_total_epochs - state.num_epochs
        if (attempt := state.current) is not None:
            accepted = self._is_accepted(state, attempt)
            if num_left > 0 and not (accepted or self._is_over(state, attempt)):
                return state, Epoch(lr_scale=self._lr_scale(attempt))
            state = self._with_ended(state, updated(attempt, accepted=accepted))
        if num_left <= 0:
            return state, state.stop(f"All {state.num_epochs} epochs were used.")
        attempt = self._next(state, num_left)
        if attempt is None:
            return state, state.stop("No smaller model is within reach.")
        epoch = Epoch(
            rate_path=self._path(state.problem, attempt.start_u, attempt.u),
            lr_scale=self._lr_scale(attempt),
            start_from=attempt.start,
            new_optimizer=True,
            tactic=attempt.tactic,
        )
        return updated(state, current=attempt), epoch

    def _lr_scale(self, attempt: Attempt) -> float:
        share = (len(attempt.results) + 0.5) / attempt.length
        return attempt.tactic.lr_factor * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

    def _path(self, problem: Problem, start: float, end: float) -> tuple[float, ...]:
        """Returns rates from one u to another, both limited to the rates of the problem."""
        num = self.num_path_steps
        path = [start + (end - start) * (index + 1) / num for index in range(num)]
        return tuple(min(max(-math.expm1(-u), problem.minimal_rate), problem.maximal_rate) for u in path)

    def _is_accepted(self, state: FrontierState, attempt: Attempt) -> bool:
        last = attempt.last
        if last.failed or not last.fully_compressed or last.margin < 0 or attempt.phase == "race":
            return False
        reserve = self._reserve(state, attempt)
        if attempt.phase == "final":
            return len(attempt.results) >= attempt.length and self._estimate(state, attempt) >= reserve
        return state.in_drops(last.margin) >= CLIMBING_RESERVE * reserve

    def _is_over(self, state: FrontierState, attempt: Attempt) -> bool:
        last, num_done = attempt.last, len(attempt.results)
        if attempt.phase == "race":
            return num_done >= NUM_RACING_EPOCHS
        if last.failed or last.early_stop or num_done >= attempt.length:
            return True
        latest = state.in_drops(last.margin)
        if attempt.phase == "final":
            return False
        if num_done < 2:
            return latest < HOPELESS
        before = state.in_drops(attempt.results[-2].margin)
        return latest + 2 * max(latest - before, 0.5) * (attempt.length - num_done) < 0

    def _with_ended(self, state: FrontierState, attempt: Attempt) -> FrontierState:
        """Returns the state after a trial, with the increment and the tactic of the next one."""
        before, state = state, updated(state, attempts=(*state.attempts, attempt), current=None)
        if attempt.phase == "race":
            racers = [each for each in state.attempts if each.phase == "race"]
            best = max(racers, key=lambda each: each.best_margin)
            if len(racers) == len(self._rankings(state.problem)):
                won = state.in_drops(best.last.margin) >= CLIMBING_RESERVE * self._reserve(state, best)
                others = [each for each in state.attempts if each is not best]
                return updated(
                    state,
                    tactic=best.tactic,
                    attempts=(*others, updated(best, accepted=won)),
                    increment=state.increment * (2 if won else 1),
                )
            return state
        if attempt.phase == "final":
            return state
        if attempt.accepted:
            growth = {1: 2.0, 2: 1.4, 3: 1.0}.get(len(attempt.results), 0.7)
            return updated(state, increment=state.increment * growth, tactic=attempt.tactic)
        here = self._attempts_here(state)
        factor = attempt.tactic.lr_factor
        is_near = max(state.in_drops(each.best_margin) for each in here) > NEAR
        if len(here) < ATTEMPTS_PER_INCREMENT and is_near:
            direction = -1 if attempt.diverged else state.lr_direction
            other = self.tactics.lr_neighbor(factor, direction) or self.tactics.lr_neighbor(factor, -direction)
            if other is not None:
                return updated(state, tactic=updated(attempt.tactic, lr_factor=other))
        best = max(here, key=lambda each: each.best_margin)
        direction = 1 if best.tactic.lr_factor >= min(each.tactic.lr_factor for each in here) + 1e-9 else -1
        rankings = self._rankings(state.problem)
        index = rankings.index(best.tactic.ranking) if best.tactic.ranking in rankings else 0
        ranking = rankings[(index + 1) % len(rankings)]
        del before
        return updated(
            state,
            increment=state.increment * SHRINKING,
            tactic=updated(best.tactic, ranking=ranking),
            lr_direction=direction,
        )

    def _attempts_here(self, state: FrontierState) -> list[Attempt]:
        """The failed climbs at the present increment."""
        here: list[Attempt] = []
        for attempt in reversed(state.attempts):
            if attempt.accepted or attempt.phase != "climb" or (here and abs(attempt.u - here[0].u) > 1e-9):
                break
            here.append(attempt)
        return here

    def _next(self, state: FrontierState, num_left: int) -> Attempt | None:
        assert state.first is not None
        highest = u_of(state.problem.maximal_rate)
        lowest = u_of(state.problem.minimal_rate)
        base = state.accepted[-1] if state.accepted else None
        start, start_u = (base.last.checkpoint, base.u) if base else (state.first.checkpoint, 0.0)
        in_finals = any(attempt.phase == "final" for attempt in state.attempts)
        is_at_top = start_u >= highest - 1e-9
        if not in_finals and not is_at_top and num_left > self.polish_share * self.maximal_total_epochs:
            target = min(max(start_u + state.increment, lowest), highest)
            rankings = self._rankings(state.problem)
            racers = [attempt for attempt in state.attempts if attempt.phase == "race"]
            if len(rankings) > 1 and len(racers) < len(rankings):
                tactic = updated(state.tactic, ranking=rankings[len(racers)])
                return Attempt(
                    phase="race", start=start, start_u=start_u, u=target, tactic=tactic, length=self.epochs_per_rate,
                    )
            if state.increment >= LEAST_INCREMENT:
                return Attempt(
                    phase="climb", start=start, start_u=start_u, u=target, tactic=state.tactic,
                    length=self.epochs_per_rate,
                )
        return self._next_final(state, num_left)

    def _next_final(self, state: FrontierState, num_left: int) -> Attempt | None:
        finals = [attempt for attempt in state.attempts if attempt.phase == "final"]
        accepted = state.accepted
        highest = u_of(state.problem.maximal_rate)
        if not accepted:
            return None
        length = num_left if num_left <= 8 else max(4, (3 * num_left + 4) // 5)
        base = max(accepted, key=lambda each: each.u)
        refused = [each for each in state.attempts if not each.accepted and each.u > base.u + 1e-9 and each.phase != "race"]
        # A long training recovers more than the short trials of the climb did.
        here = self._estimate(state, base) if base.phase == "final" else state.in_drops(base.last.margin)
        missing = here - self._reserve(state, base) + (LONG_TRAINING_BONUS if not finals else 0.0)
        slope = 2.0
        if refused:
            near = min(refused, key=lambda each: (each.u, -each.best_margin))
            slope = max((here - state.in_drops(near.best_margin)) / (near.u - base.u), 1.0)
        rise = min(max(missing / slope, 0.0), 0.5)
        if finals and not finals[-1].accepted:
            rise = 0.0
        failed = [each.u for each in finals if not each.accepted]
        u = min(base.u + rise, highest, *(f - 0.02 for f in failed))
        if finals and u < base.u + 0.02 and base.phase == "final":
            return None
        if u < base.u:
            below = [each for each in accepted if each.u <= u + 1e-9]
            if not below:
                return None
            base = max(below, key=lambda each: each.u)
            u = base.u
        return Attempt(
            phase="final", start=base.last.checkpoint, start_u=base.u, u=u, tactic=base.tactic, length=length
        )

    def _rankings(self, problem: Problem) -> tuple[Ranking, ...]:
        allowed = self.tactics.rankings(problem.rankings)
        return tuple(each for each in allowed if each.importance != "taylor" or problem.can_sample) or allowed


def u_of(rate: float) -> float:
    """Returns -ln(1 - rate), the log of the size ratio."""
    return -math.log1p(-rate)

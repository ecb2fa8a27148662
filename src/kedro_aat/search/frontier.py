"""The default strategy: it climbs from one compressed model to the next, then polishes the last.

Rates are handled as u = -ln(1 - rate), the log of the size ratio, in which equal increments are equal factors in size;
margins are handled in tolerated drops.

The climb: a trial compresses the last accepted model further, and trains it with a new optimizer at a learning rate
that falls to zero, until an epoch is within budget. After an easy success the increment grows. After a failure that
came near, the trial goes on with another tactic: first another learning rate, then another ranking. Otherwise, and
where trials stand still far below the budget, the increment shrinks.

The polish: the rest of the epochs trains the last accepted model at a falling learning rate, in which the rate rises
as long as the margin expected at the end, estimated from all of its epochs, exceeds a reserve. The reserve grows with
the standard error and with the number of models to choose from, so that no lucky epoch decides what is returned.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kedro_aat.search import hopeless, polish
from kedro_aat.search.attempts import FAR, Attempt, FrontierState, u_of
from kedro_aat.search.policy import Count, Epoch, EpochResult, Problem, Stop, Trial, updated
from kedro_aat.search.tactics import LR_RATIO, Ranking, Tactic, Tactics
from kedro_aat.validated import Settings

# Half a decade above the owner's learning rate, which is right for fine-tuning, but too low to recover from a cut.
FIRST_LR_FACTOR = LR_RATIO
# The increment after an accepted trial, by the number of its epochs.
GROWTH = {1: 2.0, 2: 1.4, 3: 1.0}
GROWTH_IF_SLOW = 0.7
# Epochs of the race at most.
MAXIMAL_RACERS = 4
# Limits of the factor on the increment after a failure.
LEAST_SHRINKING, MOST_SHRINKING = 0.8, 0.35
# A smaller increment ends the climb. In u: about 4 % in size.
LEAST_INCREMENT = 0.04
# Trials become twice as long, up to a limit, if one failed above this margin, or above the second while none was
# accepted yet.
STRETCHED, STRETCHED_IF_FIRST = -2.0, -8.0
LONGEST = 12
# A failed trial above this margin came near, so that another tactic may succeed.
NEAR = FAR
# A failed trial above this margin is continued: what it has learned outweighs a new start.
RESUMABLE = -3.0
# Other tactics that are tried after a near failure.
NUM_CHALLENGERS = 2
# A learning rate that was this much behind a lower one at the same rate is too high.
BEHIND = 1.5
# The epoch of the race is too short for high learning rates, unless one destroys the model.
BEHIND_IN_RACE = 15.0
# Share of the epochs for the polish.
POLISH_SHARE, POLISH_SHARE_IF_REGROWING = 0.4, 0.5

# Settings of version 0.1 that have no meaning any more.
OBSOLETE = ("first_step", "lowest_trial_lr", "polish_lr", "lowest_polish_lr")

logger = logging.getLogger(__name__)


class Frontier(Settings):
    """Searches for the highest rate within budget, and uses all epochs that it may use.

    Attributes:
        maximal_total_epochs: Limit on the epochs; one of a cut model counts as what it costs.
        acceptance_z: Share of the luck that is kept in reserve: the best of k models looks about sqrt(2 ln k) standard
            errors better than it is. Larger numbers return lower rates that truly break the budget less often; 0 keeps
            no reserve. None is 0.5 if the standard error is known or there are 5,000 validation examples, and 1 if not.
        epochs_per_rate: Epochs of a trial of the climb, unless it is accepted or given up before.
        num_path_steps: Number of equal increments by which the rate rises within the first epoch of a trial.
        polish_share: Share of the epochs that is reserved for the polish. None is 0.5 for single weights, which gain
            most from it, and 0.4 for filters.
        tactics: What the search may try beside rates.
    """

    kind: Literal["frontier"] = "frontier"
    maximal_total_epochs: Count = 60
    acceptance_z: Annotated[float, Field(ge=0, le=100)] | None = None
    epochs_per_rate: Annotated[int, Field(ge=1, le=10_000)] = 3
    num_path_steps: Annotated[int, Field(ge=1, le=10_000)] = 1
    polish_share: Annotated[float, Field(ge=0, le=1)] | None = None
    tactics: Tactics = Tactics()

    @model_validator(mode="before")
    @classmethod
    def _without_obsolete(cls, data: Any) -> Any:
        """Leaves out settings of version 0.1 that have no meaning any more."""
        found = [name for name in OBSOLETE if isinstance(data, Mapping) and name in data]
        if not found:
            return data
        names = ", ".join(found)
        logger.warning("search: %s no longer matter; remove them. `tactics` says what the search may try.", names)
        return {name: value for name, value in data.items() if name not in found}

    def initial(self, problem: Problem) -> FrontierState:
        """Returns the state before the first validation of the model."""
        tactic = Tactic(
            ranking=self._rankings(problem)[0],
            lr_factor=self.tactics.first_lr_factor(FIRST_LR_FACTOR),
            distill=(self.tactics.distillation or (True,))[0],
        )
        return FrontierState(problem=problem, increment=u_of(problem.first_target_rate), tactic=tactic)

    def ask(self, state: FrontierState) -> Epoch | Stop:
        """Returns the next epoch, or ends the search."""
        return self._decide(state)[1]

    def tell(self, state: FrontierState, result: EpochResult) -> FrontierState:
        """Adds a result to the state in which the search was while its epoch ran."""
        decided, _ = self._decide(state)
        changes: dict[str, Any] = {}
        if result.trained:
            changes = {"num_epochs": decided.num_epochs + 1, "spent": decided.spent + result.cost}
        accepted = result.fully_compressed and result.margin >= 0
        if accepted and decided.first is not None:
            changes["candidates"] = (*decided.candidates, Trial.from_result(result))
        if decided.polish_epochs is not None:
            results = (*decided.polish, result)
            if accepted and result.requested_rate > 0:
                expected, _ = polish.expected_at_end(decided, results)
                reserve = polish.reserve(decided, results, self.acceptance_z)
                candidate, before = Trial.from_result(result), decided.returned_before
                is_larger = before is None or candidate.merit >= before.merit
                has_margin = decided.in_drops(result.margin) >= polish.RESERVE_OF_ONE_EPOCH * reserve
                if expected >= reserve and has_margin and is_larger:
                    changes["safe"] = candidate
            return updated(decided, **changes, polish=results)
        if decided.current is None:
            return updated(decided, **changes, first=result)
        attempt = updated(decided.current, results=(*decided.current.results, result))
        if accepted:
            candidate = Trial.from_result(result)
            reserve = polish.RESERVE_OF_ONE_EPOCH * polish.reserve(decided, attempt.results, self.acceptance_z)
            is_larger = decided.safe is None or candidate.merit >= decided.safe.merit
            if is_larger and decided.in_drops(result.margin) >= reserve:
                changes["safe"] = candidate
        return updated(decided, **changes, current=attempt)

    def load(self, state: str) -> FrontierState:
        """Reads a state from its JSON."""
        return FrontierState.model_validate_json(state)

    def with_more_epochs(self, state: FrontierState) -> FrontierState:
        """Returns the state from which a search goes on that is given more epochs than it was begun with.

        A search that has reached the highest rate has nothing left to find.
        """
        is_done = state.is_at_top and state.best is not None and not state.wants_accuracy
        return state if state.polish_epochs is None or is_done else state.reopened()

    # The next epoch

    def _decide(self, state: FrontierState) -> tuple[FrontierState, Epoch | Stop]:
        """Returns the next epoch or the end, and the state of the search while it is in progress."""
        if state.first is None:
            path = (0.0,) if state.problem.initial_rate > 0 else None
            return state, Epoch(train=False, rate_path=path, new_optimizer=True)
        num_left = self._num_left(state)
        if state.polish_epochs is not None and len(state.polish) == 1 and not state.is_at_top:
            state = updated(state, polish_epochs=1 + num_left)  # only now is known what an epoch at this rate costs
        if state.polish_epochs is not None:
            is_long = len(state.polish) >= state.polish_epochs and state.is_at_top and state.best is not None
            if num_left <= 0 or is_long:
                return state, self._ending(state)
            fails = polish.fails(state, self.acceptance_z)
            following = self._start_polish(state, num_left) if fails else (state, self._next_of_polish(state))
            return following if self._affords(state, following[1]) else (state, self._ending(state))
        if (attempt := state.current) is not None:
            accepted = attempt.is_within_budget
            if num_left > 0 and not accepted and not self._is_over(state, attempt):
                lr_scale, lr_scale_at_end = attempt.lr_scales
                return state, Epoch(lr_scale=lr_scale, lr_scale_at_end=lr_scale_at_end)
            state = self._with_ended(state, updated(attempt, accepted=accepted))
        if num_left <= 0:
            return state, self._ending(state)
        next_attempt = self._next_of_climb(state)
        if next_attempt is None:
            return self._start_polish(state, num_left)
        lr_scale, lr_scale_at_end = next_attempt.lr_scales
        epoch = Epoch(
            rate_path=self._path(state.problem, next_attempt.start_u, next_attempt.u),
            lr_scale=lr_scale,
            lr_scale_at_end=lr_scale_at_end,
            start_from=next_attempt.start,
            new_optimizer=True,
            tactic=next_attempt.tactic,
        )
        return updated(state, current=next_attempt), epoch

    def _left(self, state: FrontierState) -> float:
        """Epochs of the uncompressed model that may still be spent, with a margin for rounding."""
        return self.maximal_total_epochs - state.spent + 1e-9

    def _ending(self, state: FrontierState) -> Stop:
        returned = state.returned.checkpoint if state.returned else None
        polished = polish.tactic(state, self._rankings(state.problem), returned)
        return state.stop(state.reason(self.maximal_total_epochs, polish.lr_scale(state, 0), polished))

    def _affords(self, state: FrontierState, epoch: Epoch | Stop) -> bool:
        """Whether what is left is enough for an epoch, which costs at most what one at its rate or a lower one did."""
        if self._left(state) >= 1 or isinstance(epoch, Stop) or epoch.rate_path is None:
            return True
        rate = min(epoch.rate_path)
        costs = (result.cost for result in state.judged if result.trained and result.requested_rate <= rate)
        return self._left(state) >= min(costs, default=1.0)

    def _num_left(self, state: FrontierState) -> int:
        """Number of epochs that can still be trained, if each costs as much as the last one."""
        left = self._left(state)
        # Only the next epoch of a polish is known to cost no more than the last one.
        is_known = state.polish and not state.polish[-1].failed and self.num_path_steps == 1
        return math.floor(left / state.latest_cost) if left >= (state.latest_cost if is_known else 1.0) else 0

    def _num_reserved(self, problem: Problem) -> float:
        """Epochs that are reserved for the polish, in epochs of the uncompressed model."""
        usual = POLISH_SHARE_IF_REGROWING if problem.regrows else POLISH_SHARE
        return self.maximal_total_epochs * (usual if self.polish_share is None else self.polish_share)

    def _path(self, problem: Problem, start: float, end: float) -> tuple[float, ...]:
        """Returns rates from one u to another, both limited to the rates of the problem."""
        num = self.num_path_steps
        path = [start + (end - start) * (index + 1) / num for index in range(num)]
        lowest = problem.minimal_rate if problem.goal == "size" else 0.0
        rates = (max(-math.expm1(-u), lowest) for u in path)
        return tuple(rate if rate < problem.maximal_rate - 1e-12 else problem.maximal_rate for rate in rates)

    def _is_over(self, state: FrontierState, attempt: Attempt) -> bool:
        last, num_done = attempt.last, len(attempt.results)
        if last.failed or last.early_stop or num_done >= attempt.length:
            return True
        return hopeless.is_hopeless(state, attempt, lowest=NEAR if state.accepted else STRETCHED_IF_FIRST)

    # The climb

    def _with_ended(self, state: FrontierState, attempt: Attempt) -> FrontierState:
        """Returns the state after a trial, with the increment and the tactic of the next one."""
        state = updated(state, attempts=(*state.attempts, attempt), current=None)
        if attempt.accepted and not attempt.race:
            growth = GROWTH.get(len(attempt.results), GROWTH_IF_SLOW)
            return updated(state, increment=state.increment * growth, tactic=attempt.tactic)
        if attempt.race:
            return self._with_raced(state)
        failures = state.failures
        best = max(failures, key=lambda each: each.merit)
        if len(failures) <= NUM_CHALLENGERS and (challenger := self._challenger(state, failures, best)) is not None:
            return updated(state, tactic=challenger)
        near = STRETCHED if state.accepted else STRETCHED_IF_FIRST
        length = 2 * best.length
        is_longest = best.length == max(each.length for each in failures)
        if state.in_drops(best.best_margin) > near and is_longest and length <= LONGEST and not state.problem.regrows:
            return updated(state, trial_epochs=length, tactic=best.tactic)
        base = state.accepted[-1].last.margin if state.accepted else state.problem.tolerated_drop
        spare, missing = state.in_drops(base), -state.in_drops(best.best_margin)
        # The margin falls faster and faster as the rate rises.
        factor = math.sqrt(max(spare, 0.0) / max(spare + missing, 1e-9))
        factor = min(max(factor, MOST_SHRINKING), LEAST_SHRINKING)
        # The highest rate may have limited what the trial was to rise.
        increment = min(state.increment, best.u - state.start[1])
        return updated(state, increment=increment * factor, tactic=best.tactic, trial_epochs=best.length)

    def _with_raced(self, state: FrontierState) -> FrontierState:
        """Returns the state after an epoch of the race, which follows the learning rates uphill from the usual one.

        Where all learning rates fail alike, the other rankings race; where they do as well, the climb begins lower.
        """
        racers = state.attempts
        best = max(racers, key=lambda each: each.merit)
        known = [each.tactic for each in racers]
        fails_alike = hopeless.is_one_level(state, racers)
        rankings = (updated(best.tactic, ranking=ranking) for ranking in self._rankings(state.problem))
        others = [each for each in rankings if each not in known]
        if fails_alike and others and len(racers) < MAXIMAL_RACERS:
            return updated(state, tactic=others[0])
        directions: tuple[Literal[-1, 1], ...] = (1, -1) if state.in_drops(best.best_margin) <= NEAR else (1,)
        for direction in directions:
            neighbor = self._with_lr(best.tactic, direction)
            if best.last.margin >= 0 or neighbor is None or neighbor in known or len(racers) >= MAXIMAL_RACERS:
                continue
            if direction < 0 or neighbor.lr_factor < state.least_diverged:
                return updated(state, tactic=neighbor)
        if fails_alike:  # the increment shrinks as after a trial that missed the budget by far
            return updated(state, tactic=best.tactic, increment=state.increment * MOST_SHRINKING, raced=True)
        won = best.last.margin >= 0
        attempts = tuple(updated(each, race=each is not best, accepted=won and each is best) for each in racers)
        attempts = (*(each for each in attempts if each.race), *(each for each in attempts if not each.race))
        increment = state.increment * (GROWTH[1] if won else 1.0)
        tactic = (self._with_lr(best.tactic, -1) if best.diverged else None) or best.tactic
        return updated(state, attempts=attempts, tactic=tactic, increment=increment, raced=True)

    def _challenger(self, state: FrontierState, failures: tuple[Attempt, ...], best: Attempt) -> Tactic | None:
        """Returns the next tactic to try at the same place; None if a lower rate is more promising."""
        tactic, known = best.tactic, [each.tactic for each in failures]
        lower = self._with_lr(tactic, -1)
        is_proven = any(each.tactic.lr_factor >= tactic.lr_factor for each in state.accepted)
        may_flip = state.problem.can_distill and len(self.tactics.distillation or (True, False)) > 1
        flipped = [updated(tactic, distill=not tactic.distill)] * may_flip
        rankings = self._rankings(state.problem)
        num_tried = {ranking: sum(each.tactic.ranking == ranking for each in state.attempts) for ranking in rankings}
        others = [updated(tactic, ranking=ranking) for ranking in sorted(rankings, key=lambda each: num_tried[each])]
        if state.in_drops(best.best_margin) <= NEAR:  # if anything but the rate, it is the learning rate
            options = [lower] if lower and not is_proven else []
            if state.is_far_again(best, NEAR):  # or it is neither: a teacher can make a rare class disappear
                options = [*flipped, *([] if state.problem.regrows else others), *options]
            return next((option for option in options if option not in known), None)
        higher, downhill = self._with_lr(tactic, 1), [lower] if lower else []
        first = [higher] if higher else []
        if higher and higher.lr_factor >= state.least_too_high(BEHIND, BEHIND_IN_RACE):
            first = [] if state.accepted else downhill  # nothing has shown yet that this learning rate is low enough
        options = [*first, *others, *flipped, *downhill]
        return next((option for option in options if option not in known), None)

    def _with_lr(self, tactic: Tactic, direction: Literal[-1, 1]) -> Tactic | None:
        factor = self.tactics.lr_neighbor(tactic.lr_factor, direction)
        return None if factor is None else updated(tactic, lr_factor=factor)

    def _next_of_climb(self, state: FrontierState) -> Attempt | None:
        """Returns the next trial of the climb; None if it is over."""
        start, start_u = state.start
        highest = u_of(state.problem.maximal_rate)
        num_left = (self.maximal_total_epochs - self._num_reserved(state.problem) - state.spent) / state.latest_cost
        if num_left <= 0 or start_u >= highest or state.increment < LEAST_INCREMENT:
            return None
        lowest = 0.0 if state.wants_accuracy else u_of(state.problem.minimal_rate)
        target = min(max(start_u + state.increment, lowest), highest)
        best = max(state.failures, key=lambda each: each.merit, default=None)
        is_same = best is not None and best.u == target and best.tactic.ranking == state.tactic.ranking
        if best is not None and is_same and state.in_drops(best.last.margin) > RESUMABLE:
            start, start_u = best.last.checkpoint, best.u
        length = max(self.epochs_per_rate, min(state.trial_epochs, math.ceil(num_left))) if state.raced else 1
        known = [(each.start, each.u, each.tactic, each.length) for each in state.attempts if not each.race]
        if len(state.failures) > NUM_CHALLENGERS and (start, target, state.tactic, length) in known:
            return None  # no lower rate is allowed
        return Attempt(start=start, start_u=start_u, u=target, tactic=state.tactic, length=length, race=not state.raced)

    def _rankings(self, problem: Problem) -> tuple[Ranking, ...]:
        allowed = self.tactics.rankings(problem.rankings)
        return tuple(each for each in allowed if each.importance != "taylor" or problem.can_sample) or allowed

    # The polish

    def _start_polish(self, state: FrontierState, num_left: int) -> tuple[FrontierState, Epoch]:
        """Starts from the best accepted model; without one, from the trial that came nearest."""
        assert state.first is not None
        start, start_u, tactic, u = state.first.checkpoint, 0.0, state.tactic, 0.0
        highest = u_of(state.problem.maximal_rate)
        before, lower = polish.begun_anew(state, self.acceptance_z) if state.polish else (math.inf, 0.0)
        below = [each for each in state.accepted if each.u < before]
        nearest = state.nearest
        if not below and nearest is not None and nearest.u < before:
            below = [nearest] if state.in_drops(nearest.last.margin) > RESUMABLE else []
        if below:
            base = below[-1]
            start, start_u, tactic = base.last.checkpoint, base.u, base.tactic
            if state.failures and state.failures[0].u > base.u:  # it knows more of the learning rates up there
                best = max(state.failures, key=lambda each: each.merit)
                if not state.problem.regrows:
                    tactic = best.tactic
                elif state.in_drops(best.best_margin) > NEAR:  # not of the teacher: this one has succeeded
                    tactic = updated(tactic, lr_factor=best.tactic.lr_factor)
        elif nearest is not None:  # the climb found nothing, not even far below its first target
            u, tactic = min(each.u for each in state.attempts) / 2, nearest.tactic
        if state.wants_accuracy:
            u = u_of(state.problem.minimal_rate)
        elif state.polish:
            u = lower
        if state.polish_epochs is not None:
            num_left = min(num_left, state.polish_epochs - len(state.polish))
        elif below and below[-1].accepted and start_u >= highest and not state.wants_accuracy:
            # It can only become safer.
            num_left = min(num_left, math.ceil(self._num_reserved(state.problem) / state.latest_cost))
        slope = state.slope_above(self.epochs_per_rate)
        state = updated(state, polish=(), polish_epochs=max(num_left, 1), slope=slope, tactic=tactic)
        epoch = Epoch(
            rate_path=self._path(state.problem, start_u, max(u, start_u))[-1:],
            lr_scale=polish.lr_scale(state, 0),
            start_from=start,
            new_optimizer=True,
            tactic=tactic,
        )
        return state, epoch

    def _next_of_polish(self, state: FrontierState) -> Epoch | Stop:
        last = state.polish[-1]
        if last.early_stop:
            return state.stop("The early-stopping function ended the polish.")
        lr_scale = polish.lr_scale(state, len(state.polish))
        tactic = polish.tactic(state, rankings := self._rankings(state.problem))
        if (kept := polish.to_restore(state)) is not None:
            changed = None if tactic == polish.tactic(state, rankings, last.checkpoint) else tactic
            rate = kept.requested_rate
            return Epoch(rate_path=(rate,), lr_scale=lr_scale, start_from=kept.checkpoint, tactic=changed)
        path = self._path(state.problem, u_of(last.requested_rate), polish.next_u(state, self.acceptance_z))
        if last.failed:  # the model is back in the state before, which may have been that of another tactic
            return Epoch(rate_path=path[-1:], lr_scale=lr_scale, new_optimizer=True, tactic=tactic)
        return Epoch(rate_path=path, lr_scale=lr_scale)

"""The polish of the default strategy: how its learning rate falls, and when its rate rises. Margins are in drops."""

from __future__ import annotations

import itertools
import math
from array import array
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from kedro_aat.search.attempts import FrontierState, u_of
from kedro_aat.search.beliefs import expectation
from kedro_aat.search.growing import Growing
from kedro_aat.search.policy import EpochResult, Trial, updated
from kedro_aat.search.tactics import Ranking, Tactic

# Largest reserve: more would leave nothing of the budget.
LARGEST_RESERVE = 0.8
# Share of the reserve that the returned epoch itself keeps; all epochs of the polish together keep the whole.
RESERVE_OF_ONE_EPOCH = 0.5
# `acceptance_z` by default. On simulated problems with 10,000 validation examples, the first breaks 13% of the budgets.
# The scatter between epochs stands in for a standard error that is unknown, but with few examples it is too small,
# since an epoch shares most of its luck with the next one. Few are fewer than MANY_EXAMPLES, or an unknown number.
USUAL_Z, CAUTIOUS_Z = 0.5, 1.0
MANY_EXAMPLES = 5000
# A polish is begun anew if at least this many epochs are left.
SHORTEST_POLISH = 4
# It then begins at least this much lower, in u, and as many times lower as the slope says: a slope that was measured on
# short trials is too steep.
LEAST_FALL = 0.2
FALL_FACTOR = 2.0
# Of positions that were computed from rates.
ROUNDING = 1e-9

# So many epochs in a row below this margin, in drops, are not recovered from.
NUM_LOST, LOST = 3, -3.0
# After each rise that destroyed the model and was undone, the largest rise halves. After so many undone there are no
# more: each costs NUM_LOST epochs, and the next could gain no more than 2 % in size.
MOST_UNDONE = 3

# Learning rates of the polish, as shares of that of its tactic.
POLISH_LR, LOWEST_POLISH_LR = 0.3, 0.01
# If accuracy is the goal, the polish has more to recover. Of 0.2, 0.5 and 1, the best on small tasks, by little.
RECOVERY_LR = 0.5
# Share of the distance to the intended rate that one epoch of the polish covers.
STEERING = 0.5
# The largest rise per epoch of the polish, in u. It shrinks to nothing over the second half: a rise causes damage that
# takes epochs to recover from, and a fall causes none.
MAXIMAL_RISE = 0.15
# The largest fall per epoch of the polish, in u. A climb that ended at 200 times the size has far to fall.
MAXIMAL_FALL = 0.3
# The fall after an epoch that failed.
FALL_IF_FAILED = 0.15
# A polish that has kept no model, and does not expect to, when this share of it is over, begins anew lower.
HALF = 0.5


@dataclass
class _Judged:
    """Numbers of the epochs of a polish that did not fail: epoch, u, and margin in metric units.

    Epochs of a model that is destroyed say nothing of the one that is polished when it has recovered, or was undone.

    Attributes:
        lost: Margin, in metric units, below which a model is destroyed.
        num_undone: How often a rise that had destroyed it was undone.
        answer: What `expected_at_end` was asked for last, and the answer; None if epochs were added since.
    """

    lost: float = -math.inf
    num_undone: int = 0
    num_epochs: int = 0
    epochs: array[float] = field(default_factory=lambda: array("d"))
    u: array[float] = field(default_factory=lambda: array("d"))
    margins: array[float] = field(default_factory=lambda: array("d"))
    answer: tuple[object, tuple[float, float]] | None = None

    def add(self, result: EpochResult) -> Self:
        """Adds an epoch, in place."""
        if not result.failed:
            u = u_of(result.requested_rate)
            self.num_undone += bool(self.u) and u < self.u[-1] and self.margins[-1] < self.lost
            if result.margin >= self.lost and min(self.margins, default=0.0) < self.lost:
                self._forget_lost()
            self.epochs.append(self.num_epochs)
            self.u.append(u)
            self.margins.append(result.margin)
        self.num_epochs += 1
        self.answer = None
        return self

    def _forget_lost(self) -> None:
        is_kept = [margin >= self.lost for margin in self.margins]
        for name in ("epochs", "u", "margins"):
            setattr(self, name, array("d", itertools.compress(getattr(self, name), is_kept)))


_JUDGED: Growing[EpochResult, _Judged] = Growing(_Judged, _Judged.add)
_KNOWS_ERROR: Growing[EpochResult, bool] = Growing(
    lambda _: False, lambda is_known, result: is_known or result.standard_error is not None
)


def lr_scale(state: FrontierState, epoch: int) -> float:
    """Returns the learning-rate scale of an epoch of the polish, from 0 on; it falls geometrically."""
    share, highest = min(epoch / _last_epoch(state), 1.0), _highest_lr(state)
    return float(state.tactic.lr_factor * highest * (LOWEST_POLISH_LR / highest) ** share)


def _last_epoch(state: FrontierState) -> int:
    return max(1, (state.polish_epochs or 1) - 1)


def _highest_lr(state: FrontierState) -> float:
    return RECOVERY_LR if state.wants_accuracy else POLISH_LR


def next_u(state: FrontierState, acceptance_z: float | None) -> float:
    """Returns the position of the next epoch of the polish, after at least one."""
    last, num_done = state.polish[-1], len(state.polish)
    u = u_of(last.requested_rate)
    if state.wants_accuracy:
        return u
    if last.failed:
        return max(u - FALL_IF_FAILED, 0.0)
    expected, slope = expected_at_end(state, state.polish)
    increment = STEERING * (expected - reserve(state, state.polish, acceptance_z)) / slope
    if increment < 0:
        return u - _fall(state, -increment, acceptance_z) if state.problem.regrows else u
    if u > 0 and not (state.problem.regrows or state.returned_before or _has_kept(state)):
        return u  # a rise that destroys the model could not be undone
    share_left = max(1 - num_done / (state.polish_epochs or 1), 0.0)  # if epochs became cheaper, there are more
    num_undone = _judged(state, state.polish).num_undone
    if num_undone >= MOST_UNDONE:
        return u
    return u + min(increment, MAXIMAL_RISE * 0.5**num_undone) * min(1.0, 2 * share_left)


def _fall(state: FrontierState, intended: float, acceptance_z: float | None) -> float:
    """Returns by how much the next epoch lowers the rate, if the reserve is not expected.

    As long as the polish has kept no model, it falls fast enough to be where it is sure of one when half of it is over,
    but not below the model that is returned otherwise.
    """
    if _has_kept(state):
        return min(intended, MAXIMAL_FALL)
    u = u_of(state.polish[-1].requested_rate)
    num_left = max(HALF * _last_epoch(state) + 1 - len(state.polish), 1.0)
    fall = max(intended, (u - surely(state, acceptance_z)) / num_left)
    lowest = 0.0 if state.safe is None else u_of(state.safe.requested_rate)
    return min(fall, MAXIMAL_FALL, max(u - lowest, 0.0))


def surely(state: FrontierState, acceptance_z: float | None) -> float:
    """Returns a position at which the margin should be at least the reserve, at most that of the latest epoch.

    It is where the chord from the last model that had its reserve, else the uncompressed one, to what is expected now
    has the reserve. The margin falls faster and faster as the rate rises, so it is above the chord.
    """
    u, kept = u_of(state.polish[-1].requested_rate), state.safe
    u_kept, margin = (0.0, 1.0) if kept is None else (u_of(kept.requested_rate), state.in_drops(kept.margin))
    expected, _ = expected_at_end(state, state.polish)
    needed = reserve(state, state.polish, acceptance_z)
    if u <= u_kept or expected >= needed:
        return u
    return u_kept + (u - u_kept) * max(margin - needed, 0.0) / max(margin - expected, 1e-9)


def tactic(state: FrontierState, rankings: tuple[Ranking, ...], until: int | None = None) -> Tactic:
    """Returns how the polish trains: after a rise that destroyed the model, the next one removes by the next ranking.

    Args:
        state: State of the search.
        rankings: The rankings that are allowed.
        until: The checkpoint of an epoch of the polish; None for the next epoch.
    """
    results = tuple(result for result in state.polish if until is None or result.checkpoint <= until)
    kept = to_restore(state) if until is None and state.polish else None
    is_undone = kept is not None and kept.requested_rate < state.polish[-1].requested_rate
    num_undone = _judged(state, results).num_undone + is_undone
    begun = state.tactic
    if not num_undone or begun.ranking not in rankings:
        return begun
    return updated(begun, ranking=rankings[(rankings.index(begun.ranking) + num_undone) % len(rankings)])


def fails(state: FrontierState, acceptance_z: float | None) -> bool:
    """Whether the polish, half over, has kept no model, and is not expected to; a new one then begins lower."""
    num_epochs = state.polish_epochs or 1
    below = u_of(state.polish[0].requested_rate) - LEAST_FALL
    is_early = len(state.polish) < HALF * num_epochs or num_epochs - len(state.polish) < SHORTEST_POLISH
    if is_early or below <= u_of(state.problem.minimal_rate):
        return False
    # At a given rate there is no lower one. What regrows falls, unless a lower model is known that has its reserve.
    falls = state.problem.regrows and state.safe is None
    if state.wants_accuracy or falls or all(result.failed for result in state.polish):
        return False
    expected, _ = expected_at_end(state, state.polish)
    return not _has_kept(state) and expected < reserve(state, state.polish, acceptance_z)


def begun_anew(state: FrontierState, acceptance_z: float | None) -> tuple[float, float]:
    """Returns below which position a model is for a polish that begins anew, and at which position it begins."""
    below = u_of(state.polish[0].requested_rate) - LEAST_FALL
    if state.problem.regrows:
        u = min(below, surely(state, acceptance_z))
        return u + ROUNDING, u
    expected, slope = expected_at_end(state, state.polish)
    missing = reserve(state, state.polish, acceptance_z) - expected
    return below, max(below - max(FALL_FACTOR * missing / slope - LEAST_FALL, 0.0), 0.0)


def to_restore(state: FrontierState) -> Trial | None:
    """Returns the model that the polish had kept, if a rise has destroyed it since; else None."""
    kept = state.safe
    if kept is None or state.problem.regrows or not _has_kept(state):
        return None
    latest = [each for each in state.polish[-NUM_LOST:] if each.checkpoint > kept.checkpoint]
    # A failed epoch is undone by itself.
    is_lost = all(not each.failed and state.in_drops(each.margin) < LOST for each in latest)
    return kept if is_lost and len(latest) == NUM_LOST else None


def _has_kept(state: FrontierState) -> bool:
    return state.safe is not None and state.safe.checkpoint >= state.polish[0].checkpoint


def expected_at_end(state: FrontierState, results: tuple[EpochResult, ...]) -> tuple[float, float]:
    """Returns the margin at the latest rate when the learning rate has fallen, and the loss of margin per u there.

    Args:
        state: State of the search.
        results: All epochs of the polish so far.
    """
    judged, regrows = _judged(state, results), state.problem.regrows
    asked = (state.polish_epochs, state.tactic.lr_factor, state.slope, state.problem)
    if judged.answer is None or judged.answer[0] != asked:
        share = np.minimum(np.array(judged.epochs) / _last_epoch(state), 1.0)
        lr = _highest_lr(state) * (LOWEST_POLISH_LR / _highest_lr(state)) ** share
        margins = state.all_in_drops(np.array(judged.margins))
        error = state.standard_error(results)
        judged.answer = (
            asked,
            expectation(np.array(judged.u), lr - LOWEST_POLISH_LR, margins, error, state.slope, regrows=regrows),
        )
    return judged.answer[1]


def _judged(state: FrontierState, results: tuple[EpochResult, ...]) -> _Judged:
    return _JUDGED.of(results, -math.inf if state.problem.regrows else LOST * state.unit)


def reserve(state: FrontierState, results: tuple[EpochResult, ...], acceptance_z: float | None) -> float:
    """Returns what the best of all models so far looks better than it is, as far as `acceptance_z` accounts for it.

    Args:
        state: State of the search.
        results: Epochs of the model that is judged.
        acceptance_z: Share of that luck to account for; None for the default.
    """
    if acceptance_z is None:
        is_known = _KNOWS_ERROR.of(results)
        is_large = (state.problem.num_validation or 0) >= MANY_EXAMPLES
        acceptance_z = USUAL_Z if is_known or is_large else CAUTIOUS_Z
    num_looks = 1 + len(state.accepted)
    luck = math.sqrt(2 * math.log(1 + num_looks)) * state.standard_error(results)
    return min(acceptance_z * luck, LARGEST_RESERVE)

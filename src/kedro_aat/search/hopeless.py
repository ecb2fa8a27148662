"""When a trial is given up, and when a whole place is. Margins are in drops.

A network that has lost a class, or names only one, has about the same metric after each epoch, whatever its learning
rate is.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import pairwise

from kedro_aat.search.attempts import FAR, Attempt, FrontierState
from kedro_aat.search.beliefs import DRAWN_ANEW

# Margins in the first, the second and the last third of a trial below which it is given up, if another was accepted.
HOPELESS = (-15.0, -10.0, -6.0)
# A trial is given up if it is this much behind another one with the same learning rate after as many epochs.
BEHIND = 1.5
# A trial is not said to stand still before its learning rate has fallen to half: a high one may hide what it learned.
LEAST_SHARE_DONE = 0.5
# Trials whose margins differ by less than this share of what they miss have the same level. In U-Nets that had lost a
# class (shapes_unet), learning rates, rankings and rates changed it by 0.04 at most; in networks that still learned
# something (leaves_unet, cells_unet), half a decade of the learning rate by 0.15 at least.
SAME_LEVEL = 0.1


def is_hopeless(state: FrontierState, attempt: Attempt, *, lowest: float) -> bool:
    """Whether a trial of the climb is to be given up: by its margin, as it stands still, or behind another tactic.

    Args:
        state: State of the search.
        attempt: A trial in progress, whose last epoch did not fail.
        lowest: The margin from which a failed trial is of use.
    """
    latest, num_done = state.in_drops(attempt.last.margin), len(attempt.results)
    third = min(len(HOPELESS) * num_done // (attempt.length + 1), len(HOPELESS) - 1)
    rivals = [
        state.in_drops(each.results[num_done - 1].margin)
        for each in state.failures
        if (each.u, each.start, each.tactic.lr_factor) == (attempt.u, attempt.start, attempt.tactic.lr_factor)
        and len(each.results) >= num_done
    ]
    # Before the first success only what stands still is, except that single weights have the polish.
    may_be_too_low = bool(state.accepted) or state.problem.regrows
    is_too_low = may_be_too_low and latest < HOPELESS[third]
    is_behind = latest < max(rivals, default=-math.inf) - BEHIND
    return is_too_low or is_behind or _stands_still(state, attempt, lowest)


def _stands_still(state: FrontierState, attempt: Attempt, lowest: float) -> bool:
    """Whether it will end below a margin, even if each epoch left gains as much as the better of the last two."""
    num_done = len(attempt.results)
    if num_done < 2 or num_done < LEAST_SHARE_DONE * attempt.length:
        return False
    margins = [state.in_drops(each.margin) for each in attempt.results[-3:]]
    gain = max(later - before for before, later in pairwise(margins))
    # What neighboring epochs on the same examples do not share.
    noise = math.sqrt(2 * DRAWN_ANEW) * state.standard_error(attempt.results)
    return margins[-1] + (attempt.length - num_done) * max(gain, 0.0) + noise < lowest


def is_one_level(state: FrontierState, attempts: Collection[Attempt]) -> bool:
    """Whether at least two trials failed far below the budget, by about the same."""
    margins = [state.in_drops(each.best_margin) for each in attempts]
    return len(margins) > 1 and max(margins) <= FAR and max(margins) - min(margins) <= SAME_LEVEL * -max(margins)

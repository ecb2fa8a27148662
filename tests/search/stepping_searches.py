"""Searches of the stepping strategies on margins that a test lists."""

from __future__ import annotations

from typing import Any

from kedro_aat.search import Policy
from kedro_aat.search.policy import Epoch, Problem
from kedro_aat.testing.simulated_search import Answer, Search, World, search

# A margin within budget, after which the rate goes up.
UP = 0.01
# A margin that is not, after which it goes down.
DOWN = -0.01

# No initial phase and one epoch per rate, so that the epochs of a table are its rates.
SETTINGS: dict[str, Any] = {
    "initial_training_phase_epochs": 0,
    "patience_epochs": 1,
    "initial_compression_rate_step": 0.1,
    "minimal_compression_rate_step": 0.025,
    "compression_rate_step_reduction_factor": 0.5,
    "lr_reduction_factor": 0.5,
}


def searched(policy: Policy, problem: Problem, *answers: float | Answer) -> Search:
    """Runs a search in which the first validation gets the first answer, and each trained epoch the next one.

    All answers are used and none twice, so that a table shows where its search ends.
    """
    listed = tuple(answer if isinstance(answer, Answer) else Answer(margin=answer) for answer in answers)
    whole = search(policy, World(problem, listed))
    num_trained = sum(move.train for move in whole.course.moves)
    assert num_trained == len(listed) - 1, f"{num_trained} epochs: {whole.stop.reason}"
    return whole


def trained_rates(whole: Search) -> list[float]:
    return [result.requested_rate for result in whole.course.results if result.trained]


def trained_moves(whole: Search) -> list[Epoch]:
    return [move for move in whole.course.moves if move.train]

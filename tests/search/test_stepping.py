"""Decision tables of `uniform_decrease` and `early_exit`: settings and margins in, expected rates out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from kedro_aat.budget import Outcome
from kedro_aat.search.policy import Epoch, Problem
from kedro_aat.search.stepping import EarlyExit, UniformDecrease
from kedro_aat.testing.simulated_search import Answer, World, search
from tests.search.stepping_searches import DOWN, SETTINGS, UP, searched, trained_moves, trained_rates

EARLY = Answer(margin=DOWN, early_stop=True)
PARTIAL = Answer(margin=UP, fully_compressed=False)
SCHEDULED = Answer(margin=DOWN, scheduled_increment=0.05)

FROM_THE_MIDDLE = Problem(initial_rate=0.5, maximal_rate=0.95)


@dataclass(frozen=True)
class Row:
    """A search of `uniform_decrease`.

    Attributes:
        name: The case.
        answers: Answer to the first validation, then to each trained epoch.
        rates: Requested rate of each trained epoch.
        reason: Why the search ends.
        changed: Settings that differ from `SETTINGS`.
        problem: The problem to solve.
    """

    name: str
    answers: list[float | Answer]
    rates: list[float]
    reason: str
    changed: Mapping[str, Any] = field(default_factory=dict)
    problem: Problem = FROM_THE_MIDDLE


TABLE = [
    Row(
        "up while within budget, down if not, half the increment at each turn",
        [UP, UP, UP, DOWN, DOWN, DOWN, UP, UP, DOWN, DOWN],
        [0.6, 0.7, 0.8, 0.75, 0.7, 0.65, 0.675, 0.7, 0.6875],
        "The change of rate fell below 0.025.",
    ),
    Row(
        "the last and smallest increment is trained as well",
        [UP, DOWN, UP, DOWN, DOWN],
        [0.6, 0.55, 0.575, 0.5625],
        "The change of rate fell below 0.025.",
    ),
    Row(
        "down to the minimal rate, and no further",
        [DOWN, DOWN, DOWN, DOWN, DOWN, DOWN],
        [0.4, 0.3, 0.2, 0.1, 0.0],
        "The next rate would be below the minimal 0.",
    ),
    Row(
        "a minimal rate that the first increment would cross",
        [DOWN],
        [],
        "The next rate would be below the minimal 0.45.",
        problem=Problem(initial_rate=0.5, minimal_rate=0.45),
    ),
    Row(
        "each rate gets its patience, or less if it comes within budget; so does the last",
        [UP, DOWN, DOWN, UP, UP, DOWN, DOWN, DOWN, DOWN, DOWN, DOWN],
        [0.6, 0.6, 0.6, 0.7, 0.8, 0.8, 0.8, 0.75, 0.75, 0.75],
        "The change of rate fell below 0.06.",
        {"patience_epochs": 3, "minimal_compression_rate_step": 0.06},
    ),
    Row(
        "a patience of 0 still trains each rate once",
        [UP, UP, DOWN, DOWN],
        [0.6, 0.7, 0.65],
        "The change of rate fell below 0.06.",
        {"patience_epochs": 0, "minimal_compression_rate_step": 0.06},
    ),
    Row(
        "the maximal rate is trained, and kept if it is within budget",
        [UP, UP],
        [0.95],
        "The maximal rate 0.95 was reached.",
        problem=Problem(initial_rate=0.9, maximal_rate=0.95),
    ),
    Row(
        "the maximal rate gets its patience, and is lowered again",
        [UP, DOWN, DOWN, UP, DOWN, DOWN],
        [0.95, 0.95, 0.9, 0.925, 0.925],
        "The change of rate fell below 0.03.",
        {"patience_epochs": 2, "minimal_compression_rate_step": 0.03},
        problem=Problem(initial_rate=0.9, maximal_rate=0.95),
    ),
    Row(
        "a model that begins above the maximal rate comes down to it",
        [DOWN, UP],
        [0.95],
        "The maximal rate 0.95 was reached.",
        {"initial_compression_rate_step": 0.02, "minimal_compression_rate_step": 0.01},
        problem=Problem(initial_rate=0.98, maximal_rate=0.95),
    ),
    Row(
        "early stopping forces a change before the patience is over",
        [UP, DOWN, EARLY, EARLY, EARLY],
        [0.6, 0.6, 0.55, 0.5],
        "All 4 epochs were used.",
        {"patience_epochs": 3, "maximal_total_epochs": 4},
    ),
    Row(
        "an increment that is never reduced ends with the epochs",
        [UP, DOWN, UP, DOWN, UP],
        [0.6, 0.5, 0.6, 0.5],
        "All 4 epochs were used.",
        {"compression_rate_step_reduction_factor": 1.0, "maximal_total_epochs": 4},
    ),
    Row(
        "the initial phase ends within budget",
        [DOWN, DOWN, UP, DOWN, DOWN],
        [0.5, 0.5, 0.6, 0.55],
        "The change of rate fell below 0.06.",
        {"initial_training_phase_epochs": 5, "minimal_compression_rate_step": 0.06},
    ),
    Row(
        "the initial phase ends with its epochs, at the rate of the controller's schedule",
        [DOWN, SCHEDULED, SCHEDULED, UP, DOWN],
        [0.55, 0.6, 0.5, 0.55],
        "The change of rate fell below 0.06.",
        {"initial_training_phase_epochs": 2, "minimal_compression_rate_step": 0.06},
    ),
    Row(
        "the initial phase ends by early stopping",
        [DOWN, EARLY, UP, DOWN],
        [0.5, 0.4, 0.45],
        "The change of rate fell below 0.06.",
        {"initial_training_phase_epochs": 5, "minimal_compression_rate_step": 0.06},
    ),
    Row(
        "the initial phase continues until the model is fully compressed",
        [PARTIAL, PARTIAL, UP, DOWN, DOWN],
        [0.5, 0.5, 0.6, 0.55],
        "The change of rate fell below 0.06.",
        {"initial_training_phase_epochs": 5, "minimal_compression_rate_step": 0.06},
    ),
    Row(
        "the initial phase keeps to the limit on all epochs",
        [DOWN, DOWN, DOWN, DOWN],
        [0.5, 0.5, 0.5],
        "All 3 epochs were used.",
        {"initial_training_phase_epochs": 5, "maximal_total_epochs": 3},
    ),
    Row(
        "a margin of exactly zero is within budget",
        [0.0, 0.0, 0.0],
        [0.6, 0.7],
        "All 2 epochs were used.",
        {"maximal_total_epochs": 2, "patience_epochs": 2},
    ),
    Row(
        "margins of the initial phase do not count, only that of the model it returns",
        [DOWN, PARTIAL, DOWN, DOWN, DOWN],
        [0.5, 0.5, 0.4, 0.3],
        "All 4 epochs were used.",
        {"initial_training_phase_epochs": 2, "maximal_total_epochs": 4},
    ),
    Row(
        "a model below the minimal rate goes up to it",
        [UP, UP, UP],
        [0.3, 0.4],
        "All 2 epochs were used.",
        {"maximal_total_epochs": 2},
        Problem(minimal_rate=0.3),
    ),
    Row("no epochs at all", [DOWN], [], "All 0 epochs were used.", {"maximal_total_epochs": 0}),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_rates_of_uniform_decrease(row: Row) -> None:
    policy = UniformDecrease(**{**SETTINGS, **row.changed})
    whole = searched(policy, row.problem, *row.answers)
    assert trained_rates(whole) == pytest.approx(row.rates, abs=1e-9)
    assert whole.stop.reason == row.reason


def test_learning_rate_falls_at_each_turn_and_training_continues_from_the_best() -> None:
    policy = UniformDecrease(**SETTINGS)
    whole = searched(policy, Problem(initial_rate=0.5), UP, UP, UP, DOWN, UP, DOWN, DOWN)
    assert trained_rates(whole) == pytest.approx([0.6, 0.7, 0.8, 0.75, 0.775, 0.7625], abs=1e-9)
    moves = trained_moves(whole)
    assert [move.lr_scale for move in moves] == [1.0, 1.0, 1.0, 0.5, 0.25, 0.125]
    # 0 is the first validation, 1 repeats it, and 2 is the first trained epoch.
    assert [move.start_from for move in moves] == [0, 2, 3, 3, 5, 5]
    assert all(move.new_optimizer for move in moves)
    assert whole.stop.best == 5
    assert whole.stop.outcome is Outcome.WITHIN_BUDGET


def test_patience_continues_with_the_same_weights_optimizer_and_learning_rate() -> None:
    policy = UniformDecrease(**SETTINGS | {"patience_epochs": 2, "maximal_total_epochs": 4})
    moves = trained_moves(searched(policy, Problem(initial_rate=0.5), UP, DOWN, DOWN, DOWN, DOWN))
    assert [move.rate_path is None for move in moves] == [False, True, False, True]
    assert [move.start_from for move in moves] == [0, None, 0, None]
    assert [move.new_optimizer for move in moves] == [True, False, True, False]
    assert [move.lr_scale for move in moves] == [1.0, 1.0, 0.5, 0.5]


def test_weights_are_kept_while_nothing_is_within_budget() -> None:
    policy = UniformDecrease(**SETTINGS)
    whole = searched(policy, Problem(initial_rate=0.2), DOWN, DOWN, DOWN)
    assert [move.start_from for move in trained_moves(whole)] == [None, None]
    assert whole.stop.outcome is Outcome.INFEASIBLE
    assert whole.stop.best is None


@pytest.mark.parametrize(
    "problem",
    [Problem(initial_rate=0.0), Problem(initial_rate=0.2, minimal_rate=0.25)],
    ids=["rate 0", "below the minimal"],
)
def test_a_model_compressed_less_than_is_worth_returning_is_no_result(problem: Problem) -> None:
    # The model is within budget at first, but no requested rate is.
    policy = UniformDecrease(**SETTINGS | {"maximal_total_epochs": 2})
    whole = searched(policy, problem, UP, DOWN, DOWN)
    assert whole.states[-1].best.checkpoint == 0
    assert whole.stop.outcome is Outcome.INFEASIBLE
    assert whole.stop.best is None


def test_search_restarts_from_the_best_of_the_initial_phase() -> None:
    policy = UniformDecrease(**SETTINGS | {"initial_training_phase_epochs": 5, "maximal_total_epochs": 3})
    whole = searched(policy, Problem(initial_rate=0.5), DOWN, DOWN, UP, DOWN)
    restart = whole.course.moves[3]
    assert restart == Epoch(train=False, start_from=2, new_optimizer=True)


def test_brackets_move_by_requested_rate_and_the_best_is_chosen_by_achieved_rate() -> None:
    policy = UniformDecrease(**SETTINGS | {"maximal_total_epochs": 4})
    world = World(
        Problem(initial_rate=0.5),
        tuple(Answer(margin=margin) for margin in (UP, UP, UP, DOWN, UP)),
        granularity=8,
    )
    whole = search(policy, world)
    assert trained_rates(whole) == pytest.approx([0.6, 0.7, 0.8, 0.75], abs=1e-9)
    assert [result.achieved_rate for result in whole.course.results if result.trained] == [0.625, 0.75, 0.75, 0.75]
    assert whole.states[-1].best.achieved_rate == 0.75


def test_a_return_to_a_rate_does_not_replace_a_higher_achieved_rate() -> None:
    # Up to 0.7 and back to 0.6, where the second epoch has more margin than the first, but fewer zeros.
    policy = UniformDecrease(**SETTINGS | {"compression_rate_step_reduction_factor": 1.0, "maximal_total_epochs": 3})
    fewer_zeros = Answer(margin=2 * UP, achieved_offset=-0.02)
    whole = searched(policy, Problem(initial_rate=0.5), UP, UP, DOWN, fewer_zeros)
    first, _, second = (result for result in whole.course.results if result.trained)
    assert first.requested_rate == second.requested_rate == 0.6
    assert whole.stop.best == first.checkpoint


EARLY_EXIT: dict[str, tuple[list[float | Answer], int, str, int | None]] = {
    "within budget at first": ([UP], 10, "The metric came within budget.", 0),
    "within budget after two epochs": ([DOWN, DOWN, UP], 10, "The metric came within budget.", 2),
    "within budget only when fully compressed": ([PARTIAL, PARTIAL, UP], 10, "The metric came within budget.", 2),
    "stopped early": ([DOWN, EARLY], 10, "The early-stopping function ended the training.", None),
    "all epochs used": ([DOWN, DOWN, DOWN], 2, "All 2 epochs were used.", None),
    "no epochs": ([DOWN], 0, "All 0 epochs were used.", None),
    "never fully compressed": (
        [PARTIAL, PARTIAL, PARTIAL],
        2,
        "The model never became fully compressed in 2 epochs: let the controller's schedule end sooner, or "
        "raise maximal_total_epochs.",
        None,
    ),
}


@pytest.mark.parametrize("name", EARLY_EXIT)
def test_early_exit(name: str) -> None:
    answers, limit, reason, best = EARLY_EXIT[name]
    whole = searched(EarlyExit(maximal_total_epochs=limit), Problem(initial_rate=0.5), *answers)
    assert whole.stop.reason == reason
    assert whole.stop.best == best
    assert all(move.rate_path is None and move.lr_scale == 1.0 for move in whole.course.moves)

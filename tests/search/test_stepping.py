"""Decision tables of the compatible strategies: settings and margins in, expected rates out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.interpolate import interp1d

from kedro_aat.budget import Outcome
from kedro_aat.search import Policy
from kedro_aat.search.policy import Epoch, Problem
from kedro_aat.search.stepping import EarlyExit, Interpolate, UniformDecrease
from tests.search.world import Answer, Search, World, search
from tests.strategies import worlds

# Margins that are within budget, and not.
UP, DOWN = 0.01, -0.01
EARLY = Answer(margin=DOWN, early_stop=True)
PARTIAL = Answer(margin=UP, fully_compressed=False)
SCHEDULED = Answer(margin=DOWN, scheduled_increment=0.05)

# No initial phase and one epoch a rate, so that a table's rows are its rates.
SETTINGS: dict[str, Any] = {
    "initial_training_phase_epochs": 0,
    "patience_epochs": 1,
    "initial_compression_rate_step": 0.1,
    "minimal_compression_rate_step": 0.025,
    "compression_rate_step_reduction_factor": 0.5,
    "lr_reduction_factor": 0.5,
}

FROM_THE_MIDDLE = Problem(initial_rate=0.5, maximal_rate=0.95)


def searched(policy: Policy, problem: Problem, *answers: float | Answer) -> Search:
    """A search in which the model as given has the first margin, and each epoch that trains the next.

    All are used and none twice, so that a table shows where its search ends.
    """
    told = tuple(answer if isinstance(answer, Answer) else Answer(margin=answer) for answer in answers)
    whole = search(policy, World(problem, told))
    num_trained = sum(move.train for move in whole.course.moves)
    assert num_trained == len(told) - 1, f"{num_trained} epochs: {whole.stop.reason}"
    return whole


def trained_rates(whole: Search) -> list[float]:
    return [seen.requested_rate for seen in whole.course.results if seen.trained]


def trained_moves(whole: Search) -> list[Epoch]:
    return [move for move in whole.course.moves if move.train]


@dataclass(frozen=True)
class Row:
    """A search of `uniform_decrease`.

    Attributes:
        answers: Of the model as given, then of each epoch.
        rates: Of each epoch.
        reason: For the end.
        changed: Settings other than `SETTINGS`.
    """

    name: str
    answers: list[float | Answer]
    rates: list[float]
    reason: str
    changed: Mapping[str, Any] = field(default_factory=dict)
    problem: Problem = FROM_THE_MIDDLE


TABLE = [
    Row(
        "up while within budget, down when not, half the step at each turn",
        [UP, UP, UP, DOWN, DOWN, DOWN, UP, UP, DOWN, DOWN],
        [0.6, 0.7, 0.8, 0.75, 0.7, 0.65, 0.675, 0.7, 0.6875],
        "The change of rate fell below 0.025.",
    ),
    Row(
        "the last and smallest step is trained as well",
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
        "a minimal rate that the first step would cross",
        [DOWN],
        [],
        "The next rate would be below the minimal 0.45.",
        problem=Problem(initial_rate=0.5, minimal_rate=0.45),
    ),
    Row(
        "each rate gets its patience, less if it comes within budget; so does the last",
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
        "the maximal rate gets its patience, and is left again",
        [UP, DOWN, DOWN, UP, DOWN, DOWN],
        [0.95, 0.95, 0.9, 0.925, 0.925],
        "The change of rate fell below 0.03.",
        {"patience_epochs": 2, "minimal_compression_rate_step": 0.03},
        problem=Problem(initial_rate=0.9, maximal_rate=0.95),
    ),
    Row(
        "a model given above the maximal rate comes down to it",
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
        "a step that is never reduced ends with the epochs",
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
        "the initial phase goes on until the model is fully compressed",
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
    Row("no epochs at all", [DOWN], [], "All 0 epochs were used.", {"maximal_total_epochs": 0}),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_rates_of_uniform_decrease(row: Row) -> None:
    policy = UniformDecrease(**{**SETTINGS, **row.changed})
    whole = searched(policy, row.problem, *row.answers)
    assert trained_rates(whole) == pytest.approx(row.rates, abs=1e-9)
    assert whole.stop.reason == row.reason


def test_learning_rate_falls_at_each_turn_and_training_goes_on_from_the_best() -> None:
    policy = UniformDecrease(**SETTINGS)
    whole = searched(policy, Problem(initial_rate=0.5), UP, UP, UP, DOWN, UP, DOWN, DOWN)
    assert trained_rates(whole) == pytest.approx([0.6, 0.7, 0.8, 0.75, 0.775, 0.7625], abs=1e-9)
    moves = trained_moves(whole)
    assert [move.lr_scale for move in moves] == [1.0, 1.0, 1.0, 0.5, 0.25, 0.125]
    # 0 is the model as given, 1 repeats its validation, 2 is the first epoch.
    assert [move.start_from for move in moves] == [0, 2, 3, 3, 5, 5]
    assert all(move.new_optimizer for move in moves)
    assert whole.stop.best == 5
    assert whole.stop.outcome is Outcome.WITHIN_BUDGET


def test_patience_goes_on_with_the_same_weights_optimizer_and_learning_rate() -> None:
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
    # As given it is within budget; no rate that was asked for is.
    policy = UniformDecrease(**SETTINGS | {"maximal_total_epochs": 2})
    whole = searched(policy, problem, UP, DOWN, DOWN)
    assert whole.states[-1].best.checkpoint == 0
    assert whole.stop.outcome is Outcome.INFEASIBLE
    assert whole.stop.best is None


def test_search_begins_anew_from_the_best_of_the_initial_phase() -> None:
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
    assert [seen.achieved_rate for seen in whole.course.results if seen.trained] == [0.625, 0.75, 0.75, 0.75]
    assert whole.states[-1].best.achieved_rate == 0.75


def test_a_return_to_a_rate_does_not_replace_a_higher_achieved_rate() -> None:
    # Up to 0.7 and back to 0.6, where the second epoch has more margin than the first, but fewer zeros.
    policy = UniformDecrease(**SETTINGS | {"compression_rate_step_reduction_factor": 1.0, "maximal_total_epochs": 3})
    fewer_zeros = Answer(margin=2 * UP, achieved_offset=-0.02)
    whole = searched(policy, Problem(initial_rate=0.5), UP, UP, DOWN, fewer_zeros)
    first, _, second = (seen for seen in whole.course.results if seen.trained)
    assert first.requested_rate == second.requested_rate == 0.6
    assert whole.stop.best == first.checkpoint


EARLY_EXIT: dict[str, tuple[list[float | Answer], int, str, int | None]] = {
    "within budget as given": ([UP], 10, "The metric came within budget.", 0),
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


# --- interpolate -------------------------------------------------------------------------------------------

GRID = np.linspace(0.0, 1.0, 1000)


def predicted(margins: Mapping[float, float], drop: float) -> np.ndarray[Any, Any]:
    """Margins that the curve through those seen predicts on the grid of rates."""
    points = {0.0: drop, 1.0: -20 * drop} | dict(margins)
    rates = sorted(points)
    kind = "linear" if len(rates) < 4 else "cubic"
    curve: np.ndarray[Any, Any] = interp1d(rates, [points[rate] for rate in rates], kind=kind)(GRID)
    return curve


def nearest_to_zero(margins: Mapping[float, float], drop: float) -> float:
    """The first rate of the grid at which the predicted margin is nearest to zero."""
    return float(GRID[np.abs(predicted(margins, drop)).argmin()])


def interpolated(margins: list[float], problem: Problem, **changed: Any) -> Search:
    return searched(Interpolate(**{**SETTINGS, **changed}), problem, *margins)


def test_below_four_points_the_curve_is_linear() -> None:
    # From a margin of 0.02 at rate 0 to -0.02 at rate 0.5: zero at 0.25, next to which lies 250/999.
    problem = Problem(initial_rate=0.5, tolerated_drop=0.02)
    whole = interpolated([-0.02, UP], problem, maximal_total_epochs=1)
    assert trained_rates(whole) == [pytest.approx(250 / 999, abs=1e-12)]


def test_from_four_points_on_the_curve_is_cubic() -> None:
    # All margins lie on one cubic, and four points determine it. Its zero is at (1 / 21) ** (1 / 3) = 0.3625.
    drop = 0.02

    def margin(rate: float) -> float:
        return drop * (1 - 21 * rate**3)

    problem = Problem(initial_rate=0.5, tolerated_drop=drop)
    second = nearest_to_zero({0.5: margin(0.5)}, drop)
    whole = interpolated([margin(0.5), margin(second), UP], problem, maximal_total_epochs=2)
    assert trained_rates(whole) == pytest.approx([second, 362 / 999], abs=1e-12)


@pytest.mark.parametrize(
    "margins",
    [
        [0.015, 0.01, -0.03, 0.004, -0.002, 0.001, -0.004],
        [-0.3, 0.01, 0.005, -0.2, 0.002, -0.001, 0.003],
        [0.015, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1],
        [0.015, 0.012, 0.012, 0.012, 0.012, 0.012, 0.012],
    ],
    ids=["to and fro", "far above", "never again", "always"],
)
def test_rates_of_interpolate(margins: list[float]) -> None:
    problem = Problem(initial_rate=0.5, maximal_rate=0.999, tolerated_drop=0.02)
    policy = Interpolate(**SETTINGS | {"minimal_compression_rate_step": 1e-9, "maximal_total_epochs": len(margins) - 1})
    whole = search(policy, World(problem, tuple(Answer(margin=margin) for margin in margins)))
    rates = trained_rates(whole)
    assert len(rates) >= 3
    told = {0.5: margins[0]}
    for rate, margin in zip(rates, margins[1:], strict=False):
        assert rate == pytest.approx(nearest_to_zero(told, 0.02), abs=1e-12)
        told[rate] = margin


@settings(max_examples=100, deadline=None)
@given(world=worlds)
def test_interpolated_rate_has_the_predicted_margin_nearest_to_zero(world: World) -> None:
    policy = Interpolate(initial_training_phase_epochs=1, patience_epochs=2, maximal_total_epochs=12)
    problem = world.problem
    course = search(policy, world).course
    limited = np.clip(GRID, problem.minimal_rate, problem.maximal_rate)
    margins: dict[float, float] = {}
    for move, seen in zip(course.moves, course.results, strict=True):
        if move.rate_path is not None:
            curve = np.abs(predicted(margins, problem.tolerated_drop))
            nearest = curve[np.isclose(limited, move.rate_path[-1], rtol=0, atol=1e-12)]
            assert nearest.size
            assert nearest.min() <= curve.min() + 1e-6 * curve.max()
        margins[seen.requested_rate] = seen.margin


def test_interpolate_uses_the_latest_margin_of_a_rate() -> None:
    problem = Problem(initial_rate=0.5, tolerated_drop=0.02)
    first = nearest_to_zero({0.5: -1.0}, 0.02)
    second = nearest_to_zero({0.5: -1.0, first: -0.05}, 0.02)
    assert second != nearest_to_zero({0.5: -1.0, first: -0.5}, 0.02)
    whole = interpolated([-1.0, -0.5, -0.05, UP], problem, patience_epochs=2, maximal_total_epochs=3)
    assert trained_rates(whole) == pytest.approx([first, first, second], abs=1e-12)


@pytest.mark.parametrize(
    ("limits", "margins", "rate"),
    [((0.0, 0.55), [5.0, UP], 0.55), ((0.4, 0.95), [-1.0, UP], 0.4)],
    ids=["maximal", "minimal"],
)
def test_interpolate_keeps_to_the_limits(limits: tuple[float, float], margins: list[float], rate: float) -> None:
    lowest, highest = limits
    problem = Problem(minimal_rate=lowest, maximal_rate=highest, initial_rate=0.5, tolerated_drop=0.2)
    whole = interpolated(margins, problem, maximal_total_epochs=1)
    assert trained_rates(whole) == [rate]


def test_interpolate_ends_when_the_change_falls_below_the_minimal_step() -> None:
    problem = Problem(initial_rate=0.5, tolerated_drop=0.02)
    first = nearest_to_zero({0.5: UP}, 0.02)  # 0.51
    assert abs(first - 0.5) < 0.025
    whole = interpolated([UP, DOWN, DOWN], problem, patience_epochs=2)
    assert trained_rates(whole) == pytest.approx([first, first], abs=1e-12)
    assert whole.stop.reason == "The change of rate fell below 0.025."


def test_interpolate_ends_when_the_same_rate_comes_again() -> None:
    problem = Problem(initial_rate=0.5, maximal_rate=0.9, tolerated_drop=0.02)
    whole = interpolated([10.0, 10.0], problem)
    assert trained_rates(whole) == [0.9]
    assert whole.stop.reason == "The search settled on a rate."
    assert whole.stop.outcome is Outcome.WITHIN_BUDGET


@pytest.mark.parametrize("margins", [(UP, DOWN), (DOWN, UP), (0.0, DOWN), (0.0,)], ids=str)
def test_interpolate_lives_with_a_tolerated_drop_of_zero(margins: tuple[float, ...]) -> None:
    world = World(Problem(initial_rate=0.5), tuple(Answer(margin=margin) for margin in margins))
    whole = search(Interpolate(maximal_total_epochs=10), world)
    assert all(0.0 <= rate <= 0.95 for rate in trained_rates(whole))


def test_interpolate_reduces_the_learning_rate_at_turns() -> None:
    problem = Problem(initial_rate=0.5, tolerated_drop=0.2)
    whole = interpolated([-1.0, 0.19, -0.5, UP], problem, maximal_total_epochs=3)
    rates = [0.5, *trained_rates(whole)]
    directions = [1 if later >= earlier else -1 for earlier, later in pairwise(rates)]
    expected = [1.0]
    for before, after in pairwise(directions):
        expected.append(expected[-1] * (1.0 if after == before else 0.5))
    assert len(set(directions)) == 2
    assert [move.lr_scale for move in trained_moves(whole)] == expected

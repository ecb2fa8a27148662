"""Rates of `interpolate`, compared with an interpolation by other functions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.interpolate import interp1d

from kedro_aat.budget import Outcome
from kedro_aat.search.policy import Problem
from kedro_aat.search.stepping import Interpolate
from kedro_aat.testing.simulated_search import Answer, Search, World, search
from kedro_aat.testing.strategies import worlds
from tests.search.stepping_searches import DOWN, SETTINGS, UP, searched, trained_moves, trained_rates

GRID = np.linspace(0.0, 1.0, 1000)


def predicted(margins: Mapping[float, float], drop: float) -> np.ndarray[Any, Any]:
    """Returns the margins on the grid of rates that the curve through the known margins predicts."""
    points = {0.0: drop, 1.0: -20 * drop} | dict(margins)
    rates = sorted(points)
    kind = "linear" if len(rates) < 4 else "cubic"
    curve: np.ndarray[Any, Any] = interp1d(rates, [points[rate] for rate in rates], kind=kind)(GRID)
    return curve


def nearest_to_zero(margins: Mapping[float, float], drop: float) -> float:
    """Returns the first rate of the grid at which the predicted margin is nearest to zero."""
    return float(GRID[np.abs(predicted(margins, drop)).argmin()])


def interpolated(margins: list[float], problem: Problem, **changed: Any) -> Search:
    return searched(Interpolate(**{**SETTINGS, **changed}), problem, *margins)


def test_below_four_points_the_curve_is_linear() -> None:
    # From a margin of 0.02 at rate 0 to -0.02 at rate 0.5: zero at 0.25, to which 250/999 is nearest.
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
    ids=["back and forth", "far above", "never again", "always"],
)
def test_rates_of_interpolate(margins: list[float]) -> None:
    problem = Problem(initial_rate=0.5, maximal_rate=0.999, tolerated_drop=0.02)
    policy = Interpolate(**SETTINGS | {"minimal_compression_rate_step": 1e-9, "maximal_total_epochs": len(margins) - 1})
    whole = search(policy, World(problem, tuple(Answer(margin=margin) for margin in margins)))
    rates = trained_rates(whole)
    assert len(rates) >= 3
    known = {0.5: margins[0]}
    for rate, margin in zip(rates, margins[1:], strict=False):
        assert rate == pytest.approx(nearest_to_zero(known, 0.02), abs=1e-12)
        known[rate] = margin


@settings(max_examples=100, deadline=None)
@given(world=worlds)
def test_interpolated_rate_has_the_predicted_margin_nearest_to_zero(world: World) -> None:
    policy = Interpolate(initial_training_phase_epochs=1, patience_epochs=2, maximal_total_epochs=12)
    problem = world.problem
    course = search(policy, world).course
    limited = np.clip(GRID, problem.minimal_rate, problem.maximal_rate)
    margins: dict[float, float] = {}
    for move, result in zip(course.moves, course.results, strict=True):
        if move.rate_path is not None:
            curve = np.abs(predicted(margins, problem.tolerated_drop))
            nearest = curve[np.isclose(limited, move.rate_path[-1], rtol=0, atol=1e-12)]
            assert nearest.size
            assert nearest.min() <= curve.min() + 1e-6 * curve.max()
        if not (result.failed and result.requested_rate in margins):
            margins[result.requested_rate] = result.margin


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


def test_interpolate_ends_when_the_increment_falls_below_the_minimal_one() -> None:
    problem = Problem(initial_rate=0.5, tolerated_drop=0.02)
    first = nearest_to_zero({0.5: UP}, 0.02)  # 0.51
    assert abs(first - 0.5) < 0.025
    whole = interpolated([UP, DOWN, DOWN], problem, patience_epochs=2)
    assert trained_rates(whole) == pytest.approx([first, first], abs=1e-12)
    assert whole.stop.reason == "The change of rate fell below 0.025."


def test_interpolate_ends_when_the_same_rate_is_chosen_again() -> None:
    problem = Problem(initial_rate=0.5, maximal_rate=0.9, tolerated_drop=0.02)
    whole = interpolated([10.0, 10.0], problem)
    assert trained_rates(whole) == [0.9]
    assert whole.stop.reason == "The search settled on a rate."
    assert whole.stop.outcome is Outcome.WITHIN_BUDGET


@pytest.mark.parametrize("margins", [(UP, DOWN), (DOWN, UP), (0.0, DOWN), (0.0,)], ids=str)
def test_interpolate_works_with_a_tolerated_drop_of_zero(margins: tuple[float, ...]) -> None:
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

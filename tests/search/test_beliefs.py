"""What the frontier strategy infers from margins whose law is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kedro_aat.search import beliefs
from kedro_aat.search.beliefs import HEIGHT, LR_COST, Floats, expectation

SLOPE, BOUNDARY = 2.5, 1.0
STANDARD_ERROR = 0.3
FALLING = np.linspace(0.5, 0.0, 20)


def on_the_curve(u: Floats) -> Floats:
    return HEIGHT * (1 - np.exp(SLOPE / HEIGHT * (u - BOUNDARY)))


def test_the_margin_at_the_latest_rate_is_that_of_the_curve() -> None:
    u = BOUNDARY - np.linspace(0.3, 0.1, 20)
    margins = on_the_curve(u) - LR_COST * FALLING
    expected, slope = expectation(u, FALLING, margins, 0.05, SLOPE)
    assert expected == pytest.approx(on_the_curve(u)[-1], abs=0.05)
    assert slope == pytest.approx(SLOPE * np.exp(SLOPE / HEIGHT * (u[-1] - BOUNDARY)), rel=0.25)


def test_what_the_learning_rate_costs_is_learned() -> None:
    u = np.full(10, BOUNDARY)
    halfway = FALLING[:10]
    high, low = (expectation(u, halfway, 0.5 - cost * halfway, 0.05, SLOPE)[0] for cost in (0.8, 0.0))
    assert high == pytest.approx(0.5, abs=0.15)
    assert low == pytest.approx(0.5, abs=0.15)


def test_early_damage_that_recovers_does_not_lower_the_expectation() -> None:
    u, epochs = np.full(20, BOUNDARY), np.arange(20)
    expected, _ = expectation(u, FALLING, 0.5 - LR_COST * FALLING - 0.8 * 0.7**epochs, STANDARD_ERROR, SLOPE)
    assert expected == pytest.approx(0.5, abs=0.1)


def test_one_lucky_epoch_counts_little_and_several_in_a_row_less_than_as_many_apart() -> None:
    u, lr = np.full(20, BOUNDARY), np.zeros(20)

    def raised_by(*lucky: int) -> float:
        margins = np.zeros(20)
        margins[list(lucky)] = 1.0
        quiet, _ = expectation(u, lr, np.zeros(20), STANDARD_ERROR, SLOPE)
        return expectation(u, lr, margins, STANDARD_ERROR, SLOPE)[0] - quiet

    assert 0 < raised_by(19) < 0.25
    assert raised_by(8, 9, 10, 11) < raised_by(5, 8, 11, 14)


def test_noise_never_reverses_the_slope() -> None:
    u = np.linspace(0, 1, 20)
    _, slope = expectation(u, FALLING, 3 * u, 0.05, SLOPE)
    assert slope > 0


def test_epochs_say_more_than_belief_where_a_rate_that_is_too_high_can_fall_again() -> None:
    """A flat margin is not taken for a steep one, and the slope still never reverses."""
    u = np.linspace(0, 1, 20)
    for margins in (np.full(20, 0.5), 3 * u):
        (_, believed), (_, learned) = (
            expectation(u, FALLING, margins, 0.05, SLOPE, regrows=regrows) for regrows in (False, True)
        )
        assert 0 < learned < believed / 2


def dense(
    u: Floats, lr: Floats, margins: Floats, standard_error: float, slope: float, *, regrows: bool
) -> tuple[float, float]:
    """The same with the whole covariance, as the regression is written down."""
    epochs = np.arange(len(u))
    kept = beliefs.KEPT * beliefs.PERSISTENCE ** np.abs(epochs[:, None] - epochs)
    drawn = standard_error**2 * (kept + beliefs.DRAWN_ANEW * np.eye(len(u)))
    gained = -np.expm1(np.clip(slope / HEIGHT * (u - u[-1]), -20, 2)) / (slope / HEIGHT)
    features = np.stack([np.ones(len(u)), gained, -lr, -(beliefs.RECOVERY_RATIO**epochs)], axis=1)
    weighted = np.linalg.solve(drawn + beliefs.JITTER**2 * np.eye(len(u)), features).T
    means = np.array([0.0, slope, LR_COST, beliefs.DAMAGE])
    spread, least = beliefs.SLOPE_SPREAD, beliefs.LEAST_SLOPE
    if regrows:
        spread, least = beliefs.SLOPE_SPREAD_IF_REGROWING, beliefs.LEAST_SLOPE_IF_REGROWING
    spreads = [beliefs.MARGIN_SPREAD, spread * slope, beliefs.LR_COST_SPREAD, beliefs.DAMAGE_SPREAD]
    precision = np.array(spreads) ** -2.0
    expected, inferred, *_ = np.linalg.solve(
        weighted @ features + np.diag(precision), weighted @ margins + precision * means
    )
    return float(expected), max(float(inferred), least * slope)


def numbers(low: float, high: float, num_epochs: int) -> st.SearchStrategy[Floats]:
    return arrays(np.float64, num_epochs, elements=st.floats(low, high))


@settings(deadline=None)
@given(st.data(), st.integers(1, 200), st.floats(0, 10), st.floats(1, 8), st.booleans())
def test_time_that_is_linear_in_the_epochs_changes_no_number(
    data: st.DataObject, num_epochs: int, standard_error: float, slope: float, regrows: bool
) -> None:
    u, lr, margins = (data.draw(numbers(low, high, num_epochs)) for low, high in ((0, 6), (0, 1), (-20, 20)))
    expected = dense(u, lr, margins, standard_error, slope, regrows=regrows)
    assert expectation(u, lr, margins, standard_error, slope, regrows=regrows) == pytest.approx(
        expected, rel=1e-9, abs=1e-9
    )

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from kedro_aat.budget import FLOAT32_ROUNDING, Budget, BudgetSettings, Outcome, require_finite
from kedro_aat.delivery.results import BudgetResult
from kedro_aat.errors import ConfigurationError, MetricError
from kedro_aat.testing.strategies import budgets, drops, metrics

fractions = st.floats(0, 1)
directions = st.booleans()


def settings(**limits: Any) -> BudgetSettings:
    return BudgetSettings.model_validate(limits)


@given(baseline=metrics, drop=drops, higher=directions)
def test_absolute_drop_is_in_metric_units(baseline: float, drop: float, higher: bool) -> None:
    assume(not (higher and 0 < baseline <= 1 <= drop))
    budget = settings(max_drop=drop).budget(baseline, higher_is_better=higher)
    assert budget.lowest_tolerated == (baseline - drop if higher else baseline + drop)
    assert (budget.kind, budget.drop) == ("absolute", drop)


@given(baseline=metrics, fraction=fractions, higher=directions)
def test_relative_drop_is_a_fraction_of_the_baselines_magnitude(baseline: float, fraction: float, higher: bool) -> None:
    assume(baseline != 0)
    budget = settings(max_relative_drop=fraction).budget(baseline, higher_is_better=higher)
    assert budget.kind == "relative"
    assert budget.drop == pytest.approx(fraction * abs(baseline))
    # With any signs, the baseline itself is within budget.
    assert budget.margin(baseline) >= 0


TABLE = [
    # baseline, relative drop, higher is better, lowest tolerated
    (0.9, 0.1, True, 0.81),
    (90.0, 0.1, True, 81.0),
    (0.5, 0.1, False, 0.55),
    (-2.0, 0.1, True, -2.2),
    (-2.0, 0.1, False, -1.8),
    (0.9, 0.0, True, 0.9),
]


@pytest.mark.parametrize(("baseline", "drop", "higher", "lowest"), TABLE)
def test_lowest_tolerated_of_a_relative_drop(baseline: float, drop: float, higher: bool, lowest: float) -> None:
    budget = settings(max_relative_drop=drop).budget(baseline, higher_is_better=higher)
    assert budget.lowest_tolerated == pytest.approx(lowest)


@given(budget=budgets(), metric=metrics)
def test_margin_is_at_least_0_exactly_if_within_budget(budget: Budget, metric: float) -> None:
    distance = metric - budget.lowest_tolerated if budget.higher_is_better else budget.lowest_tolerated - metric
    rounding = FLOAT32_ROUNDING * max(abs(budget.baseline), budget.drop)  # of a metric that was computed in float32
    assert (budget.margin(metric) >= 0) == (distance >= -rounding)


@pytest.mark.parametrize("num_examples", [100, 200, 1000, 10000])
def test_metric_exactly_on_the_budget_is_within(num_examples: int) -> None:
    for lost in range(1, num_examples // 2, 7):
        baseline, metric = (
            float(np.float32(count / num_examples)) for count in (num_examples - 1, num_examples - 1 - lost)
        )
        budget = settings(max_drop=lost / num_examples).budget(baseline, higher_is_better=True)
        assert budget.margin(metric) >= 0
        one_less = float(np.float32((num_examples - 2 - lost) / num_examples))
        assert budget.margin(one_less) < 0


@pytest.mark.parametrize("higher", [True, False])
def test_a_metric_of_small_numbers_has_a_budget_too(higher: bool) -> None:
    # For example a mean squared error of 1e-6: a difference that is rounding for a metric near 1 is all of it.
    budget = settings(max_relative_drop=0.1).budget(1e-6, higher_is_better=higher)
    assert budget.margin(0.8e-6 if higher else 1.2e-6) < 0


def test_margin_of_a_rounding_error_is_0() -> None:
    budget = Budget(baseline=1.0, drop=0.25)
    assert budget.margin(0.75 * (1 - 1e-7)) == 0
    assert budget.margin(0.75 * (1 + 1e-7)) > 0


def test_budget_becomes_plain_data() -> None:
    budget = settings(max_relative_drop=0.5).budget(0.5, higher_is_better=False)
    data = BudgetResult.model_validate(budget).model_dump()
    assert data == {"kind": "relative", "drop": 0.25, "lowest_tolerated": 0.75}


@given(budget=budgets())
def test_the_lowest_tolerated_metric_is_within_budget(budget: Budget) -> None:
    assert budget.margin(budget.lowest_tolerated) == 0


@given(budget=budgets(), metric=metrics)
def test_degradation_is_how_much_worse_than_the_baseline(budget: Budget, metric: float) -> None:
    assert budget.degradation(budget.baseline) == 0
    worse = metric < budget.baseline if budget.higher_is_better else metric > budget.baseline
    assert (budget.degradation(metric) > 0) == worse
    both = budget.degradation(metric) + budget.margin(metric)
    assert both == pytest.approx(budget.drop, abs=2 * FLOAT32_ROUNDING * max(1.0, abs(budget.baseline)))


@given(budget=budgets(), metric=metrics)
def test_lower_is_better_mirrors_higher_is_better(budget: Budget, metric: float) -> None:
    mirrored = Budget(baseline=-budget.baseline, drop=budget.drop, higher_is_better=not budget.higher_is_better)
    assert mirrored.lowest_tolerated == -budget.lowest_tolerated
    assert mirrored.margin(-metric) == budget.margin(metric)
    assert mirrored.degradation(-metric) == budget.degradation(metric)


@pytest.mark.parametrize("baseline", [torch.tensor(0.9), np.float32(0.9), np.array(0.9), 1], ids=repr)
def test_baseline_is_any_number(baseline: Any) -> None:
    budget = settings(max_drop=0.25).budget(baseline, higher_is_better=True)
    assert budget.baseline == pytest.approx(float(baseline))
    assert budget.lowest_tolerated == pytest.approx(float(baseline) - 0.25)


@pytest.mark.parametrize("baseline", [math.nan, math.inf, None, "high"], ids=repr)
def test_baseline_that_is_not_a_finite_number(baseline: Any) -> None:
    with pytest.raises(MetricError, match="the baseline must be a"):
        settings(max_drop=0.25).budget(baseline, higher_is_better=True)


@pytest.mark.parametrize("higher", [True, False])
def test_relative_drop_from_a_baseline_of_0(higher: bool) -> None:
    with pytest.raises(ConfigurationError, match=r"max_relative_drop: .*baseline of 0.*give max_drop"):
        settings(max_relative_drop=0.01).budget(0.0, higher_is_better=higher)


def test_absolute_drop_from_a_baseline_of_0() -> None:
    assert settings(max_drop=1.0).budget(0.0, higher_is_better=True).lowest_tolerated == -1.0


@pytest.mark.parametrize(("baseline", "drop"), [(1.0, 1.5), (0.913, 1.0), (1.0, 1.0)])
def test_drop_as_large_as_any_fraction_is_a_mistake(baseline: float, drop: float) -> None:
    with pytest.raises(ConfigurationError, match="percentage"):
        settings(max_drop=drop).budget(baseline, higher_is_better=True)


def test_percentage_given_for_a_fraction() -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(max_drop=1.5).budget(0.913, higher_is_better=True)
    assert caught.value.mistakes == [
        "max_drop: must be between 0 and the baseline (0.913), but got 1.5. Is it a percentage? Write 0.015"
    ]


@pytest.mark.parametrize(
    ("baseline", "drop", "higher"),
    [(91.3, 1.5, True), (0.5, 1.5, False), (-0.5, 1.5, True)],
    ids=["percentages", "lower is better", "negative"],
)
def test_large_drops_that_make_sense(baseline: float, drop: float, higher: bool) -> None:
    assert settings(max_drop=drop).budget(baseline, higher_is_better=higher).drop == drop


@pytest.mark.parametrize(
    ("limits", "mistake"),
    [
        ({}, "exactly one of max_drop and max_relative_drop is required, but got neither"),
        (
            {"max_drop": 0.01, "max_relative_drop": 0.01},
            "exactly one of max_drop and max_relative_drop is required, but got both",
        ),
        ({"max_drop": -0.1}, "max_drop: should be greater than or equal to 0, but got -0.1"),
        ({"max_relative_drop": 1.5}, "max_relative_drop: should be less than or equal to 1, but got 1.5"),
        ({"max_drop": math.nan}, "max_drop: should be a finite number, but got nan"),
        ({"max_drop": math.inf}, "max_drop: should be a finite number, but got inf"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_drops_that_cannot_be_used(limits: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(**limits)
    assert caught.value.mistakes == [mistake]


@pytest.mark.parametrize(
    "value", [0.5, 0, -3, True, np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5]), np.array(0.5)], ids=repr
)
def test_numbers_of_any_kind_are_finite(value: Any) -> None:
    number = require_finite(value, "the metric of epoch 7")
    assert type(number) is float
    assert number == float(value)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, torch.tensor(math.nan), np.float64("inf"), torch.tensor(math.inf)],
    ids=repr,
)
def test_a_number_that_is_not_finite_names_the_measurement(value: Any) -> None:
    with pytest.raises(MetricError, match=r"^the metric of epoch 7 must be a finite number, but is"):
        require_finite(value, "the metric of epoch 7")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "NoneType"),
        ("0.5", "str"),
        ("good", "str"),
        (b"0.5", "bytes"),
        ({"accuracy": 0.5}, "dict"),
        ((0.5, 0.6), "tuple"),
        (1j, "complex"),
        (torch.tensor([0.5, 0.6]), "Tensor"),
        (np.array([0.5, 0.6]), "ndarray"),
    ],
    ids=repr,
)
def test_a_value_that_is_not_a_number_names_the_measurement_and_the_type(value: Any, kind: str) -> None:
    with pytest.raises(MetricError, match=r"^the metric of epoch 7 must be a .*number") as caught:
        require_finite(value, "the metric of epoch 7")
    assert kind in str(caught.value)


def test_every_outcome_has_its_advice() -> None:
    assert len({outcome.advice for outcome in Outcome}) == len(Outcome)
    assert all(outcome.advice.endswith(".") for outcome in Outcome)

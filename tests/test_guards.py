"""Guards of the budget: what follows from the baseline's values, and how far a measurement is from it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kedro_aat.budget import UNIT_WITHOUT_DROP, Budget, BudgetSettings, Guard, GuardSettings
from kedro_aat.errors import ConfigurationError, DivergedError, MetricError
from kedro_aat.training.runner import Evaluation

NAMED = {"name": "recall", "higher_is_better": True}


def settings(*guards: dict[str, Any]) -> BudgetSettings:
    return BudgetSettings.model_validate({"max_drop": 0.02, "also": [NAMED | guard for guard in guards]})


def budget(*guards: dict[str, Any], **values: Any) -> Budget:
    also = Evaluation(0.9, also=values).also
    return settings(*guards).budget(0.9, higher_is_better=True, also=also)


def test_one_guard_for_one_value() -> None:
    assert budget({"max_drop": 0.1}, recall=0.8).also == (Guard(name="recall", baseline=0.8, drop=0.1),)


def test_one_guard_for_each_class() -> None:
    made = budget({"max_relative_drop": 0.5}, recall=torch.tensor([0.8, 0.4], dtype=torch.float64))
    assert [(guard.name, guard.drop, guard.kind) for guard in made.also] == [
        ("recall, class 0", 0.4, "relative"),
        ("recall, class 1", 0.2, "relative"),
    ]


def test_classes_with_nothing_to_lose_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    made = budget({"max_relative_drop": 0.1}, recall=[0.8, math.nan, 0.0, 0.5])
    assert [guard.name for guard in made.also] == ["recall, class 0", "recall, class 3"]
    assert "No guard: recall, class 1; recall, class 2." in caplog.text


def test_a_drop_that_lets_a_class_die_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert len(budget({"max_drop": 0.1}, recall=[0.8, 0.05]).also) == 2
    assert "lets these guards fall to 0: recall, class 1 (0.05)" in caplog.text


def test_without_any_class_there_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"also\.0: recall is 0 or undefined for every class"):
        budget({"max_drop": 0.1}, recall=[0.0, math.nan])


def test_an_undefined_single_value_is_an_error() -> None:
    with pytest.raises(DivergedError, match="recall of the baseline must be a finite number"):
        budget({"max_drop": 0.1}, recall=math.nan)


@pytest.mark.parametrize("value", ["much", [[0.5]], None])
def test_values_are_numbers(value: Any) -> None:
    with pytest.raises(MetricError, match="recall must be a number, or one per class"):
        Evaluation(0.9, also={"recall": value})


def test_margins_are_shares_of_the_tolerated_drop() -> None:
    made = budget({"max_drop": 0.1}, recall=0.8)
    assert made.guard_margin({"recall": 0.8}) == pytest.approx(0.02)
    assert made.guard_margin({"recall": 0.75}) == pytest.approx(0.01)
    assert made.guard_margin({"recall": 0.7}) == 0
    assert made.guard_margin({"recall": 0.6}) == pytest.approx(-0.02)
    assert made.smallest_margin(0.895, {"recall": 0.8}) == pytest.approx(0.015)
    assert made.smallest_margin(0.9, {"recall": 0.6}) == pytest.approx(-0.02)


def test_without_a_tolerated_drop_there_is_a_unit() -> None:
    made = budget({"max_drop": 0}, recall=0.8)
    assert made.guard_margin({"recall": 0.8}) == 0
    assert made.guard_margin({"recall": 0.8 - UNIT_WITHOUT_DROP}) == pytest.approx(-0.02)
    nothing = Budget(baseline=0.9, drop=0, also=(Guard(name="recall", baseline=0.8, drop=0.1),))
    assert nothing.guard_margin({"recall": 0.6}) == pytest.approx(-UNIT_WITHOUT_DROP)


def test_a_lower_value_may_be_better() -> None:
    made = budget({"max_drop": 0.1, "higher_is_better": False}, recall=0.2)
    assert made.also[0].lowest_tolerated == pytest.approx(0.3)
    assert made.guard_margin({"recall": 0.4}) == pytest.approx(-0.02)


def test_without_guards_the_margin_is_the_metrics() -> None:
    made = settings().budget(0.9, higher_is_better=True)
    assert made.guard_margin({}) is None
    assert made.smallest_margin(0.87, {"any": 0.1}) == made.margin(0.87)
    assert "also" not in settings().identity()
    assert "also" not in made.identity()


def test_values_that_are_no_guards_are_left_out() -> None:
    assert budget({"max_drop": 0.1}, recall=0.8).guard_values({"recall": 0.7, "other": math.nan}, "it") == {
        "recall": 0.7
    }


def test_the_name_of_a_metric() -> None:
    guard = GuardSettings.model_validate({"metric": "torchmetrics.classification.BinaryRecall", "max_drop": 0.1})
    assert guard.label == "BinaryRecall"
    assert guard.direction() is True

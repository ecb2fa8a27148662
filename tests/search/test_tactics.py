"""What a search may try, as the user allows it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import pytest

from kedro_aat.errors import ConfigurationError
from kedro_aat.search.tactics import LR_RATIO, Ranking, Tactics

LOCAL, GLOBAL, TAYLOR = OFFERED = tuple(
    Ranking(importance=importance, ranking=ranking)
    for importance, ranking in (("l2", "local"), ("l2", "global"), ("taylor", "global"))
)
LISTED = Tactics(learning_rate_factor=(10, 1, 30, 3))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, OFFERED),
        ({"importance": "taylor"}, (TAYLOR,)),
        ({"importance": ["taylor", "l2"]}, (TAYLOR, LOCAL, GLOBAL)),
        ({"importance": ["l2", "taylor"]}, (LOCAL, GLOBAL, TAYLOR)),
        ({"ranking": "global"}, (GLOBAL, TAYLOR)),
        ({"importance": "l2", "ranking": ["local"]}, (LOCAL,)),
    ],
)
def test_rankings_are_those_allowed_in_the_order_of_the_importances(
    settings: dict[str, Any], expected: tuple[Ranking, ...]
) -> None:
    assert Tactics.model_validate(settings).rankings(OFFERED) == expected


def test_allowing_nothing_that_is_offered_is_an_error_that_says_what_is() -> None:
    with pytest.raises(ConfigurationError, match=r"l2 \(global\), l2 \(local\), taylor \(global\)"):
        Tactics(importance=("unknown",)).rankings(OFFERED)


def test_a_misspelled_importance_is_an_error_even_beside_a_valid_one() -> None:
    with pytest.raises(ConfigurationError, match=r"tactics: tailor is not .* ranked by: l2 \(global\), .*taylor"):
        Tactics(importance=("tailor", "l2")).rankings(OFFERED)


def test_without_a_choice_the_controller_ranks_in_its_own_way() -> None:
    assert Tactics().rankings(()) == (Ranking(),)


def test_a_single_value_is_a_list_of_one() -> None:
    fixed = Tactics.model_validate(
        {"importance": "l2", "ranking": "local", "learning_rate_factor": 3, "distillation": False}
    )
    assert fixed == Tactics(importance=("l2",), ranking=("local",), learning_rate_factor=(3,), distillation=(False,))
    assert Tactics.model_validate({"importance": None}) == Tactics()


@pytest.mark.parametrize(
    "wrong", [{"learning_rate_factor": 0}, {"learning_rate_factor": [1, -3]}, {"ranking": "odd"}, {"distilation": True}]
)
def test_mistakes_are_reported(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Tactics.model_validate(wrong)


@pytest.mark.parametrize(
    ("allowed", "first"), [(None, 3.0), ([1, 4, 10], 4.0), (0.1, 0.1), ([0.01, 7], 7.0), ([2.9, 5], 2.9)]
)
def test_the_first_factor_is_the_allowed_one_with_the_nearest_ratio(allowed: Any, first: float) -> None:
    assert Tactics.model_validate({"learning_rate_factor": allowed}).first_lr_factor(3.0) == first


@pytest.mark.parametrize(
    ("factor", "direction", "expected"),
    [(3, 1, 10), (3, -1, 1), (10, 1, 30), (1, -1, None), (30, 1, None), (5, 1, 10), (5, -1, 3)],
)
def test_a_neighbor_is_the_next_factor_that_is_listed(
    factor: float, direction: Literal[-1, 1], expected: float | None
) -> None:
    assert LISTED.lr_neighbor(factor, direction) == expected


def steps(direction: Literal[-1, 1]) -> list[float]:
    """All factors from half a decade above 1 in a direction."""
    factors = [LR_RATIO]
    while (neighbor := Tactics().lr_neighbor(factors[-1], direction)) is not None:
        factors.append(neighbor)
    return factors


def test_without_a_list_neighbors_are_half_a_decade_apart_within_the_limits() -> None:
    for direction, last in ((1, 1000), (-1, 0.01)):
        factors = steps(direction)  # type: ignore[arg-type]
        assert [later / before for before, later in pairwise(factors)] == pytest.approx(
            [LR_RATIO**direction] * (len(factors) - 1)
        )
        assert factors[-1] == pytest.approx(last)
    assert math.isclose(LR_RATIO**2, 10)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_step_up_and_a_step_down_lead_back_to_the_same_number(direction: Literal[-1, 1]) -> None:
    """Otherwise a search would take the same factor for another one, and try it again."""
    back: Literal[-1, 1] = -1 if direction == 1 else 1
    for before, after in pairwise(steps(direction)):
        assert Tactics().lr_neighbor(after, back) == before


@pytest.mark.parametrize("name", sorted(Tactics.model_fields))
def test_an_empty_list_is_one_mistake(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"(?s)1 mistake.*{name}: .*at least one, or null"):
        Tactics.model_validate({name: []})

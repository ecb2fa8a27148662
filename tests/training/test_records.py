"""The Pareto front of the checkpoints, the choice for another budget, and the time limit."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedro_aat.budget import Budget
from kedro_aat.errors import AatError
from kedro_aat.training.records import (
    MAX_ON_PARETO_FRONT,
    EpochRecord,
    best_within,
    pareto_front,
    read_records,
)

RECORD = EpochRecord(
    checkpoint=0,
    epoch=0,
    trained=True,
    started_from=None,
    requested_rate=0.0,
    achieved_rate=0.0,
    metric=0.9,
    margin=0.0,
    standard_error=None,
    loss=None,
    learning_rate=None,
    lr_scale=1.0,
    fully_compressed=True,
    best_rate=None,
    seconds=1.0,
)
BUDGET = Budget(baseline=0.9, drop=0.05)


def history_of(*points: tuple[float, float]) -> list[EpochRecord]:
    """A trajectory whose epochs are pairs (rate, metric)."""
    return [
        replace(RECORD, checkpoint=number, achieved_rate=rate, metric=metric, margin=BUDGET.margin(metric))
        for number, (rate, metric) in enumerate(points)
    ]


points = st.lists(st.tuples(st.floats(0, 0.999), st.floats(0, 1)), min_size=1, max_size=40)


@given(points=points)
def test_no_epoch_beats_one_on_the_pareto_front(points: list[tuple[float, float]]) -> None:
    history = history_of(*points)
    numbers = pareto_front(history, range(len(history)))
    assert 1 <= len(numbers) <= MAX_ON_PARETO_FRONT
    for number in numbers:
        row = history[number]
        assert not any(
            other.achieved_rate >= row.achieved_rate
            and other.margin >= row.margin
            and (other.achieved_rate, other.margin) != (row.achieved_rate, row.margin)
            for other in history
        )


@given(points=points)
def test_pareto_front_keeps_its_ends_and_the_best_within_budget(points: list[tuple[float, float]]) -> None:
    history = history_of(*points)
    kept = [history[number] for number in pareto_front(history, range(len(history)))]
    assert max(row.achieved_rate for row in kept) == max(row.achieved_rate for row in history)
    assert max(row.margin for row in kept) == max(row.margin for row in history)
    within = [row.achieved_rate for row in history if row.margin >= 0]
    assert max((row.achieved_rate for row in kept if row.margin >= 0), default=None) == max(within, default=None)


@given(points=points)
def test_pareto_front_grows_epoch_by_epoch(points: list[tuple[float, float]]) -> None:
    """A removed checkpoint never returns, and the best one within budget is never removed."""
    history = history_of(*points)
    kept: set[int] = set()
    for row in history:
        kept = pareto_front(history[: row.checkpoint + 1], kept | {row.checkpoint})
    within = [row.achieved_rate for row in history if row.margin >= 0]
    assert max((history[number].achieved_rate for number in kept if history[number].margin >= 0), default=None) == max(
        within, default=None
    )


def test_partly_compressed_and_removed_models_are_not_on_the_pareto_front() -> None:
    history = history_of((0.5, 0.9), (0.6, 0.9), (0.7, 0.9))
    history[2] = replace(history[2], fully_compressed=False)
    assert pareto_front(history, {0, 1, 2}) == {1}
    assert pareto_front(history, {0, 2}) == {0}


@pytest.mark.parametrize(
    ("drop", "expected"),
    [(0.0, 0.5), (0.02, 0.7), (0.0199, 0.5), (0.3, 0.9), (1.0, 0.99)],
)
def test_best_within_a_budget_has_the_highest_rate_that_keeps_it(drop: float, expected: float) -> None:
    history = history_of((0.0, 0.95), (0.5, 0.9), (0.7, 0.88), (0.9, 0.6), (0.99, 0.1))
    best = best_within(history, range(5), Budget(baseline=0.9, drop=drop))
    assert best is not None
    assert best.achieved_rate == expected


def test_best_within_a_budget_that_no_compressed_model_keeps_is_none() -> None:
    history = history_of((0.0, 0.95), (0.5, 0.8))
    assert best_within(history, range(2), Budget(baseline=0.9, drop=0.01)) is None


def test_lower_is_better() -> None:
    history = history_of((0.5, 1.0), (0.7, 1.2))
    history = [replace(row, margin=1.3 - metric) for row, metric in zip(history, (1.0, 1.2), strict=True)]
    best = best_within(history, range(2), Budget(baseline=1.0, drop=0.1, higher_is_better=False))
    assert best is not None
    assert best.achieved_rate == 0.5


def test_rows_of_a_trajectory_have_the_types_of_a_record() -> None:
    rows = [asdict(record) for record in history_of((0.0, 0.9), (0.5, 0.8))]
    assert read_records(rows) == history_of((0.0, 0.9), (0.5, 0.8))
    assert read_records([row | {"added_later": 1} for row in rows]) == read_records(rows)
    wrong: tuple[dict[str, object], ...] = ({"metric": "high"}, {"checkpoint": None}, {"seconds": {}})
    for changed in wrong:
        with pytest.raises((ValueError, AatError), match=next(iter(changed))):
            read_records([rows[0], rows[1] | changed])
    with pytest.raises((ValueError, AatError), match="valid list"):
        read_records(None)

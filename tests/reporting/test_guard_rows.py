"""Guards in the tables that people read."""

from __future__ import annotations

import pandas as pd

from kedro_aat.budget import Guard
from kedro_aat.delivery.guard_results import GuardResult, summarized
from kedro_aat.delivery.results import Summary
from kedro_aat.reporting.figures import frontier_figure, trajectory_figure
from kedro_aat.reporting.numbers import guard_rows, guard_words, smallest_margins
from tests.reporting.runs import summary_of, trajectory_of


def summary(num_guards: int) -> Summary:
    """A run with guards, each of which has more left than the one before."""
    guards = [
        GuardResult.model_validate(Guard(name=f"recall, class {index}", baseline=0.8, drop=0.1))
        for index in range(num_guards)
    ]
    delivered = {guard.name: 0.7 + 0.01 * index for index, guard in enumerate(guards)}
    made = summarized(guards, delivered, {"recall, class 0": (0.81, 0.71)})
    return Summary.model_validate(
        summary_of("certified").model_dump() | {"guards": [each.model_dump() for each in made]}
    )


def test_a_guard_has_a_row_for_each_split_and_one_for_what_is_tolerated() -> None:
    assert guard_rows(summary(2)) == [
        ("recall, class 0, validation", "0.8000", "0.7000", "-0.1000"),
        ("  tolerated", "", "at least 0.7000", "0.1 worse"),
        ("recall, class 0, test", "0.8100", "0.7100", "-0.1000"),
        ("recall, class 1, validation", "0.8000", "0.7100", "-0.0900"),
        ("  tolerated", "", "at least 0.7000", "0.1 worse"),
    ]


def test_of_an_unread_test_split_nothing_is_said() -> None:
    read = summary(2)
    assert "on the test split, guards are as measured" in guard_words(read)
    unread = [
        each.model_copy(update={"compressed": each.compressed.model_copy(update={"test": None})})
        for each in read.guards
        if each.compressed is not None
    ]
    assert guard_words(read.model_copy(update={"guards": unread})).endswith("every guard on the validation split.")
    assert guard_words(read.model_copy(update={"guards": []})) == ""


def test_of_many_guards_those_with_the_least_left_are_shown() -> None:
    rows = guard_rows(summary(13))
    assert [label for label, *_ in rows if "validation" in label] == [
        f"recall, class {index}, validation" for index in range(10)
    ]
    assert rows[-1][0] == "3 more guards, each with more left"


def test_an_epoch_that_breaks_a_guard_is_below_the_budget() -> None:
    plain = summary(1)
    table = trajectory_of(plain)
    assert smallest_margins(table).equals(table["margin"])
    table["guard_margin"] = [0.05, 0.04, -0.02, *[0.01] * (len(table) - 3)]
    assert smallest_margins(table)[2] == -0.02
    figure = frontier_figure(table, plain)
    below = next(trace for trace in figure.data if trace.name == "below the budget")
    front = next(trace for trace in figure.data if trace.name == "Pareto front")
    broken = table["metric"][2]
    assert broken in below.y
    assert broken not in front.y
    names = [trace.name for trace in trajectory_figure(pd.DataFrame(table), plain).data]
    assert "guards, scaled" in names

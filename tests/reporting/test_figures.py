"""The figures show the data of the trajectory."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import pytest

from kedro_aat.reporting.figure_axes import ratio_axis
from kedro_aat.reporting.figures import costs_figure, delivered_row, for_pane, frontier_figure, trajectory_figure
from tests.reporting.runs import changed, summary_of, trajectory_of

OUTCOMES = ("certified", "within_budget", "infeasible")


def _traces(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("is_higher_better", [True, False])
def test_every_epoch_is_a_point(outcome: str, is_higher_better: bool) -> None:
    summary = summary_of(outcome, is_higher_better=is_higher_better)
    trajectory = trajectory_of(summary)
    figure = frontier_figure(trajectory, summary)
    points = [x for name in ("within budget", "below the budget") for trace in _traces(figure, name) for x in trace.x]
    sizes = 1 / (1 - trajectory.query("stage == 1")["achieved_rate"])
    shares = trajectory.query("stage == 2")["achieved_rate"]
    assert sorted(points) == pytest.approx(sorted([*sizes, *shares]))
    within = _traces(figure, "within budget")
    assert within
    assert all(trace.error_y.array is not None for trace in within)
    assert figure.layout.xaxis.type == "log"
    lines = {shape.y0 for shape in figure.layout.shapes}
    assert lines == {summary.budget.lowest_tolerated, summary.baseline.validation}


@pytest.mark.parametrize("is_higher_better", [True, False])
def test_pareto_front_connects_the_epochs_that_none_beats(is_higher_better: bool) -> None:
    summary = summary_of("certified", is_higher_better=is_higher_better)
    trajectory = trajectory_of(summary)
    line = _traces(frontier_figure(trajectory, summary), "Pareto front")[0]
    # The second of the two epochs at rate 0.9 is the better one.
    assert list(line.x) == pytest.approx([10, 5, 2, 1])
    assert line.y[0] == trajectory["metric"][4]


@pytest.mark.parametrize("is_higher_better", [True, False])
def test_outlier_does_not_set_the_range_of_the_axis(is_higher_better: bool) -> None:
    summary = summary_of("certified", is_higher_better=is_higher_better)
    low, high = frontier_figure(trajectory_of(summary), summary).layout.yaxis.range
    assert high - low < 0.45  # one epoch is 0.5 off
    assert low < summary.budget.lowest_tolerated < high
    assert low < summary.baseline.validation < high


def test_delivered_model_is_marked() -> None:
    summary = summary_of("within_budget")
    trajectory = trajectory_of(summary)
    assert delivered_row(trajectory, summary) == 6
    for figure in (frontier_figure(trajectory, summary), trajectory_figure(trajectory, summary)):
        (star,) = _traces(figure, "delivered")
        assert list(star.y) == [trajectory["metric"][6]]


def test_delivered_fallback_is_marked_at_the_epoch_of_its_checkpoint() -> None:
    """Another epoch at that rate was better, but its checkpoint no longer existed."""
    summary = summary_of("within_budget")
    fallback = {"name": "filter_pruning at rate 0.9000 (checkpoint 3)", "rate": 0.9, "checkpoint": 3}
    candidate = summary.candidates[0].model_copy(update=fallback)
    summary = changed(summary, candidates=[candidate], delivered=candidate.name, delivered_id=candidate.id)
    assert delivered_row(trajectory_of(summary), summary) == 3


def test_model_that_a_delivered_stage_began_with_is_marked() -> None:
    summary = summary_of("within_budget")
    trajectory = trajectory_of(summary)
    (star,) = _traces(frontier_figure(trajectory, summary), "passed on")
    assert list(star.y) == [trajectory["metric"][2]]


def test_nothing_is_marked_if_no_model_is_delivered() -> None:
    summary = summary_of("infeasible")
    trajectory = trajectory_of(summary)
    assert delivered_row(trajectory, summary) is None
    assert not _traces(frontier_figure(trajectory, summary), "delivered")


def test_trajectory_shows_both_stages_and_learning_rates_of_trained_epochs() -> None:
    summary = summary_of("certified")
    figure = trajectory_figure(trajectory_of(summary), summary)
    assert [list(trace.x) for trace in _traces(figure, "margin")] == [[0, 1, 2, 3, 4], [5, 6]]
    assert [trace.y[0] for trace in _traces(figure, "learning rate")] == [None, None]
    texts = [note.text for note in figure.layout.annotations]
    assert {"Stage 1", "2"} <= set(texts)


def test_single_stage_has_no_number() -> None:
    summary = summary_of("infeasible")
    summary = changed(summary, stages=summary.stages[:1])
    texts = [note.text for note in frontier_figure(trajectory_of(summary), summary).layout.annotations]
    assert "Filter pruning" in texts


def test_unknown_standard_errors_have_no_error_bars() -> None:
    summary = summary_of("certified")
    trajectory = trajectory_of(summary).assign(standard_error=float("nan"))
    for trace in frontier_figure(trajectory, summary).data:
        assert trace.error_y.array is None


def test_costs_are_fractions_of_the_baseline() -> None:
    figure = costs_figure(summary_of("certified"))
    assert [trace.name for trace in figure.data] == ["filter pruning", "quantization, delivered"]
    assert list(figure.data[1].x) == pytest.approx([0.1] * 8)


def test_figures_hold_plain_lists() -> None:
    summary = changed(summary_of("certified"), metric={"name": "<script>"})
    for figure in (
        frontier_figure(trajectory_of(summary), summary),
        trajectory_figure(trajectory_of(summary), summary),
    ):
        written = figure.to_json()
        assert "bdata" not in written  # base64 arrays, which older viewers cannot read
        assert "<script>" not in json.dumps(json.loads(written))


def test_failed_epoch_is_no_point_and_sets_no_range() -> None:
    summary = summary_of("within_budget")
    usual = trajectory_of(summary)
    failed = usual.iloc[[2]].assign(achieved_rate=0.99, metric=math.nan, margin=math.nan)
    trajectory = pd.concat([usual, failed], ignore_index=True)
    for figure, other in (
        (frontier_figure(trajectory, summary), frontier_figure(usual, summary)),
        (trajectory_figure(trajectory, summary), trajectory_figure(usual, summary)),
    ):
        assert figure.layout.yaxis.range == other.layout.yaxis.range
    (front, *_), (expected, *_) = (
        _traces(frontier_figure(rows, summary), "Pareto front") for rows in (trajectory, usual)
    )
    assert list(front.x) == list(expected.x)
    assert None not in front.y


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 137.0], [1, 2, 5, 10, 20, 50, 100]),
        ([1.0, 4.0], [1, 1.5, 2, 3]),
        ([1.0, 1.1], [1, 1.05, 1.1, 1.15]),
        ([0.001, 10.0], [0.001, 0.01, 0.1, 1, 10]),
        ([1.0], [0.96, 0.98, 1, 1.02, 1.04]),
    ],
)
def test_ticks_are_enough_at_any_range(values: list[float], expected: list[float]) -> None:
    axis = ratio_axis(values, "x")
    assert axis["tickvals"] == pytest.approx(expected)
    assert axis["ticktext"] == [f"{tick:g}x" for tick in expected]
    low, high = axis["range"]
    assert 10**low < min(values) <= max(values) < 10**high


@pytest.mark.parametrize("is_higher_better", [True, False])
def test_arrow_stands_for_the_epoch_beyond_the_axis(is_higher_better: bool) -> None:
    summary = summary_of("certified", is_higher_better=is_higher_better)
    trajectory = trajectory_of(summary)
    worst = trajectory["metric"][3]
    for figure, position in (
        (frontier_figure(trajectory, summary), 10),
        (trajectory_figure(trajectory, summary), 3),
    ):
        (arrow,) = _traces(figure, "off the axis")
        axis = figure.layout["yaxis" + arrow.yaxis[1:]]
        assert list(arrow.x) == pytest.approx([position])
        assert list(arrow.y) == [axis.range[0 if is_higher_better else 1]]
        assert list(arrow.text) == [f"off the axis: {worst:.4f}"]
        sign = "▼" if is_higher_better else "▲"
        assert f"{sign} {worst:.4g}" in [note.text for note in figure.layout.annotations]


def test_no_arrow_if_every_epoch_is_on_the_axis() -> None:
    summary = summary_of("certified")
    trajectory = trajectory_of(summary).drop(index=3)
    assert not _traces(frontier_figure(trajectory, summary), "off the axis")


def test_side_pane_gets_a_figure_without_a_height_of_its_own() -> None:
    summary = summary_of("certified")
    trajectory = trajectory_of(summary)
    small = trajectory_figure(trajectory, summary, ("rate", "metric"))
    shown = for_pane(trajectory_figure(trajectory, summary), small)
    assert shown.layout.height is not None
    pane = shown.layout.meta["pane"]
    assert "height" not in pane["layout"]
    assert {"yaxis", "yaxis2"} <= pane["layout"].keys()
    assert "yaxis3" not in pane["layout"]

"""The figures of a run: rate against metric, the trajectory of all stages, and the costs of the files.

No figure sets the color of its text or background, because the report and Kedro-Viz apply their own light or dark
theme. The colors of the data are readable on both. Data are lists, which every version of plotly.js reads.
"""

from __future__ import annotations

import itertools
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kedro_aat.delivery.results import Summary
from kedro_aat.reporting.figure_axes import mark_off_axis, metric_range, ratio_axis
from kedro_aat.reporting.numbers import COSTS, files_title, smallest_margins, stage_name
from kedro_aat.reporting.others import NotDelivered, pareto_front, row_of

if TYPE_CHECKING:
    import pandas as pd

BLUE, ORANGE, GREEN, RED, GRAY = "#4a86e8", "#e07b39", "#2ca373", "#d9534f", "#8a8f98"
Panel = Literal["rate", "metric", "margin", "learning rate"]
_CLEAR = "rgba(0,0,0,0)"
_FONT = {"family": "system-ui, sans-serif", "size": 13}
_LINE = 44  # characters of a line in a tooltip


def delivered_row(trajectory: pd.DataFrame, summary: Summary) -> Any:
    """Label of the epoch whose model is delivered; None if nothing is delivered."""
    chosen = summary.delivered_candidate
    return None if chosen is None else row_of(trajectory, chosen.stage, chosen.checkpoint)


def frontier_figure(trajectory: pd.DataFrame, summary: Summary, others: Sequence[NotDelivered] = ()) -> go.Figure:
    """Each epoch by rate and metric, one panel per stage.

    If the rate is a removed fraction, the axis is logarithmic and shows how many times less is left. Bars are one
    standard error of the metric's difference to the baseline.

    Args:
        trajectory: Trajectory of all stages, with the column `stage`.
        summary: Summary of the run.
        others: Models that are not delivered; the tooltip of each says why.
    """
    reasons = {model.row: model.why for model in others if model.row is not None}
    stages = sorted(int(stage) for stage in trajectory["stage"].unique())
    height = 160 + 300 * len(stages)
    figure = make_subplots(
        rows=len(stages),
        cols=1,
        subplot_titles=[escape(stage_name(summary, stage)) for stage in stages],
        vertical_spacing=190 / height,  # the title and ticks of an axis, and the next panel's title
        row_heights=[2.0, *[1.0] * (len(stages) - 1)],
    )
    _left(figure)
    delivered = delivered_row(trajectory, summary)
    for panel, stage in enumerate(stages, start=1):
        rows = trajectory[trajectory["stage"] == stage]
        is_share = summary.numbered_stages[stage].algorithms[0] == "quantization"
        sizes = rows["achieved_rate"] if is_share else 1 / (1 - rows["achieved_rate"]).clip(lower=1e-6)
        bounds = metric_range(rows, summary)
        _add_epochs(figure, rows, sizes, panel, reasons)
        if delivered in rows.index:
            _mark(figure, sizes[delivered], rows.loc[delivered, "metric"], panel, _star())
        elif (passed := _passed_on(trajectory, summary, stage)) is not None:
            _mark(figure, sizes[passed], rows.loc[passed, "metric"], panel, _star(is_open=True))
        axis = {"title": "Share of the weights in 8 bits", "tickformat": ".0%", "range": [-0.05, 1.05]}
        if not is_share:
            share_of = summary.numbered_stages[stage].rate.share_of
            title = "Times smaller, 1 / (1 - rate)" + ("" if share_of is None else f"<br>rate: {share_of}")
            axis = {"title": title, **ratio_axis(list(sizes), "x")}
        figure.update_xaxes(axis, row=panel, col=1)
        figure.update_yaxes(title=escape(summary.metric.name), range=bounds, row=panel, col=1)
        mark_off_axis(figure, panel, [float(size) for size in sizes], _numbers(rows["metric"]), bounds, ORANGE)
        limit = "lowest tolerated" if summary.metric.higher_is_better else "highest tolerated"
        # The text is on the side of the baseline; on the other side the panel may end.
        side = "top left" if summary.metric.higher_is_better else "bottom left"
        _add_line(figure, panel, summary.budget.lowest_tolerated, limit, RED, "dash", side)
        _add_line(figure, panel, summary.baseline.validation, "baseline", GRAY, "dot")
    return finished(figure, height=height)


def trajectory_figure(
    trajectory: pd.DataFrame, summary: Summary, panels: Sequence[Panel] = ("rate", "metric", "margin", "learning rate")
) -> go.Figure:
    """Rates, metric, margin and learning rate over the epochs of all stages, one panel each.

    Args:
        trajectory: Trajectory of all stages, with the column `stage`.
        summary: Summary of the run.
        panels: The panels to show, from top to bottom.
    """
    metric = escape(summary.metric.name)
    titles = {"metric": f"{metric}, validation", "margin": "Margin to the worst tolerated"}
    rows_of: dict[Panel, int] = {panel: number for number, panel in enumerate(panels, start=1)}
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        subplot_titles=[titles.get(panel, panel.capitalize()) for panel in panels],
        vertical_spacing=0.5 / len(panels),  # Kedro-Viz also shows the ticks of the topmost axis
    )
    _left(figure)
    curves: list[tuple[Panel, str, str, str, str]] = [
        ("rate", "requested_rate", "requested", GRAY, "dot"),
        ("rate", "achieved_rate", "achieved", BLUE, "solid"),
        ("metric", "metric", metric, BLUE, "solid"),
        ("margin", "margin", "margin", BLUE, "solid"),
        ("learning rate", "learning_rate", "learning rate", BLUE, "solid"),
    ]
    if "guard_margin" in trajectory:
        curves.append(("margin", "guard_margin", "guards, scaled", ORANGE, "dash"))
    trajectory = trajectory.reset_index(drop=True)
    for number, (stage, rows) in enumerate(trajectory.groupby("stage")):
        position = [int(index) for index in rows.index]
        texts = [f"stage {row.stage}, epoch {row.epoch}" for row in rows.itertuples()]
        for panel, column, name, color, dash in curves:
            if panel not in rows_of:
                continue
            values = rows[column].where(rows["trained"]) if column == "learning_rate" else rows[column]
            figure.add_scatter(
                x=position,
                y=_numbers(values),
                mode="lines+markers",
                name=name,
                line={"color": color, "dash": dash, "width": 1.5, "shape": "hv" if panel == "rate" else "linear"},
                marker={"size": 4},
                error_y=_error_bars(rows) if column == "margin" else None,
                text=texts,
                hovertemplate="%{text}<br>%{y:.5~g}<extra>" + name + "</extra>",
                showlegend=number == 0 and panel == "rate",
                row=rows_of[panel],
                col=1,
            )
        if number > 0:
            figure.add_vline(x=position[0] - 0.5, line={"color": GRAY, "width": 1})
        figure.add_annotation(
            x=(position[0] + position[-1]) / 2,
            y=1,
            yref="paper",
            yanchor="bottom",
            # Its full name would not fit on a phone, and a later stage has few epochs.
            text=f"Stage {stage}" if number == 0 else str(stage),
            font={"size": 11, "color": GRAY},
            showarrow=False,
        )
    if "metric" in rows_of:
        _finish_metric(figure, trajectory, summary, rows_of["metric"])
    if "rate" in rows_of:
        figure.update_yaxes(tickformat=".0%", row=rows_of["rate"], col=1)
    if "margin" in rows_of:
        _add_line(figure, rows_of["margin"], 0.0, "", RED, "dash")
    if "learning rate" in rows_of:
        figure.update_yaxes(type="log", tickformat=".0e", dtick=1, row=rows_of["learning rate"], col=1)
    figure.update_xaxes(range=[-1, len(trajectory)])
    figure.update_xaxes(title="Validations, in order", row=len(panels), col=1)
    return finished(figure, height=60 + 200 * len(panels))


def _finish_metric(figure: go.Figure, trajectory: pd.DataFrame, summary: Summary, panel: int) -> None:
    """Adds the lowest tolerated metric and the delivered model, and ends the axis before the worst epochs."""
    _add_line(figure, panel, summary.budget.lowest_tolerated, "", RED, "dash")
    delivered = delivered_row(trajectory, summary)
    if delivered is not None:
        value = float(trajectory.loc[delivered, "metric"])
        figure.add_scatter(x=[int(delivered)], y=[value], row=panel, col=1, **_star())
    bounds = metric_range(trajectory, summary)
    positions = [float(index) for index in trajectory.index]
    mark_off_axis(figure, panel, positions, _numbers(trajectory["metric"]), bounds, ORANGE)
    figure.update_yaxes(range=bounds, row=panel, col=1)


def _left(figure: go.Figure) -> None:
    """Puts the titles of the panels, which are the only annotations yet, at the left, where nothing else is written."""
    figure.update_annotations(x=0, xanchor="left")


def for_pane(figure: go.Figure, small: go.Figure) -> go.Figure:
    """A figure that carries a smaller one, which `FigureDataset` shows in the side pane of Kedro-Viz.

    The pane is about 400 pixels wide and 300 high, whatever the figure asks for, and has no legend.

    Args:
        figure: The figure.
        small: What is shown in its place; its texts are made smaller.
    """
    # What make_subplots makes a title is an annotation; it stays readable where the panels are low.
    small.update_annotations(font_size=10)
    small.update_layout(height=None, showlegend=False, font_size=10)
    small.update_xaxes(title_standoff=4, tickfont_size=9)
    small.update_yaxes(tickfont_size=9, nticks=5, title_text=None)
    shown = go.Figure(figure)
    shown.update_layout(meta={"pane": json.loads(small.to_json())})
    return shown


def costs_figure(summary: Summary) -> go.Figure:
    """Sizes, operations and latencies of every candidate, as fractions of the baseline's; further left is smaller."""
    baseline = summary.baseline
    figure = go.Figure()
    known = [(label, key) for label, key in COSTS if getattr(baseline, key) is not None]
    baseline_latencies = baseline.latency_fastest_ms or {}
    latencies = list(baseline_latencies)
    files = [f"{files_title(target)}, bytes" for target in baseline.targets]
    labels = [*(label for label, _ in known), *files, *(f"latency, batch {size}" for size in latencies)]
    for candidate, color in zip(summary.candidates, itertools.cycle((BLUE, ORANGE, GREEN, RED, GRAY))):
        pairs = [
            (getattr(baseline, key), getattr(candidate, key), f"{getattr(candidate, key):,.0f}") for _, key in known
        ]
        for target, before in baseline.targets.items():
            own = candidate.targets.get(target)
            pairs.append((before.bytes, own and own.bytes, "" if own is None else f"{own.bytes:,}"))
        for size in latencies:
            measured = (candidate.latency_fastest_ms or {})[size]
            pairs.append((baseline_latencies[size], measured, f"{measured:.3f} ms"))
        is_delivered = candidate.id == summary.delivered_id
        name = escape(candidate.name.replace("_", " ")) + (", delivered" if is_delivered else "")
        figure.add_scatter(
            x=[after / before if before and after is not None else None for before, after, _ in pairs],
            y=labels,
            mode="markers",
            name=name,
            marker={
                "size": 14 if is_delivered else 10,
                "symbol": "star" if is_delivered else "circle",
                "color": color,
            },
            text=[text for _, _, text in pairs],
            hovertemplate="%{y}: %{text}<br>%{x:.3~g} of the baseline<extra>" + name + "</extra>",
        )
    figure.add_vline(x=1, line={"color": GRAY, "dash": "dot", "width": 1.5})
    shares = [share for trace in figure.data for share in trace.x if share]
    figure.update_xaxes(title="Times the baseline", **ratio_axis([1.0, *shares], "x"))
    figure.update_yaxes(autorange="reversed")
    return finished(figure, height=420)


def _add_epochs(
    figure: go.Figure,
    rows: pd.DataFrame,
    sizes: pd.Series[float],
    panel: int,
    reasons: Mapping[Any, str],
) -> None:
    margins = smallest_margins(rows)
    for is_within, name, color in ((True, "within budget", GREEN), (False, "below the budget", ORANGE)):
        some = rows.assign(margin=margins)[(margins >= 0) == is_within]
        figure.add_scatter(
            x=_numbers(sizes[some.index]),
            y=_numbers(some["metric"]),
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=panel == 1,
            marker={"color": color, "size": 7, "symbol": "circle" if is_within else "x"},
            error_y=_error_bars(some),
            text=[
                f"epoch {row.epoch}, rate {row.achieved_rate:.4f}, margin {row.margin:+.4f}" + _why(reasons, row.Index)
                for row in some.itertuples()
            ],
            hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
            row=panel,
            col=1,
        )
    best = pareto_front(rows)
    figure.add_scatter(
        x=_numbers(sizes[best]),
        y=_numbers(rows.loc[best, "metric"]),
        mode="lines",
        name="Pareto front",
        legendgroup="front",
        showlegend=panel == 1,
        line={"color": BLUE, "width": 2},
        hoverinfo="skip",
        row=panel,
        col=1,
    )


def _passed_on(trajectory: pd.DataFrame, summary: Summary, stage: int) -> Any:
    """Label of the epoch whose model a later stage, which is delivered, began with; None if there is none."""
    chosen = summary.delivered_candidate
    if chosen is None or stage >= chosen.stage or stage not in summary.stages_of(chosen):
        return None
    return row_of(trajectory, stage, summary.numbered_stages[stage].best_checkpoint)


def _mark(figure: go.Figure, x: float, metric: float, panel: int, marker: dict[str, Any]) -> None:
    figure.add_scatter(x=[float(x)], y=[float(metric)], row=panel, col=1, **marker)


def _why(reasons: Mapping[Any, str], label: Any) -> str:
    """Why the model of an epoch is not delivered, as further lines of its tooltip."""
    if label not in reasons:
        return ""
    lines = textwrap.wrap(f"Not delivered: {reasons[label]}", _LINE)
    return "".join(f"<br>{escape(line)}" for line in lines)


def _add_line(
    figure: go.Figure, panel: int, value: float, text: str, color: str, dash: str, side: str = "top left"
) -> None:
    figure.add_hline(
        y=value,
        line={"color": color, "dash": dash, "width": 1.5},
        annotation={"text": text, "font": {"color": color}},
        annotation_position=side,
        row=panel,
        col=1,
    )


def _star(*, is_open: bool = False) -> dict[str, Any]:
    """The delivered model, or the one that a later stage began with."""
    name = "passed on" if is_open else "delivered"
    line = {"color": BLUE if is_open else "white", "width": 1.5 if is_open else 1}
    return {
        "mode": "markers",
        "name": name,
        "legendgroup": name,
        "marker": {"symbol": "star-open" if is_open else "star", "size": 16, "color": BLUE, "line": line},
        "hoverinfo": "skip",
    }


def _error_bars(rows: pd.DataFrame) -> dict[str, Any] | None:
    if rows["standard_error"].isna().all():
        return None
    return {"array": _numbers(rows["standard_error"]), "thickness": 1, "width": 0, "color": "rgba(138,143,152,0.6)"}


def _numbers(values: pd.Series[float]) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]


def finished(figure: go.Figure, height: int) -> go.Figure:
    """Applies what all figures have in common.

    Args:
        figure: The figure, which is changed and returned.
        height: Its height in pixels.
    """
    figure.update_layout(
        height=height,
        template="none",
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        font=_FONT,
        margin={"l": 62, "r": 16, "t": 70, "b": 56},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.08, "x": 0},
        hovermode="closest",
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
    return figure

"""The figures of a run: rate against metric, the trajectory of all stages, and the costs of the files.

No figure sets the color of its text or background, because the report and Kedro-Viz apply their own light or dark
theme. The colors of the data are readable on both. Data are lists, which every version of plotly.js reads.
"""

from __future__ import annotations

import itertools
import math
from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kedro_aat.delivery.results import Summary
from kedro_aat.reporting.numbers import COSTS, smallest_margins, stage_name

if TYPE_CHECKING:
    import pandas as pd

BLUE, ORANGE, GREEN, RED, GRAY = "#4a86e8", "#e07b39", "#2ca373", "#d9534f", "#8a8f98"
_CLEAR = "rgba(0,0,0,0)"
_FONT = {"family": "system-ui, sans-serif", "size": 13}
# Tolerated drops that are shown below the lowest tolerated metric; a single bad epoch would flatten all others.
_SHOWN_DROPS = 6
_TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
_TICK_TEXTS = [f"{tick}x" for tick in _TICKS]


def delivered_row(trajectory: pd.DataFrame, summary: Summary) -> Any:
    """Index of the epoch whose model is delivered; None if nothing is delivered."""
    chosen = summary.delivered_candidate
    if chosen is None:
        return None
    rows = trajectory[(trajectory["stage"] == chosen.stage) & (trajectory["checkpoint"] == chosen.checkpoint)]
    return None if rows.empty else rows.index[0]


def frontier_figure(trajectory: pd.DataFrame, summary: Summary) -> go.Figure:
    """Each epoch by rate and metric, one panel per stage.

    If the rate is a removed fraction, the axis is logarithmic and shows how many times less is left. Bars are one
    standard error of the metric's difference to the baseline.

    Args:
        trajectory: Trajectory of all stages, with the column `stage`.
        summary: Summary of the run.
    """
    stages = sorted(int(stage) for stage in trajectory["stage"].unique())
    height = 160 + 300 * len(stages)
    figure = make_subplots(
        rows=len(stages),
        cols=1,
        subplot_titles=[escape(stage_name(summary, stage)) for stage in stages],
        vertical_spacing=167 / height,  # the title and ticks of an axis, and the next panel's title
        row_heights=[2.0, *[1.0] * (len(stages) - 1)],
    )
    delivered = delivered_row(trajectory, summary)
    for panel, stage in enumerate(stages, start=1):
        rows = trajectory[trajectory["stage"] == stage]
        is_share = summary.numbered_stages[stage].algorithms[0] == "quantization"
        _add_epochs(figure, rows, panel, is_share, delivered)
        axis = {"title": "Share of the weights in 8 bits", "tickformat": ".0%", "range": [-0.05, 1.05]}
        if not is_share:
            axis = {
                "title": "Times smaller, 1 / (1 - rate)",
                "type": "log",
                "tickvals": _TICKS,
                "ticktext": _TICK_TEXTS,
            }
        figure.update_xaxes(axis, row=panel, col=1)
        figure.update_yaxes(title=escape(summary.metric.name), range=_metric_range(rows, summary), row=panel, col=1)
        # The text is on the side of the baseline; on the other side the panel may end.
        side = "top left" if summary.metric.higher_is_better else "bottom left"
        _add_line(figure, panel, summary.budget.lowest_tolerated, "lowest tolerated", RED, "dash", side)
        _add_line(figure, panel, summary.baseline.validation, "baseline", GRAY, "dot")
    return _finished(figure, height=height)


def trajectory_figure(trajectory: pd.DataFrame, summary: Summary) -> go.Figure:
    """Rates, metric, margin and learning rate over the epochs of all stages, one panel each.

    Args:
        trajectory: Trajectory of all stages, with the column `stage`.
        summary: Summary of the run.
    """
    metric = escape(summary.metric.name)
    figure = make_subplots(
        rows=4,
        cols=1,
        shared_xaxes=True,
        subplot_titles=[
            "Rate",
            f"{metric}, validation",
            "Margin to the lowest tolerated",
            "Learning rate",
        ],
        vertical_spacing=0.1,  # Kedro-Viz also shows the ticks of the topmost axis
    )
    first = True
    for _, rows in trajectory.reset_index(drop=True).groupby("stage"):
        position = [int(index) for index in rows.index]
        texts = [f"stage {row.stage}, epoch {row.epoch}" for row in rows.itertuples()]
        for panel, column, name, color, dash in (
            (1, "requested_rate", "requested", GRAY, "dot"),
            (1, "achieved_rate", "achieved", BLUE, "solid"),
            (2, "metric", metric, BLUE, "solid"),
            (3, "margin", "margin", BLUE, "solid"),
            (4, "learning_rate", "learning rate", BLUE, "solid"),
            *([(3, "guard_margin", "guards, scaled", ORANGE, "dash")] if "guard_margin" in rows else []),
        ):
            values = rows[column].where(rows["trained"]) if column == "learning_rate" else rows[column]
            figure.add_scatter(
                x=position,
                y=_numbers(values),
                mode="lines+markers",
                name=name,
                line={"color": color, "dash": dash, "width": 1.5, "shape": "hv" if panel == 1 else "linear"},
                marker={"size": 4},
                error_y=_error_bars(rows) if column == "margin" else None,
                text=texts,
                hovertemplate="%{text}<br>%{y:.5~g}<extra>" + name + "</extra>",
                showlegend=first and panel == 1,
                row=panel,
                col=1,
            )
        if not first:
            figure.add_vline(x=position[0] - 0.5, line={"color": GRAY, "width": 1})
        figure.add_annotation(
            x=position[0],
            y=1.05,
            yref="paper",
            yanchor="bottom",
            xanchor="left",
            text=f"Stage {rows['stage'].iloc[0]}",  # its full name would not fit on a phone
            showarrow=False,
        )
        first = False
    _add_line(figure, 2, summary.budget.lowest_tolerated, "", RED, "dash")
    _add_line(figure, 3, 0.0, "", RED, "dash")
    delivered = delivered_row(trajectory.reset_index(drop=True), summary)
    if delivered is not None:
        value = float(trajectory["metric"].iloc[delivered])
        figure.add_scatter(x=[int(delivered)], y=[value], row=2, col=1, **_star())
    figure.update_yaxes(tickformat=".0%", row=1, col=1)
    figure.update_yaxes(range=_metric_range(trajectory, summary), row=2, col=1)
    figure.update_yaxes(type="log", tickformat=".0e", dtick=1, row=4, col=1)
    figure.update_xaxes(range=[-1, len(trajectory)])
    figure.update_xaxes(title="Validations, in order", row=4, col=1)
    return _finished(figure, height=860)


def costs_figure(summary: Summary) -> go.Figure:
    """Sizes, operations and latencies of every candidate, as fractions of the baseline's; further left is smaller."""
    baseline = summary.baseline
    figure = go.Figure()
    known = [(label, key) for label, key in COSTS if getattr(baseline, key) is not None]
    baseline_latencies = baseline.latency_fastest_ms or {}
    latencies = list(baseline_latencies)
    labels = [label for label, _ in known] + [f"latency, batch {size}" for size in latencies]
    for candidate, color in zip(summary.candidates, itertools.cycle((BLUE, ORANGE, GREEN, RED, GRAY))):
        pairs = [
            (getattr(baseline, key), getattr(candidate, key), f"{getattr(candidate, key):,.0f}") for _, key in known
        ]
        for size in latencies:
            measured = (candidate.latency_fastest_ms or {})[size]
            pairs.append((baseline_latencies[size], measured, f"{measured:.3f} ms"))
        is_delivered = candidate.id == summary.delivered_id
        name = escape(candidate.name.replace("_", " ")) + (", delivered" if is_delivered else "")
        figure.add_scatter(
            x=[after / before if before else None for before, after, _ in pairs],
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
    figure.update_xaxes(
        title="Share of the baseline, which is at 1", type="log", tickvals=[0.001, 0.01, 0.1, 1, 10], tickformat="~g"
    )
    figure.update_yaxes(autorange="reversed")
    return _finished(figure, height=420)


def _add_epochs(figure: go.Figure, rows: pd.DataFrame, panel: int, is_share: bool, delivered: Any) -> None:
    left = (1 - rows["achieved_rate"]).clip(lower=1e-6)
    sizes = rows["achieved_rate"] if is_share else 1 / left
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
                f"epoch {row.epoch}, rate {row.achieved_rate:.4f}, margin {row.margin:+.4f}"
                for row in some.itertuples()
            ],
            hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
            row=panel,
            col=1,
        )
    best = _pareto_front(rows)
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
    if delivered in rows.index:
        figure.add_scatter(
            x=[float(sizes[delivered])], y=[float(rows.loc[delivered, "metric"])], row=panel, col=1, **_star()
        )


def _pareto_front(rows: pd.DataFrame) -> pd.Index:
    """Indices of the epochs on the Pareto front of rate and metric, by falling rate."""
    judged = rows[rows["margin"].notna()]  # a failed epoch has none
    if "guard_margin" in judged:
        judged = judged[judged["guard_margin"] >= 0]  # one that breaks a guard is never chosen
    by_rate = judged.sort_values(["achieved_rate", "margin"], ascending=False)
    highest_before = by_rate["margin"].cummax().shift(fill_value=-math.inf)
    return by_rate.index[by_rate["margin"] > highest_before]


def _metric_range(rows: pd.DataFrame, summary: Summary) -> list[float]:
    """From slightly above the best metric to the worst one, or to several tolerated drops below the baseline."""
    budget, baseline = summary.budget, summary.baseline.validation
    worse = -1 if summary.metric.higher_is_better else 1
    # Distances from the baseline, growing as the metric gets worse.
    distances = worse * (rows["metric"] - baseline)
    errors = rows["standard_error"].fillna(0)
    farthest = float((distances + errors).max())
    if budget.drop > 0:
        farthest = min(farthest, (1 + _SHOWN_DROPS) * budget.drop)
    worst = max(farthest, budget.drop)
    best = min(float((distances - errors).min()), 0.0)
    margin = 0.06 * (worst - best) or 1e-3
    return sorted((baseline + worse * (best - margin), baseline + worse * (worst + margin)))


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


def _star() -> dict[str, Any]:
    return {
        "mode": "markers",
        "name": "delivered",
        "legendgroup": "delivered",
        "marker": {"symbol": "star", "size": 16, "color": BLUE, "line": {"color": "white", "width": 1}},
        "hoverinfo": "skip",
    }


def _error_bars(rows: pd.DataFrame) -> dict[str, Any] | None:
    if rows["standard_error"].isna().all():
        return None
    return {"array": _numbers(rows["standard_error"]), "thickness": 1, "width": 0, "color": "rgba(138,143,152,0.6)"}


def _numbers(values: pd.Series[float]) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]


def _finished(figure: go.Figure, height: int) -> go.Figure:
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

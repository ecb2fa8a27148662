"""Axes of the figures: where they end, what they say of points beyond, and their ticks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kedro_aat.delivery.results import Summary

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

# Tolerated drops that are shown below the lowest tolerated metric; a single bad epoch would flatten all others.
_SHOWN_DROPS = 6
_FEWEST_TICKS = 4
_DECADES = range(-6, 7)
# Leading digits of the ticks of a logarithmic axis, those of a wide axis first; `_FEWEST_TICKS` may ask for finer ones.
_DIGITS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
_STEPS = (5.0, 2.5, 2.0, 1.0)


def ratio_axis(values: list[float], suffix: str = "") -> dict[str, Any]:
    """A logarithmic axis of ratios that has at least four ticks, however little the ratios differ.

    Args:
        values: What is shown, above 0.
        suffix: What follows each number, such as `x`.
    """
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    pad = max(0.06 * math.log10(high / low), 0.02)
    bounds = [math.log10(low) - pad, math.log10(high) + pad]
    ticks = _ticks(10 ** bounds[0], 10 ** bounds[1])
    texts = [f"{tick:.6g}{suffix}" for tick in ticks]
    return {"type": "log", "range": bounds, "tickvals": ticks, "ticktext": texts}


def _ticks(low: float, high: float) -> list[float]:
    for digits in _DIGITS:
        ticks = [digit * 10.0**decade for decade in _DECADES for digit in digits if low <= digit * 10.0**decade <= high]
        if len(ticks) >= _FEWEST_TICKS:
            return ticks
    # The largest step that gives enough.
    decade = 10.0 ** math.floor(math.log10(high - low))
    steps = [factor * size for size in (decade, 0.1 * decade) for factor in _STEPS]
    linear = ([n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)] for step in steps)
    return next(ticks for ticks in linear if len(ticks) >= _FEWEST_TICKS)


def metric_range(rows: pd.DataFrame, summary: Summary) -> list[float]:
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
    # Twice as much on the better side, where the name of the baseline stands.
    return sorted((baseline + worse * (best - 2 * margin), baseline + worse * (worst + margin)))


def mark_off_axis(
    figure: go.Figure, panel: int, xs: list[float], metrics: list[float | None], bounds: list[float], color: str
) -> None:
    """An arrow on the edge for each point beyond the axis of a panel, and how far the farthest of them lies.

    Args:
        figure: The figure, which is changed.
        panel: Row of the panel, from 1.
        xs: Positions of the points; on a logarithmic axis these are the values, too.
        metrics: Their metrics; None for a failed epoch, which is no point.
        bounds: Lowest and highest metric of the axis.
        color: Color of arrows and text.
    """
    low, high = bounds
    points = [(x, metric) for x, metric in zip(xs, metrics, strict=True) if metric is not None]
    for edge, is_below in ((low, True), (high, False)):
        off = [(x, metric) for x, metric in points if (metric < low if is_below else metric > high)]
        if not off:
            continue
        arrow, sign = ("triangle-down", "▼") if is_below else ("triangle-up", "▲")
        farthest = min(metric for _, metric in off) if is_below else max(metric for _, metric in off)
        figure.add_scatter(
            x=[x for x, _ in off],
            y=[edge] * len(off),
            mode="markers",
            name="off the axis",
            marker={"symbol": arrow, "size": 11, "color": color},
            text=[f"off the axis: {metric:.4f}" for _, metric in off],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
            showlegend=False,
            row=panel,
            col=1,
        )
        number = "" if len(off) == 1 else f"{len(off)} off the axis, as far as "
        figure.add_annotation(
            text=f"{sign} {number}{farthest:.4g}",
            x=0.01,
            xref="x domain",
            xanchor="left",
            y=edge,
            yanchor="bottom" if is_below else "top",
            showarrow=False,
            font={"color": color, "size": 12},
            row=panel,
            col=1,
        )

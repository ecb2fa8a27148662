"""The figure that compares targets: a panel for bytes, each latency and more, with a bar for each model."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kedro_aat.delivery.results import Summary
from kedro_aat.export.targets.registry import TARGETS
from kedro_aat.reporting.figures import BLUE, GRAY, ORANGE, finished
from kedro_aat.reporting.targets import compared_models, compared_targets, quantities

_BAR, _PANEL = 20, 80  # pixels of a bar, and of what a panel has beside bars
_COLORS = {"baseline": GRAY, "float": ORANGE, "int8": BLUE}


def targets_figure(summary: Summary) -> go.Figure:
    """Baseline and compressed models in each target, by all that is known of several; a shorter bar is better.

    Args:
        summary: Summary of a run that delivered files for more than ONNX and `.pt2`.
    """
    panels = quantities(summary)
    models, targets = compared_models(summary), compared_targets(summary)
    height = len(panels) * (_PANEL + _BAR * len(targets) * (len(models) + 0.6)) + 60
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        subplot_titles=[each.panel for each in panels],
        vertical_spacing=_PANEL / height,
    )
    figure.update_annotations(x=0, xanchor="left")
    for panel, (_, _, form, number) in enumerate(panels, start=1):
        known = [each for model in models for target in targets if (each := number(model.costs, target)) is not None]
        for name, costs in models:
            values = [number(costs, target) for target in targets]
            figure.add_bar(
                x=values,
                y=[TARGETS[target].title for target in targets],
                orientation="h",
                name=escape(name),
                legendgroup=name,
                showlegend=panel == 1,
                marker={"color": _COLORS[name.partition(":")[0]]},
                text=["" if value is None else format(value, form) for value in values],
                textposition="outside",
                textangle=0,
                cliponaxis=False,
                hovertemplate="%{y}: %{text}<extra>" + escape(name) + "</extra>",
                row=panel,
                col=1,
            )
        # Room for the number at the end of the longest bar.
        figure.update_xaxes(range=[0, 1.3 * max(known, default=1.0)], nticks=5, row=panel, col=1)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.08)
    shown = finished(figure, height=round(height))
    # As many pixels above the first panel at any height, for the legend.
    return shown.update_layout(legend={"y": 1 + 34 / height}, margin={"t": 110})

"""The report: one HTML file with everything in it, to be read without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from kedro_aat.budget import Outcome
from kedro_aat.reporting.figures import costs_figure, stage_name
from kedro_aat.reporting.numbers import (
    breaks_limits,
    comparison,
    cost_rows,
    delivered_candidate,
    not_delivered,
    stages_of,
    tolerated,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

_HEADLINES = {
    Outcome.CERTIFIED: ("good", "Certified: the compressed model keeps its accuracy budget"),
    Outcome.WITHIN_BUDGET: ("fair", "Within budget on the validation data; not certified"),
    Outcome.INFEASIBLE: ("bad", "No compressed model kept the accuracy budget"),
}

_BREAKS_LIMITS = "No model within the accuracy budget keeps the limits"

# Titles of the columns of the layer table; counts that shrank are shown as before and after.
_LAYER_COLUMNS = {
    "layer": "layer",
    "shape_before": "shape before",
    "shape": "shape",
    "rate": "rate",
    "parameters_before": "parameters before",
    "parameters": "after",
    "macs_before": "MACs before",
    "macs": "after",
    "weights": "weights",
    "zeros": "zeros",
    "bits": "bits",
    "sensitivity": "sensitivity",
    "note": "note",
}


def render_report(
    summary: dict[str, Any],
    trajectory: pd.DataFrame,
    layers: pd.DataFrame,
    frontier: go.Figure,
    course: go.Figure,
    settings: dict[str, Any],
) -> str:
    """The page.

    Args:
        summary: Of the run, from `summarize`.
        trajectory: Of all stages, with the column `stage`.
        layers: What became of each layer, from `layer_table`.
        frontier: From `frontier_figure`.
        course: From `trajectory_figure`.
        settings: Of the run, as JSON data.
    """
    from plotly.offline import get_plotlyjs

    tone, headline = _HEADLINES[Outcome(summary["outcome"])]
    if breaks_limits(summary):
        headline = _BREAKS_LIMITS
    figures = {"frontier": frontier, "trajectory": course}
    if summary["candidates"]:
        figures["costs"] = costs_figure(summary)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kedro_aat.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        summary=summary,
        tone=tone,
        headline=headline,
        tiles=_tiles(summary),
        tolerated=tolerated(summary),
        rows=comparison(summary),
        candidates=_candidates(summary, settings["export"]["objective"]),
        tried=_tried(trajectory, summary),
        layers=_layers(layers, summary),
        has_zeros=any("magnitude_sparsity" in stage["algorithms"] for stage in summary["stages"]),
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        figures={name: _json(figure) for name, figure in figures.items()},
        plotly=Markup(get_plotlyjs()),
    )


def _json(figure: go.Figure) -> Markup:
    """A figure for a script element; no text of a user's can end that element."""
    return Markup(figure.to_json().replace("<", "\\u003c").replace("\u2028", "").replace("\u2029", ""))


def _tiles(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The few numbers that matter: value, what it is, how it came about."""
    baseline, compressed = summary["baseline"], summary["compressed"]
    if summary["delivered"] is None:
        return []
    change = compressed["validation"] - baseline["validation"]
    tiles = [
        (
            f"{baseline['onnx_bytes'] / compressed['onnx_bytes']:.3g}x",
            "smaller file",
            f"{baseline['onnx_bytes']:,} → {compressed['onnx_bytes']:,} bytes",
        ),
        (f"{change:+.4f}", f"{summary['metric']['name']}, validation", tolerated(summary) + " is tolerated"),
    ]
    for size, before in list((baseline["latency_fastest_ms"] or {}).items())[:2]:
        after = compressed["latency_fastest_ms"][size]
        faster = before / after
        words = f"faster at batch {size}" if faster >= 1 else f"the speed at batch {size}"
        tiles.insert(len(tiles) - 1, (f"{faster:.2g}x", words, f"{before:.3f} → {after:.3f} ms"))
    return tiles


def _candidates(summary: dict[str, Any], objective: str) -> list[dict[str, Any]]:
    """Every model that was exported, and those whose files were refused: its costs, and why it is not delivered."""
    reasons = not_delivered(summary, objective)
    shown = [
        {
            "name": each["name"],
            "is_delivered": each["name"] == summary["delivered"],
            "reason": reasons.pop(each["name"], ""),
            "validation": f"{each['validation']:.4f}",
            "rows": cost_rows(summary["baseline"], each),
        }
        for each in summary["candidates"]
    ]
    refused = [
        {"name": name, "is_delivered": False, "reason": reason, "validation": "", "rows": []}
        for name, reason in reasons.items()
    ]
    return shown + refused


def _tried(trajectory: pd.DataFrame, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rates that were tried in each stage, by falling rate, and the best that came of each."""
    found = []
    for stage, rows in trajectory[trajectory["achieved_rate"] > 0].groupby("stage"):
        by_rate = rows.assign(rate=rows["achieved_rate"].round(4), epochs=1)
        best = by_rate.loc[by_rate.groupby("rate")["margin"].idxmax()].set_index("rate")
        best["epochs"] = by_rate.groupby("rate")["epochs"].sum()
        cells = [
            (f"{row.Index:.4f}", str(row.epochs), f"{row.metric:.4f}", f"{row.margin:+.4f}")
            for row in best.sort_index(ascending=False).itertuples()
        ]
        found.append({"title": stage_name(summary, int(str(stage))), "rows": cells})
    return found


def _layers(layers: pd.DataFrame, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A table for each algorithm of the stages that the delivered model went through."""
    chosen = delivered_candidate(summary)
    if chosen is None:
        return []
    tables = []
    made = layers[layers["stage"].isin(stages_of(chosen, summary))]
    for (_, algorithm), rows in made.groupby(["stage", "algorithm"], sort=False):
        # A reason that stands for many layers is told below the table, where it has room.
        notes = [(row.layer, row.note) for row in rows.itertuples() if isinstance(row.note, str) and row.note]
        told = rows[rows["rate"].notna()]
        columns = [name for name in _LAYER_COLUMNS if name != "note" and told[name].notna().any()]
        tables.append(
            {
                "title": str(algorithm).replace("_", " ").capitalize(),
                "is_filters": algorithm == "filter_pruning",
                "columns": [(_LAYER_COLUMNS[name], name not in ("layer", "shape_before", "shape")) for name in columns],
                "rows": [[_cell(name, row[name]) for name in columns] for _, row in told.iterrows()],
                "notes": notes,
            }
        )
    return tables


def _cell(column: str, value: Any) -> str:
    if pd.isna(value):
        return ""
    if column == "rate":
        return f"{value:.4f}"
    if column == "sensitivity":
        return f"{value:.1e}"
    return value if isinstance(value, str) else f"{value:,}"

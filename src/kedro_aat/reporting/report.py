"""The report: one HTML file that holds everything and needs no network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from kedro_aat.budget import Outcome
from kedro_aat.delivery.results import Summary
from kedro_aat.export.settings import Objective
from kedro_aat.reporting.numbers import (
    Row,
    comparison,
    cost_rows,
    guard_words,
    reasons_not_delivered,
    smallest_margins,
    stage_name,
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
    summary: Summary,
    trajectory: pd.DataFrame,
    layers: pd.DataFrame,
    figures: Mapping[str, go.Figure],
    settings: Mapping[str, object],
    objective: Objective,
) -> str:
    """Renders the report as one HTML page that needs no network.

    Args:
        summary: Summary of the run.
        trajectory: Trajectory of all stages, with the column `stage`.
        layers: Layer table of the run.
        figures: Name -> figure; empty without Plotly, and then the page has tables alone.
        settings: Settings of the run, as JSON data.
        objective: Objective that chose the delivered file.
    """
    tone, headline = _HEADLINES[summary.outcome]
    if summary.breaks_limits:
        headline = _BREAKS_LIMITS
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
        guards=guard_words(summary),
        candidates=_candidates(summary, objective),
        tried=_tried(trajectory, summary),
        layers=_layers(layers, summary),
        has_zeros=any("magnitude_sparsity" in stage.algorithms for stage in summary.stages),
        settings=yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True),
        figures={name: _json(figure) for name, figure in figures.items()},
        plotly=_plotly() if figures else "",
    )


def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


def _json(figure: go.Figure) -> Markup:
    """A figure for a script element; no text from a user can end that element."""
    return Markup(figure.to_json().replace("<", "\\u003c").replace("\u2028", "").replace("\u2029", ""))


class Tile(NamedTuple):
    """One of the few numbers on top of the page."""

    value: str
    title: str
    origin: str


def _tiles(summary: Summary) -> list[Tile]:
    baseline, delivered = summary.baseline, summary.delivered_candidate
    if delivered is None:
        return []
    change = summary.compressed.validation - baseline.validation
    smaller = Tile(
        f"{baseline.onnx_bytes / delivered.onnx_bytes:.3g}x",
        "smaller file",
        f"{baseline.onnx_bytes:,} → {delivered.onnx_bytes:,} bytes",
    )
    accuracy = Tile(f"{change:+.4f}", f"{summary.metric.name}, validation", f"{tolerated(summary)} is tolerated")
    latencies = []
    for size, before in list((baseline.latency_fastest_ms or {}).items())[:2]:
        after = (delivered.latency_fastest_ms or {})[size]
        title = f"faster at batch {size}" if before >= after else f"the speed at batch {size}"
        latencies.append(Tile(f"{before / after:.2g}x", title, f"{before:.3f} → {after:.3f} ms"))
    return [smaller, *latencies, accuracy]


class ShownCandidate(NamedTuple):
    """A model that was exported, or whose files were rejected: its costs, and why it is not delivered."""

    name: str
    is_delivered: bool
    reason: str
    validation: str
    rows: list[Row]


def _candidates(summary: Summary, objective: Objective) -> list[ShownCandidate]:
    reasons = reasons_not_delivered(summary, objective)
    shown = [
        ShownCandidate(
            name=candidate.name,
            is_delivered=candidate.id == summary.delivered_id,
            reason=reasons.pop(candidate.name, ""),
            validation=f"{candidate.validation:.4f}",
            rows=cost_rows(summary.baseline, candidate),
        )
        for candidate in summary.candidates
    ]
    return shown + [ShownCandidate(name, False, reason, "", []) for name, reason in reasons.items()]


class TriedRates(NamedTuple):
    """The rates that one stage tried, by falling rate, and the best epoch of each."""

    title: str
    rows: list[tuple[str, ...]]


def _tried(trajectory: pd.DataFrame, summary: Summary) -> list[TriedRates]:
    tables = []
    for stage, rows in trajectory[trajectory["achieved_rate"] > 0].groupby("stage"):
        by_rate = rows.assign(rate=rows["achieved_rate"].round(4), epochs=1, margin=smallest_margins(rows))
        # The best of a rate comes first, and failed epochs, which have no margin, last.
        best = by_rate.sort_values("margin", ascending=False).groupby("rate").head(1).set_index("rate")
        best["epochs"] = by_rate.groupby("rate")["epochs"].sum()
        cells: list[tuple[str, ...]] = [
            (f"{row.Index:.4f}", str(row.epochs), *_judged(row))
            for row in best.sort_index(ascending=False).itertuples()
        ]
        tables.append(TriedRates(stage_name(summary, int(str(stage))), cells))
    return tables


def _judged(row: Any) -> tuple[str, str]:
    return ("failed", "-") if math.isnan(row.metric) else (f"{row.metric:.4f}", f"{row.margin:+.4f}")


class ShownLayers(NamedTuple):
    """The layers of the delivered model after one algorithm."""

    title: str
    is_filters: bool
    columns: list[tuple[str, bool]]  # title, whether numeric
    rows: list[list[str]]
    notes: list[tuple[str, str]]  # layer, why it was not compressed


def _layers(layers: pd.DataFrame, summary: Summary) -> list[ShownLayers]:
    """A table for each algorithm of the stages that changed the delivered model."""
    delivered = summary.delivered_candidate
    if delivered is None:
        return []
    tables = []
    changed = layers[layers["stage"].isin(summary.stages_of(delivered))]
    for (_, algorithm), rows in changed.groupby(["stage", "algorithm"], sort=False):
        # A reason may be long, so it stands below the table.
        notes = [(str(row.layer), row.note) for row in rows.itertuples() if isinstance(row.note, str) and row.note]
        compressed = rows[rows["rate"].notna()]
        columns = [name for name in _LAYER_COLUMNS if name != "note" and compressed[name].notna().any()]
        tables.append(
            ShownLayers(
                title=str(algorithm).replace("_", " ").capitalize(),
                is_filters=algorithm == "filter_pruning",
                columns=[(_LAYER_COLUMNS[name], name not in ("layer", "shape_before", "shape")) for name in columns],
                rows=[[_cell(name, row[name]) for name in columns] for _, row in compressed.iterrows()],
                notes=notes,
            )
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

"""The report: one HTML file that holds everything and needs no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from kedro_aat.budget import Outcome
from kedro_aat.delivery.measurements import CandidateResult
from kedro_aat.delivery.results import Summary
from kedro_aat.export.targets.registry import TARGETS
from kedro_aat.reporting.numbers import (
    Row,
    comparison,
    cost_rows,
    guard_words,
    rate_title,
    smallest_margins,
    stage_name,
    tolerated,
)
from kedro_aat.reporting.others import NotDelivered
from kedro_aat.reporting.targets import files_table, int8_words, runtimes_in_words, targets_table

if TYPE_CHECKING:
    import plotly.graph_objects as go

_HEADLINES = {
    Outcome.CERTIFIED: ("good", "Certified: the compressed model keeps its accuracy budget"),
    Outcome.WITHIN_BUDGET: ("fair", "Within budget on the validation data; not certified"),
    Outcome.INFEASIBLE: ("bad", "No compressed model kept the accuracy budget"),
}

_BREAKS_LIMITS = "No model within the accuracy budget keeps the limits"

# What the rate of a layer is the share of, by algorithm.
_LAYER_RATES = {
    "filter_pruning": "The rate of a layer is the share of its own parameters that are removed.",
    "magnitude_sparsity": "The rate of a layer is the share of its weights that are zero.",
    "quantization": "The rate of a layer is 1 if its weights are int8.",
}
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
    others: Sequence[NotDelivered],
) -> str:
    """Renders the report as one HTML page that needs no network.

    Args:
        summary: Summary of the run.
        trajectory: Trajectory of all stages, with the column `stage`.
        layers: Layer table of the run.
        figures: Name -> figure; empty without Plotly, and then the page has tables alone.
        settings: Settings of the run, as JSON data.
        others: The models that are not delivered, and why.
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
        others=_others(others),
        costs=_costs_of_others(summary),
        targets=targets_table(summary),
        files=files_table(summary),
        int8=int8_words(summary),
        runtimes=runtimes_in_words(list(summary.baseline.targets)),
        processor=summary.baseline.processor or summary.environment.processor,
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
    old, new = baseline.targets.get(delivered.shipped), delivered.targets.get(delivered.shipped)
    bytes_before, bytes_after, where = baseline.onnx_bytes, delivered.onnx_bytes, ""
    if old is not None and new is not None:  # the file that decides and is certified is not ONNX's
        bytes_before, bytes_after, where = old.bytes, new.bytes, f" for {TARGETS[delivered.shipped].title}"
    if bytes_before >= bytes_after:
        ratio, title = bytes_before / bytes_after, f"smaller file{where}"
    else:
        ratio, title = bytes_after / bytes_before, f"larger file{where}"
    smaller = Tile(f"{ratio:.3g}x", title, f"{bytes_before:,} → {bytes_after:,} bytes")
    accuracy = Tile(f"{change:+.4f}", f"{summary.metric.name}, validation", f"{tolerated(summary)} is tolerated")
    latencies = []
    timed, timed_after = (old, new) if old is not None and new is not None else (baseline, delivered)
    for batch, before in list((timed.latency_fastest_ms or {}).items())[:2]:
        after = (timed_after.latency_fastest_ms or {})[batch]
        title = f"faster at batch {batch}{where}" if before >= after else f"the speed at batch {batch}{where}"
        latencies.append(Tile(f"{before / after:.2g}x", title, f"{before:.3f} → {after:.3f} ms"))
    return [smaller, *latencies, accuracy]


_MOST_OTHERS = 20  # rows of the table of models that are not delivered


def _others(others: Sequence[NotDelivered]) -> list[tuple[str, ...]]:
    rows = [(model.name, _four(model.rate), _four(model.metric), model.why) for model in others[:_MOST_OTHERS]]
    num_more = len(others) - len(rows)
    return [*rows, *([(f"{num_more} more", "", "", "The figure shows them, with the reasons.")] if num_more else [])]


def _four(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}"


class CostTable(NamedTuple):
    """What the candidates that are not delivered cost, beside each other."""

    columns: list[tuple[str, bool]]  # title, whether numeric
    rows: list[list[str]]


def _costs_of_others(summary: Summary) -> CostTable | None:
    """None without other candidates; the delivered one stands beside the baseline in the first table."""
    others = [candidate for candidate in summary.candidates if candidate.id != summary.delivered_id]
    if not others:
        return None
    columns = [("", False), *((candidate.name.replace("_", " "), True) for candidate in others)]
    tables = [{row[0]: row for row in _main_costs(summary, each)} for each in others]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows = [[key, *(_with_change(table.get(key)) for table in tables)] for key in keys]
    return CostTable(columns, rows)


def _main_costs(summary: Summary, candidate: CandidateResult) -> list[Row]:
    """Without medians and quartiles, which the summary has."""
    rows = cost_rows(summary.baseline, candidate)
    return [row for row in rows if row[0] not in ("  median", "  half of the turns")]


def _with_change(row: Row | None) -> str:
    if row is None:
        return ""
    _, _, value, change = row
    return f"{value} ({change})" if change else value


class TriedRates(NamedTuple):
    """The rates that one stage tried, by falling rate, and the best epoch of each."""

    title: str
    rate: str  # title of the column of rates
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
        number = int(str(stage))
        tables.append(TriedRates(stage_name(summary, number), rate_title(summary, number), cells))
    return tables


def _judged(row: Any) -> tuple[str, str]:
    return ("failed", "-") if math.isnan(row.metric) else (f"{row.metric:.4f}", f"{row.margin:+.4f}")


class ShownLayers(NamedTuple):
    """The layers of the delivered model after one algorithm."""

    title: str
    rates: str  # what the rates are the shares of
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
                rates=_LAYER_RATES.get(str(algorithm), ""),
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

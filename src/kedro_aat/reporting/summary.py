"""The summary of a run: as JSON for machines, as a table for the terminal."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedro_aat.budget import Outcome
from kedro_aat.reporting.numbers import COSTS, breaks_limits, comparison, cost_rows
from kedro_aat.training.records import EpochRecord

if TYPE_CHECKING:
    import pandas as pd

_LIBRARIES = ("kedro-aat", "kedro", "torch", "torchmetrics", "onnx", "onnxscript", "onnxruntime", "numpy")

_COSTS = (
    *(key for _, key in COSTS),
    *("latency_ms", "latency_quartiles_ms", "latency_fastest_ms", "peak_memory_bytes"),
    *("openvino_latency_ms", "openvino_latency_quartiles_ms", "openvino_latency_fastest_ms"),
)

REPORT = "aat_report.html"  # the page, beside the summary

LIMITS_ADVICE = (
    "The accuracy budget was kept, but not the limits beside it: allow more in export.limits, or a larger drop."
)


def trajectory(history: list[EpochRecord]) -> pd.DataFrame:
    """One row an epoch, with the fields of `EpochRecord` as columns."""
    import pandas as pd

    whole_numbers = {"started_from": "Int64"}
    fractions = dict.fromkeys(("standard_error", "loss", "learning_rate", "best_rate"), "float64")
    return pd.DataFrame([asdict(record) for record in history]).astype({**whole_numbers, **fractions})


def summarize(
    evaluation: dict[str, Any],
    search: dict[str, Any],
    second: dict[str, Any],
    export: dict[str, Any],
    certificate: dict[str, Any],
    *,
    seed: int,
    time_limit: float | None,
    distillation: dict[str, Any] | None,
) -> dict[str, Any]:
    """`aat_summary.json`.

    Args:
        evaluation: Of the baseline, from `evaluate_baseline`.
        search: How the search ended, from `finetune_adaptively`.
        second: How the second stage ended, from `finetune_second_stage`; its outcome may be `skipped`.
        export: The files, their sizes, costs and agreement with their models, from `export_model`.
        certificate: What the test split said, from `certify_model`.
        seed: Of the run.
        time_limit: Of the search, in seconds; None for none.
        distillation: How the baseline taught; None where it did not.
    """
    import torch

    delivered = export["compressed"] or dict.fromkeys(_COSTS)
    agreement = delivered.get("agreement")
    outcome = Outcome.CERTIFIED if certificate["is_certified"] else Outcome(export["outcome"])
    tested = {model: certificate[model] for model in ("baseline", "compressed")}
    rate: dict[str, float | None]
    judged: dict[str, float | None]
    if export["delivered"] is None:  # then the model is the baseline
        judged = {"validation": evaluation["validation"], "validation_standard_error": None}
        rate = {"requested": 0.0, "achieved": 0.0}
    else:
        judged = {"validation": delivered["validation"], "validation_standard_error": delivered["standard_error"]}
        # What the second stage made has the first one's rate, too.
        is_first = delivered["stage"] == 1
        rate = {"requested": delivered["requested_rate"], "achieved": delivered["rate"]} if is_first else search["rate"]
    compressed = {
        **judged,
        "test": tested["compressed"],
        "rate": rate | {"exported": agreement["exported_rate"] if agreement else None},
        **{key: delivered[key] for key in _COSTS},
    }
    libraries = _LIBRARIES if export["baseline"]["openvino_bytes"] is None else (*_LIBRARIES, "openvino")
    stages = [search] if second["outcome"] == "skipped" else [search, second]
    return {
        "outcome": outcome,
        "reason": export["reason"],
        "advice": LIMITS_ADVICE if breaks_limits(export) else outcome.advice,
        "delivered": export["delivered"],
        "metric": evaluation["metric"],
        "budget": search["budget"],
        "baseline": {"validation": evaluation["validation"], "test": tested["baseline"], **export["baseline"]},
        "compressed": compressed,
        "certificate": {key: value for key, value in certificate.items() if key not in tested},
        "forecast": evaluation["forecast"],
        "candidates": export["candidates"],
        "rejected": export["rejected"],
        "stages": stages,
        "distillation": distillation,
        "report": REPORT,
        "agreement": agreement,
        "epochs": {key: sum(stage["epochs"][key] for stage in stages) for key in ("used", "allowed")},
        "seconds": {"used": sum(stage["seconds"]["used"] for stage in stages), "limit": time_limit},
        "run": search["run"],
        "seed": seed,
        "environment": {
            "python": platform.python_version(),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "device": search["device"],
        },
        "versions": {library: version(library) for library in libraries},
    }


def print_summary(summary: dict[str, Any], console: Console | None = None) -> None:
    """The closing table: outcome, and baseline beside compressed model."""
    console = console or Console()
    outcome = Outcome(summary["outcome"])
    style = "bold green" if outcome in (Outcome.CERTIFIED, Outcome.WITHIN_BUDGET) else "bold red"
    console.print()
    console.print(Text(f"Outcome: {outcome}", style=style))
    for words in (summary["reason"], summary["advice"], summary["certificate"]["words"]):
        console.print(Text(words))  # as it is: brackets in what users named are no markup
    console.print(_table(summary))


def _table(summary: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("baseline", "compressed", "change"):
        table.add_column(column, justify="right")
    for row in comparison(summary):
        table.add_row(*map(Text, row))
    for other in summary["candidates"]:
        if other["name"] != summary["delivered"]:
            table.add_section()
            rows = [
                (f"not delivered: {other['name']}", "", "", summary["rejected"].get(other["name"], "")),
                (f"{summary['metric']['name']}, validation", "", f"{other['validation']:.4f}", ""),
                *cost_rows(summary["baseline"], other),
            ]
            for row in rows:
                table.add_row(*map(Text, row))
    return table

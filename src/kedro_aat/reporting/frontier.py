"""The models that a search came by, as a table in which other budgets can be read off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedro_aat.delivery.candidates import frontier_records

if TYPE_CHECKING:
    import pandas as pd

    from kedro_aat.training.checkpoints import CheckpointStore


def print_frontier(
    trajectory: pd.DataFrame,
    baseline_evaluation: dict[str, Any],
    search_result: dict[str, Any],
    checkpoint_store: CheckpointStore,
    console: Console | None = None,
) -> None:
    """A table of the models, and what to type for one of them."""
    metric = baseline_evaluation["metric"]
    sign = 1 if metric["higher_is_better"] else -1
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("rate", metric["name"], "drop", "standard error", "epoch"):
        table.add_column(Text(column), justify="right")
    for row in frontier_records(trajectory, checkpoint_store.numbers_of(search_result["run"])):
        drop = sign * (baseline_evaluation["validation"] - row.metric)
        error = "-" if row.standard_error is None else f"{row.standard_error:.4f}"
        table.add_row(f"{row.achieved_rate:.4f}", f"{row.metric:.4f}", f"{drop:+.4f}", error, str(row.epoch))
    console = console or Console()
    console.print(table)
    console.print(
        "kedro aat choose --max-drop DROP delivers the first of them with at most that drop and a rate above 0; "
        "or, where export.objective is latency, a quicker one below it. A pipeline of a namespace takes "
        "--namespace NAME as well.",
        highlight=False,
    )

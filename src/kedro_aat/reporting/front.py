"""Prints the models that a search found, so that a user can pick one for another budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedro_aat.delivery.candidates import front_records
from kedro_aat.delivery.results import BaselineEvaluation, SearchResult

if TYPE_CHECKING:
    import pandas as pd

    from kedro_aat.training.checkpoints import CheckpointStore


def print_front(
    trajectory: pd.DataFrame,
    evaluation: BaselineEvaluation,
    result: SearchResult,
    checkpoint_store: CheckpointStore,
) -> None:
    """Prints a table of the models on the Pareto front, and the command that delivers one of them.

    Args:
        trajectory: Trajectory of the first stage.
        evaluation: The baseline on the validation split.
        result: Result of the first stage.
        checkpoint_store: Store that keeps its run.
    """
    budget = evaluation.budget_of()
    table = Table(box=None, pad_edge=False, header_style="bold")
    rate = "rate" if result.rate.share_of is None else f"rate, {result.rate.share_of}"
    for column in (rate, evaluation.metric.name, "drop", "standard error", "epoch"):
        table.add_column(Text(column), justify="right")
    for row in front_records(trajectory, checkpoint_store.numbers_of(result.run)):
        error = "-" if row.standard_error is None else f"{row.standard_error:.4f}"
        assert row.metric is not None  # a failed epoch is not on the front
        drop = f"{budget.degradation(row.metric):+.4f}"
        table.add_row(f"{row.achieved_rate:.4f}", f"{row.metric:.4f}", drop, error, str(row.epoch))
    console = Console()
    console.print(table)
    console.print(
        "kedro aat choose --max-drop DROP delivers the first of them with at most that drop and a rate above 0 (if "
        "export.objective is latency, perhaps a faster one below it). Add --namespace NAME for a pipeline with a "
        "namespace.",
        highlight=False,
    )

"""Prints the models that the searches kept, so that a user can pick one for another budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedro_aat.delivery.choosing import kept_records
from kedro_aat.delivery.results import BaselineEvaluation, SearchResult

if TYPE_CHECKING:
    from kedro_aat.training.checkpoints import CheckpointStore


def print_front(
    evaluation: BaselineEvaluation, results: Sequence[SearchResult], checkpoint_store: CheckpointStore
) -> None:
    """Prints a table of the models that the searches kept, and the command that delivers one of them.

    Args:
        evaluation: The baseline on the validation split.
        results: Results of the stages that were searched, in order.
        checkpoint_store: Store that keeps their runs.
    """
    budget = evaluation.budget_of()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    for column in ("rate", evaluation.metric.name, "drop", "standard error", "epoch"):
        table.add_column(Text(column), justify="right")
    for number, result in enumerate(results, start=1):
        stage = f"{result.stage or number}: {' and '.join(result.algorithms)}"
        stage += "" if result.rate.share_of is None else f" (rate: {result.rate.share_of})"
        for row in kept_records(checkpoint_store, result.run, result.best_checkpoint):
            error = "-" if row.standard_error is None else f"{row.standard_error:.4f}"
            assert row.metric is not None  # a failed epoch is not kept
            drop = f"{budget.degradation(row.metric):+.4f}"
            cells = (f"{row.achieved_rate:.4f}", f"{row.metric:.4f}", drop, error, str(row.epoch))
            table.add_row(Text(stage), *cells)
    console = Console()
    console.print(table)
    console.print(
        "kedro aat choose --max-drop DROP chooses the best of them by export.objective with at most that drop, and "
        "writes it beside the delivered files. Add --namespace NAME for a pipeline with a namespace.",
        highlight=False,
    )

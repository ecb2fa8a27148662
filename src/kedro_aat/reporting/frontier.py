"""The models that a search came by, for other budgets to be read off."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from kedro_aat.training.delivery import Candidate
from kedro_aat.training.records import EpochRecord, frontier

if TYPE_CHECKING:
    import pandas as pd

    from kedro_aat.budget import Budget
    from kedro_aat.compression.base import ModelController
    from kedro_aat.training.checkpoints import CheckpointStore


def frontier_records(trajectory: pd.DataFrame, available: list[int]) -> list[EpochRecord]:
    """The models that no other available one beats in both rate and metric, by falling rate."""
    history = [EpochRecord(**{str(key): value for key, value in row.items()}) for row in trajectory.to_dict("records")]
    numbers = frontier(history, available)
    return sorted((row for row in history if row.checkpoint in numbers), key=lambda row: -row.achieved_rate)


def frontier_models(
    controller: ModelController,
    trajectory: pd.DataFrame,
    search_result: dict[str, Any],
    checkpoint_store: CheckpointStore,
    budget: Budget,
) -> Iterator[Candidate]:
    """The models within budget that are less compressed than the one that a search returned, by falling rate.

    Args:
        controller: At the rate returned; left as it is.
        trajectory: Of the search.
        search_result: Its summary.
        checkpoint_store: Where its run is kept.
        budget: That they keep.
    """
    run = search_result["run"]
    for row in frontier_records(trajectory, checkpoint_store.numbers_of(run)):
        if 0 < row.achieved_rate < search_result["rate"]["achieved"] and budget.margin(row.metric) >= 0:
            checkpoint = checkpoint_store.load(run, row.checkpoint)
            other = copy.deepcopy(controller)
            other.model.load_state_dict(checkpoint.model)
            other.load_state(checkpoint.training["controller"])
            name = f"{other.settings.algorithm} at rate {row.achieved_rate:.4f}"
            yield Candidate(
                name, 1, other.strip(), row.achieved_rate, other.weight_names, row.requested_rate, row.standard_error
            )


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
        table.add_column(column, justify="right")
    for row in frontier_records(trajectory, checkpoint_store.numbers_of(search_result["run"])):
        drop = sign * (baseline_evaluation["validation"] - row.metric)
        is_known = row.standard_error is not None and row.standard_error == row.standard_error
        error = f"{row.standard_error:.4f}" if is_known else "-"
        table.add_row(f"{row.achieved_rate:.4f}", f"{row.metric:.4f}", f"{drop:+.4f}", error, str(row.epoch))
    console = console or Console()
    console.print(table)
    console.print(
        "kedro aat choose --max-drop DROP delivers the first of them with at most that drop.", highlight=False
    )

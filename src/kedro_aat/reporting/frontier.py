"""The models that a search came by, for other budgets to be read off."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedro_aat.training.delivery import Candidate
from kedro_aat.training.records import EpochRecord, frontier

if TYPE_CHECKING:
    import pandas as pd

    from kedro_aat.budget import Budget
    from kedro_aat.compression.controller import ModelController
    from kedro_aat.training.checkpoints import CheckpointStore


def frontier_records(trajectory: pd.DataFrame, available: list[int]) -> list[EpochRecord]:
    """The models that no other available one beats in both rate and metric, by falling rate."""
    # What is not known is None in a record, and NaN or NA in a table.
    known = trajectory.astype("object").where(trajectory.notna(), None)
    history = [EpochRecord(**{str(key): value for key, value in row.items()}) for row in known.to_dict("records")]
    numbers = frontier(history, available)
    return sorted((row for row in history if row.checkpoint in numbers), key=lambda row: -row.achieved_rate)


def frontier_models(
    controller: ModelController,
    trajectory: pd.DataFrame,
    search_result: dict[str, Any],
    checkpoint_store: CheckpointStore,
    budget: Budget,
    minimal_rate: float = 0.0,
) -> Iterator[Candidate]:
    """The models within budget that are less compressed than the one that a search returned, by falling rate.

    Args:
        controller: At the rate returned; left as it is.
        trajectory: Of the search.
        search_result: Its summary.
        checkpoint_store: Where its run is kept.
        budget: That they keep.
        minimal_rate: Lowest rate worth returning, in [0, 1), as it was requested.
    """
    run = search_result["run"]
    for row in frontier_records(trajectory, checkpoint_store.numbers_of(run)):
        is_smaller = 0 < row.achieved_rate < search_result["rate"]["achieved"]
        if is_smaller and row.requested_rate >= minimal_rate and budget.margin(row.metric) >= 0:
            other = controller_at(controller, checkpoint_store, run, row.checkpoint)
            yield Candidate(
                # Rates may agree in all digits that are shown; checkpoints do not.
                f"{other.settings.algorithm} at rate {row.achieved_rate:.4f} (checkpoint {row.checkpoint})",
                1,
                other.strip(),
                row.achieved_rate,
                other.weight_names,
                row.requested_rate,
                row.standard_error,
                row.checkpoint,
            )


def controller_at(
    controller: ModelController, checkpoint_store: CheckpointStore, run: str, number: int
) -> ModelController:
    """A copy of a controller as it was at a checkpoint of its run."""
    checkpoint = checkpoint_store.load(run, number)
    other = copy.deepcopy(controller)
    other.model.load_state_dict(checkpoint.model)
    other.load_state(checkpoint.training["controller"])
    return other


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

"""The models that may be delivered: what each stage found, and what a search came by on the way."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from kedro_aat.training.records import EpochRecord, frontier

if TYPE_CHECKING:
    import pandas as pd

    from kedro_aat.budget import Budget
    from kedro_aat.compression.controller import ModelController
    from kedro_aat.training.checkpoints import CheckpointStore


@dataclass(frozen=True)
class Candidate:
    """A model that may be delivered.

    Attributes:
        name: What it is called in the report.
        stage: That made it, 1 or 2.
        model: As it is exported.
        rate: Its compression rate.
        weight_names: Parameters whose zeros are the rate; none where the rate is of something else.
        requested_rate: That was asked for when it was trained; None where none was.
        standard_error: Of its drop on the validation split; None where it is not known.
        checkpoint: Number of the checkpoint of its stage's run that holds it; None where there is none.
    """

    name: str
    stage: int
    model: nn.Module
    rate: float
    weight_names: Sequence[str] = ()
    requested_rate: float | None = None
    standard_error: float | None = None
    checkpoint: int | None = None


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

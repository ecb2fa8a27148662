"""The models that may be delivered: what each search stage returned, and what the first search found on the way."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from kedro_aat.delivery.results import SearchResult
from kedro_aat.errors import AatError, CheckpointError, ends_run
from kedro_aat.training.checkpoints.parts import placed_as
from kedro_aat.training.records import EpochRecord, pareto_front, read_records

if TYPE_CHECKING:
    import pandas as pd

    from kedro_aat.budget import Budget
    from kedro_aat.compression.controller import ModelController
    from kedro_aat.training.checkpoints import CheckpointStore


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A model that may be delivered.

    Attributes:
        name: Name that people read in the report; unique within a run.
        stage: Search stage that made it: 1, 2 or 3.
        model: The model as it is exported.
        rate: Its compression rate, in [0, 1].
        weight_names: Parameters whose zeros are the rate; empty if the rate counts something else.
        requested_rate: Rate that was asked for when it was trained; None if unknown.
        standard_error: Standard error of its drop on the validation split; None if unknown.
        checkpoint: Number of the checkpoint in its stage's run; None if it has none.
    """

    name: str
    stage: int
    model: nn.Module
    rate: float
    weight_names: Sequence[str] = ()
    requested_rate: float | None = None
    standard_error: float | None = None
    checkpoint: int | None = None


def rejection(name: str, error: Exception) -> str:
    """Why a model is not delivered, which is logged too."""
    reason = str(error) if isinstance(error, AatError) else f"{type(error).__name__}: {error}"
    logger.warning("%s is not delivered: %s", name, reason)
    return reason


def stage_candidates(
    stages: Sequence[tuple[int, ModelController, SearchResult]], failed: dict[str, str] | None = None
) -> list[Candidate]:
    """The models that search stages returned, in order.

    Args:
        stages: Number of each stage that ended within budget, the controller with its model at the returned rate, and
            the result of the search.
        failed: Gets the name of each model that cannot be stripped, and why; None if that is an error.
    """
    names = [controller.settings.algorithm for _, controller, _ in stages]
    candidates: list[Candidate] = []
    for name, (number, controller, result) in zip(names, stages, strict=True):
        unique = name if names.count(name) == 1 else f"{name} (stage {number})"
        try:
            model = controller.strip()
        except Exception as error:
            if failed is None or ends_run(error):
                raise
            failed[unique] = rejection(unique, error)
            continue
        candidates.append(
            Candidate(
                name=unique,
                stage=number,
                model=model,
                rate=result.rate.achieved,
                weight_names=controller.weight_names,
                requested_rate=result.rate.requested,
                standard_error=result.standard_error,
                checkpoint=result.best_checkpoint,
            )
        )
    return candidates


def front_candidates(
    controller: ModelController,
    trajectory: pd.DataFrame,
    result: SearchResult,
    checkpoint_store: CheckpointStore,
    budget: Budget,
    minimal_rate: float = 0.0,
) -> Iterator[Candidate]:
    """Models within budget that are less compressed than the one that the first search returned, by falling rate.

    Args:
        controller: The first stage's controller at the returned rate; it stays as it is.
        trajectory: Trajectory of the search.
        result: Result of the search.
        checkpoint_store: Store that keeps its run.
        budget: Budget that the models must keep.
        minimal_rate: Lowest requested rate worth returning, in [0, 1).
    """
    for row in front_records(trajectory, checkpoint_store.numbers_of(result.run)):
        is_smaller = 0 < row.achieved_rate < result.rate.achieved
        if is_smaller and row.requested_rate >= minimal_rate and row.keeps(budget):
            try:
                other = controller_at(controller, checkpoint_store, result.run, row.checkpoint)
                model = other.strip()
            except CheckpointError as error:
                logger.warning("The model at rate %.4f is lost, and is no candidate: %s", row.achieved_rate, error)
                continue
            except Exception as error:
                if ends_run(error):
                    raise
                rejection(f"The model at rate {row.achieved_rate:.4f}", error)
                continue
            yield Candidate(
                # Two rates may agree in all printed digits; checkpoints do not.
                name=f"{other.settings.algorithm} at rate {row.achieved_rate:.4f} (checkpoint {row.checkpoint})",
                stage=1,
                model=model,
                rate=row.achieved_rate,
                weight_names=other.weight_names,
                requested_rate=row.requested_rate,
                standard_error=row.standard_error,
                checkpoint=row.checkpoint,
            )


def front_records(trajectory: pd.DataFrame, available: list[int]) -> list[EpochRecord]:
    """The epochs on the Pareto front of rate and metric, by falling rate.

    Args:
        trajectory: Trajectory of one search.
        available: Numbers of the checkpoints on disk.

    Raises:
        CheckpointError: The table is no trajectory, or one that this version cannot use.
    """
    # An unknown value is None in a record, and NaN or NA in a table.
    known = trajectory.astype("object").where(trajectory.notna(), None)
    # Failed epochs have no margin in the table, and are on no front.
    rows = known.to_dict("records")
    history = read_records([row for row in rows if "metric" not in row or row["metric"] is not None])
    numbers = pareto_front(history, available)
    return sorted((row for row in history if row.checkpoint in numbers), key=lambda row: -row.achieved_rate)


def controller_at(
    controller: ModelController, checkpoint_store: CheckpointStore, run: str, number: int
) -> ModelController:
    """A copy of a controller as it was at a checkpoint of its run.

    Args:
        controller: The controller at any rate; it stays as it is.
        checkpoint_store: Store that keeps the run.
        run: Name of the run's folder.
        number: Number of the checkpoint.

    Raises:
        CheckpointError: If the checkpoint is missing or damaged, or cannot be read.
    """
    checkpoint = checkpoint_store.load(run, number)
    other = copy.deepcopy(controller)
    other.model.load_state_dict(placed_as(checkpoint.model, other.model))
    other.load_state(checkpoint.training["controller"])
    return other

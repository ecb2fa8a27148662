"""What a search does when one of its checkpoints is lost: damaged, or removed by someone.

The next best checkpoint takes its place, with a warning that says what is lost. If no other one on disk keeps the
budget, the run goes back to an earlier checkpoint and trains from there again: with the same random numbers, and on the
CPU with the same result.
"""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from kedro_aat import __version__
from kedro_aat.budget import Budget
from kedro_aat.errors import CheckpointError, DamagedCheckpointError
from kedro_aat.search.policy import EpochResult, Problem, SearchPolicy, Stop, TakesMoreEpochs
from kedro_aat.training.checkpoints.files import Checkpoint, numbers_in
from kedro_aat.training.checkpoints.one_run import RunCheckpoints
from kedro_aat.training.records import EpochRecord, read_records
from kedro_aat.training.runner import TrainingRunner

logger = logging.getLogger(__name__)

ALLOWED = "allowed_epochs"  # key of a checkpoint's state: the limit of epochs with which its epoch was planned


def records_of(checkpoint: Checkpoint | None) -> list[EpochRecord]:
    """The trajectory up to a checkpoint; empty without one.

    Raises:
        CheckpointError: If another version wrote a trajectory that this version cannot use.
    """
    return [] if checkpoint is None else read_records(checkpoint.value("history"))


def search_state(policy: SearchPolicy[Any], checkpoint: Checkpoint) -> Any:
    """The state of the search at a checkpoint.

    Args:
        policy: The search policy; if it may use more epochs than when the checkpoint was written, it is told.
        checkpoint: The checkpoint.

    Raises:
        CheckpointError: If another version wrote a state that this version cannot read.
    """
    try:
        saved = checkpoint.value("search")
        state = policy.load(saved if isinstance(saved, str) else json.dumps(saved))  # earlier versions wrote a text
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint.folder}: kedro-aat {__version__} cannot read the state of the search: {error}. Use the "
            "version that wrote it, or remove the folder of the run to start over."
        ) from error
    allowed = checkpoint.state.get(ALLOWED)  # versions before 0.2.0 did not write it
    if allowed is not None and allowed < policy.maximal_total_epochs and isinstance(policy, TakesMoreEpochs):
        return policy.with_more_epochs(state)
    return state


def reopen_with_more_epochs(policy: SearchPolicy[Any], checkpoints: RunCheckpoints) -> None:
    """Lets a search go on that had ended, if its limit of epochs has been raised since.

    Args:
        policy: Search policy, with its present limit.
        checkpoints: Checkpoints of the run.

    Raises:
        CheckpointError: If this version cannot read the run, or the disk cannot be written.
    """
    latest = checkpoints.latest() if checkpoints.is_finished else None
    if latest is None or latest.state.get(ALLOWED, math.inf) >= policy.maximal_total_epochs:
        return
    if not isinstance(policy.ask(search_state(policy, latest)), Stop):
        logger.info("%s has ended, and goes on with up to %d epochs", checkpoints.folder, policy.maximal_total_epochs)
        checkpoints.reopen(after=latest.number)


def load_or_next_best(
    checkpoints: RunCheckpoints,
    number: int,
    history: list[EpochRecord],
    budget: Budget,
    minimal_rate: float | None = None,
    *,
    optimizers: bool = False,
) -> Checkpoint:
    """Loads a checkpoint or, if it is lost, the most compressed one within budget that is no more compressed than it.

    Args:
        checkpoints: Checkpoints of the run.
        number: Number of the checkpoint.
        history: All epochs of the search.
        budget: Accuracy budget.
        minimal_rate: Lowest requested rate that is worth returning; None if the checkpoint is only a start for
            training, as the uncompressed model or one that breaks the budget can be, too.
        optimizers: Whether the optimizers are loaded, too.

    Raises:
        DamagedCheckpointError: If no checkpoint can take its place.
        CheckpointError: If the disk cannot be read now.
    """
    try:
        return checkpoints.load(number, optimizers=optimizers)
    except DamagedCheckpointError as error:
        lost = history[number]
        while rows := [
            row
            for row in history
            if row.checkpoint in checkpoints.numbers
            and row.achieved_rate <= lost.achieved_rate
            and not row.failed
            and (minimal_rate is None or (row.keeps(budget) and _is_worth_returning(row, minimal_rate)))
        ]:
            row = max(rows, key=lambda row: (row.keeps(budget), row.achieved_rate, row.margin))
            if checkpoints.can_load(row.checkpoint):  # if not, it is not among the numbers any more
                logger.warning(
                    "%s. The model of epoch %d is lost (rate %.4f, metric %s); checkpoint %d takes its place (rate "
                    "%.4f, metric %s).",
                    error,
                    lost.epoch,
                    lost.achieved_rate,
                    "none" if lost.metric is None else f"{lost.metric:.4f}",
                    row.checkpoint,
                    row.achieved_rate,
                    f"{row.metric:.4f}",
                )
                return checkpoints.load(row.checkpoint, optimizers=optimizers)
        raise DamagedCheckpointError(f"{error}. No other checkpoint on disk keeps the budget") from error


def recover(
    runner: TrainingRunner,
    policy: SearchPolicy[Any],
    problem: Problem,
    budget: Budget,
    checkpoints: RunCheckpoints,
) -> None:
    """Prepares an earlier run, some of whose checkpoints may be lost, to be continued or returned.

    Args:
        runner: The model, as it was before the search began, and its controller.
        policy: Search policy of the run.
        problem: Limits of the rates.
        budget: Accuracy budget.
        checkpoints: Checkpoints of the run.

    Raises:
        CheckpointError: If this version cannot read the run, or the disk cannot be written.
    """
    latest = checkpoints.latest()
    number = -1 if latest is None else latest.number
    if checkpoints.is_finished and number < max(numbers_in(checkpoints.folder), default=0):
        checkpoints.reopen(after=number)  # the last epochs are trained again
    if latest is None:
        return
    history, best = records_of(latest), search_state(policy, latest).best
    if best is not None:
        try:
            load_or_next_best(checkpoints, best.checkpoint, history, budget, problem.minimal_rate)
        except DamagedCheckpointError as error:
            start = _start_before(best.checkpoint, policy, checkpoints)
            logger.warning(
                "%s. The epochs after checkpoint %d are trained again.",
                error,
                start,
            )
            checkpoints.reopen(after=start)
    needs_first = best is None or not checkpoints.is_finished
    if needs_first and checkpoints.numbers and not checkpoints.can_load(0):
        _save_first(runner, policy, problem, history[0], checkpoints)


def _is_worth_returning(row: EpochRecord, minimal_rate: float) -> bool:
    return row.fully_compressed and row.requested_rate > 0 and row.requested_rate >= minimal_rate


def _start_before(number: int, policy: SearchPolicy[Any], checkpoints: RunCheckpoints) -> int:
    """The last checkpoint before another, from which the search can be repeated exactly; -1 if there is none."""
    for earlier in reversed([known for known in checkpoints.numbers if known < number]):
        if checkpoints.can_load(earlier):
            needed = search_state(policy, checkpoints.load(earlier)).needed
            if all(map(checkpoints.can_load, needed)):
                return earlier
    return -1


def _save_first(
    runner: TrainingRunner,
    policy: SearchPolicy[Any],
    problem: Problem,
    row: EpochRecord,
    checkpoints: RunCheckpoints,
) -> None:
    """Saves checkpoint 0 again: the initial model, which the runner still has."""
    known = {name: value for name, value in vars(row).items() if name in EpochResult.model_fields}
    known["margin"] = row.smallest_margin  # what the policy was told
    state = policy.tell(policy.initial(problem), EpochResult(**known))
    runner.reset_training()
    saved = {"search": state.model_dump_json(), "history": [row.plain()]}
    checkpoints.save(runner.checkpoint(0, saved), runner.dump)
    logger.warning("Checkpoint 0 of %s was lost, and is saved again.", checkpoints.folder)

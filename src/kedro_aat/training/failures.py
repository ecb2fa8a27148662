"""What becomes of a search in which something fails: what was measured within the budget before is never lost.

An error of the user's code or data ends the run, and says what is kept and how to go on. Any other error would come
again, so the search ends early with the best model so far.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from kedro_aat.errors import (
    AatError,
    DataError,
    MetricError,
    RankError,
    UnrepeatableError,
    UserFunctionError,
    ends_run,
)
from kedro_aat.search.policy import SearchPolicy, Stop
from kedro_aat.training.checkpoints import RunCheckpoints
from kedro_aat.training.checkpoints.recovery import records_of, search_state
from kedro_aat.training.records import EpochRecord
from kedro_aat.training.runner import TrainingRunner

logger = logging.getLogger(__name__)

# Failed epochs in a row at rate 0 that are an error: what fails is the training, not the compression.
MAXIMAL_FAILURES_AT_RATE_ZERO = 3

# Errors of the user's code or data, which the user mends: going on would hide them.
USER_ERRORS = (UserFunctionError, MetricError, UnrepeatableError, DataError)


def early_stop(
    error: Exception, policy: SearchPolicy[Any], checkpoints: RunCheckpoints, *, is_later: bool
) -> tuple[Stop, list[EpochRecord]] | None:
    """Ends a search in which something failed with the best model so far.

    Args:
        error: What failed after the last checkpoint.
        policy: Search policy of the run.
        checkpoints: Checkpoints of the run.
        is_later: Whether the search follows another one, whose model is delivered if this one finds none. Then errors
            of the user's code end it early, too.

    Returns:
        How the search ended, and its epochs; None if the error must end the run, or there is no model to return.
    """
    if ends_run(error) or (isinstance(error, USER_ERRORS) and not is_later):
        return None
    if (checkpoint := checkpoints.latest()) is None:
        return None
    history = records_of(checkpoint)
    stop: Stop = search_state(policy, checkpoint).stop(
        f"The search ended early, because it failed after epoch {history[-1].epoch}; the best model until then is "
        f"returned. {type(error).__name__}: {error}. The same call tries again from there."
    )
    if stop.best is None:
        return None
    logger.warning("%s", stop.reason, exc_info=error, extra={"markup": False})
    return stop, history


def best_so_far(policy: SearchPolicy[Any], checkpoints: RunCheckpoints) -> EpochRecord | None:
    """The best epoch of a run that has not ended; None if no epoch until now may be returned.

    Args:
        policy: Search policy of the run.
        checkpoints: Checkpoints of the run.
    """
    if (checkpoint := checkpoints.latest()) is None:
        return None
    best = search_state(policy, checkpoint).stop("").best
    return None if best is None else records_of(checkpoint)[best]


@contextlib.contextmanager
def left_in_good_state(
    runner: TrainingRunner, policy: SearchPolicy[Any], checkpoints: RunCheckpoints
) -> Iterator[None]:
    """After an error of the user's code, restores the model's last good state, and says what is kept.

    Args:
        runner: The runner.
        policy: Search policy of the run.
        checkpoints: Checkpoints of the run.
    """
    try:
        yield
    except USER_ERRORS as error:
        kept = ""
        # What made a function fail may make this fail too.
        with contextlib.suppress(AatError, RuntimeError):
            if (checkpoint := checkpoints.latest()) is not None:
                runner.restore_model(checkpoint)
                kept = _kept(records_of(checkpoint)[-1].epoch, best_so_far(policy, checkpoints))
        raise type(error)(
            f"{error}\n{kept}The checkpoints are in {checkpoints.folder}; remove that folder to start over."
        ) from error.__cause__


def alone(error: RankError, policy: SearchPolicy[Any], checkpoints: RunCheckpoints) -> AatError:
    """The error that a user sees of one that ended the work of several ranks: that of the user's code, if it is one.

    Args:
        error: What rank 0 has met.
        policy: Search policy of the run.
        checkpoints: Checkpoints of the run.
    """
    cause = error.__cause__
    if not isinstance(cause, USER_ERRORS):
        return error
    kept = ""
    if (checkpoint := checkpoints.latest()) is not None:
        kept = _kept(records_of(checkpoint)[-1].epoch, best_so_far(policy, checkpoints))
    return type(cause)(f"{cause}\n{kept}The checkpoints are in {checkpoints.folder}; remove that folder to start over.")


def _kept(epoch: int, best: EpochRecord | None) -> str:
    if best is None:
        return f"The same call with the same code continues after epoch {epoch}. "
    return (
        f"The best model so far, which keeps the budget at a rate of {best.achieved_rate:.4f} with a metric of "
        f"{best.metric:.4f}, is kept, and the same call with the same code continues after epoch {epoch}. "
    )


def refuse_to_repeat(history: list[EpochRecord]) -> None:
    """Raises an error if the last epochs failed without any compression.

    Raises:
        MetricError: If they did.
    """
    last = history[-MAXIMAL_FAILURES_AT_RATE_ZERO:]
    if len(last) == MAXIMAL_FAILURES_AT_RATE_ZERO and all(row.failed and row.requested_rate <= 0 for row in last):
        raise MetricError(
            f"The loss or the metric of {len(last)} epochs in a row at rate 0 was NaN or infinite, so the training "
            "fails without any compression. A lower learning rate, gradient clipping or fp32 precision usually helps."
        )

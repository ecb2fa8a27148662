"""The end of a run: loads the model that is returned, and makes sure that it is the one that was judged."""

from __future__ import annotations

import logging
from typing import Any

from kedro_aat.budget import FLOAT32_ROUNDING, Budget, Outcome
from kedro_aat.errors import MissingRunError, UnrepeatableError
from kedro_aat.reading import reading
from kedro_aat.search.policy import SearchPolicy, Stop
from kedro_aat.training.checkpoints import NO_RUN, Checkpoint, RunCheckpoints
from kedro_aat.training.checkpoints.recovery import load_or_next_best, records_of, search_state
from kedro_aat.training.records import EpochRecord, FineTuned, best_within, epochs_used
from kedro_aat.training.runner import Evaluation, TrainingRunner
from kedro_aat.training.scoring.guard_metrics import guarded

logger = logging.getLogger(__name__)

# Times that the initial state is validated again, if the returned model's metric has changed.
NUM_REPEATS = 4
# The two metrics of the returned model may lie this many times as far apart as the five of the initial one. That is
# about 7 standard deviations of a noisy validation: the model was chosen, so the metric that chose it is a lucky one.
SPREADS = 3.0
# A difference below this share of the tolerated drop is accepted as well: another processor, or a GPU whose sums have
# no fixed order, may change the class of a few examples.
NEGLIGIBLE = 0.1
_RETURNED = "the returned model"  # in errors


def end_with_best(
    runner: TrainingRunner,
    policy: SearchPolicy[Any],
    budget: Budget,
    checkpoints: RunCheckpoints,
    minimal_rate: float,
) -> FineTuned:
    """Loads the best model that a search has found so far, and validates it; nothing is trained, and it can go on.

    Args:
        runner: The runner; it is left with that model.
        policy: Search policy of the run.
        budget: Budget of the run.
        checkpoints: Checkpoints of the run.
        minimal_rate: Lowest requested rate worth returning, in [0, 1).

    Raises:
        MissingRunError: If the run has no checkpoint yet.
    """
    checkpoint = checkpoints.latest()
    if checkpoint is None:
        raise MissingRunError(NO_RUN)
    with reading(checkpoint.folder):
        runner.resume(checkpoint)
        history, state = records_of(checkpoint), search_state(policy, checkpoint)
    stop = policy.ask(state)
    if not isinstance(stop, Stop):
        used, allowed = epochs_used(history), policy.maximal_total_epochs
        stop = state.stop(f"This is the best so far: the search has used {used} of {allowed} epochs.")
    return finish(runner, stop, history, checkpoints, budget, minimal_rate)


def finish(
    runner: TrainingRunner,
    stop: Stop,
    history: list[EpochRecord],
    checkpoints: RunCheckpoints,
    budget: Budget,
    minimal_rate: float = 0.0,
) -> FineTuned:
    """Loads the model that is returned, and validates it once more, unless the run was interrupted.

    If validations are noisy and this one breaks the budget, the next best model is returned.

    Args:
        runner: The runner; it is left with the returned model.
        stop: How the search ended.
        history: All epochs.
        checkpoints: Checkpoints of the run.
        budget: Budget of the run.
        minimal_rate: Lowest requested rate worth returning, in [0, 1).

    Raises:
        UnrepeatableError: If the returned model has another metric than the one that it was judged by.
    """
    best, reason = None, stop.reason
    is_interrupted = stop.outcome is Outcome.INTERRUPTED
    if stop.best is None:
        runner.restore_model(checkpoints.load(0, optimizers=False))
        runner.uncompress()
        evaluation = Evaluation(budget.baseline) if is_interrupted else guarded(runner.validate(), budget, _RETURNED)
        metric, guards = evaluation.metric, dict(evaluation.also)
        reason += _broken_guard(history, budget)
    else:
        checkpoint = load_or_next_best(checkpoints, stop.best, history, budget, minimal_rate)
        best = history[checkpoint.number]
        assert best.metric is not None  # a failed epoch is never the best
        if checkpoint.number != stop.best:
            reason += f" Checkpoint {stop.best} is lost; the next best, {checkpoint.number}, is returned."
        if is_interrupted:
            runner.restore_model(checkpoint)
            metric, guards = best.metric, best.guards
        else:
            metric, guards = _confirmed(runner, checkpoint, best, checkpoints, history, budget)
        if budget.smallest_margin(metric, guards) < 0:
            others = [
                row for row in history if minimal_rate <= row.requested_rate and row.achieved_rate < best.achieved_rate
            ]
            next_best = best_within(others, checkpoints.numbers, budget)
            stop = Stop(
                outcome=stop.outcome if next_best else Outcome.INFEASIBLE,
                best=next_best.checkpoint if next_best else None,
                reason=f"{reason} Validated again, checkpoint {best.checkpoint} broke the budget.",
            )
            return finish(runner, stop, history, checkpoints, budget, minimal_rate)
    return FineTuned(
        outcome=stop.outcome,
        reason=reason,
        best=best,
        metric=metric,
        achieved_rate=runner.rates().achieved_rate,
        history=history,
        guards=guards,
    )


def _broken_guard(history: list[EpochRecord], budget: Budget) -> str:
    """Which guard broke the model that came nearest, if its metric alone was within the budget; else empty."""
    rows = [row for row in history if row.trained and row.metric is not None and budget.margin(row.metric) >= 0]
    nearest = max(rows, key=lambda row: row.smallest_margin, default=None)
    if nearest is None or nearest.keeps_guards:
        return ""
    guard = min(budget.also, key=lambda guard: guard.margin(nearest.guards[guard.name]) / guard.unit)
    return (
        f" The metric was within the budget, but not its guards: at a rate of {nearest.achieved_rate:.4f} {guard.name} "
        f"was {nearest.guards[guard.name]:.4f}, where {guard.lowest_tolerated:.4f} is tolerated."
    )


def _confirmed(
    runner: TrainingRunner,
    returned: Checkpoint,
    best: EpochRecord,
    checkpoints: RunCheckpoints,
    history: list[EpochRecord],
    budget: Budget,
) -> tuple[float, dict[str, float]]:
    """Restores and validates the model that is returned, and compares its metric with the one that it was judged by.

    Only if they differ, the initial state is validated again, to see whether validations repeat themselves. So nothing
    is paid for this where they do.

    Args:
        runner: The runner; it is left with the returned model.
        returned: Checkpoint of the model.
        best: Its epoch, with the metric by which the model was chosen.
        checkpoints: Checkpoints of the run; the first one is of the initial state.
        history: All epochs; the first one is the validation of the initial state.
        budget: Budget of the run.

    Returns:
        The metric, the worse of the two if they differ, and likewise the guards.

    Raises:
        UnrepeatableError: If they differ by more than the noise of validations.
    """
    runner.restore_model(returned)
    evaluation, judged = guarded(runner.validate(), budget, _RETURNED), best.metric
    assert judged is not None  # a failed epoch is never the best
    guards = {
        guard.name: min(evaluation.also[guard.name], best.guards[guard.name], key=guard.margin) for guard in budget.also
    }
    metric = evaluation.metric
    difference = abs(metric - judged)
    if difference <= FLOAT32_ROUNDING * max(abs(metric), abs(judged)):
        return metric, guards
    start, first = checkpoints.load(0, optimizers=False), history[0].metric
    assert first is not None  # the first validation does not fail
    repeats = [first]
    for _ in range(NUM_REPEATS):
        runner.restore_model(start)
        repeats.append(runner.validate().metric)
    runner.restore_model(returned)
    spread = max(repeats) - min(repeats)
    if difference > max(SPREADS * spread, NEGLIGIBLE * budget.drop):
        raise UnrepeatableError(
            f"The model of checkpoint {returned.number} was judged by a metric of {judged:.8g}, but validated again it "
            f"has {metric:.8g}. Validations of the initial model differ by {spread:.2g} only, so this is no noise. Let "
            "the validation function depend on the model alone: the same data and preprocessing in every call."
        )
    worse = min(metric, judged, key=budget.margin)
    logger.warning(
        "The returned model was judged by a metric of %.8g, and validated again it has %.8g. Validations of one model "
        "differ by up to %.2g, so the worse of the two counts.",
        judged,
        metric,
        max(spread, difference),
    )
    return worse, guards

"""Why other models were not delivered: the other candidates, and the epochs that look better than the delivered one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from kedro_aat.delivery.measurements import CandidateResult
from kedro_aat.delivery.results import Summary
from kedro_aat.export.settings import Objective, TargetObjective, device_property, local_objective
from kedro_aat.export.targets.registry import TARGETS
from kedro_aat.reporting.numbers import metric_words, tolerated

if TYPE_CHECKING:
    import pandas as pd


class Choice(NamedTuple):
    """The settings that chose the delivered file.

    Attributes:
        objective: Property by which it was chosen.
        minimal_rate: Lowest rate worth returning, in [0, 1).
        search: Kind of the search policy of the first stage.
    """

    objective: Objective | TargetObjective = "bytes"
    minimal_rate: float = 0.0
    search: str = "frontier"


class NotDelivered(NamedTuple):
    """A model that is not delivered.

    Attributes:
        name: What people call it.
        row: Label of its epoch in the trajectory; None if that is not known.
        rate: Its compression rate; None if unknown.
        metric: Its metric on the validation split, of the file if there is one; None if unknown.
        why: Why it is not delivered, in words.
    """

    name: str
    row: Any
    rate: float | None
    metric: float | None
    why: str


def not_delivered(trajectory: pd.DataFrame, summary: Summary, choice: Choice) -> list[NotDelivered]:
    """All candidates but the delivered one, and every epoch of a Pareto front that is smaller or better than it.

    In the panel of an earlier stage, the model that the later stage began with stands for the delivered one. If nothing
    is delivered, there are only the candidates.

    Args:
        trajectory: Trajectory of all stages, with the column `stage`.
        summary: Summary of the run.
        choice: The settings that chose.
    """
    reasons = reasons_not_delivered(summary, choice.objective)
    known = {candidate.name: candidate for candidate in summary.candidates}
    models = []
    for name, why in reasons.items():
        candidate = known.get(name)
        row = None if candidate is None else row_of(trajectory, candidate.stage, candidate.checkpoint)
        rate, metric = (None, None) if candidate is None else (candidate.rate, candidate.shipped_validation)
        models.append(NotDelivered(name.replace("_", " "), row, rate, metric, why))
    delivered = summary.delivered_candidate
    if delivered is not None:
        listed = {model.row for model in models}
        models += [model for model in _better_epochs(trajectory, summary, delivered, choice) if model.row not in listed]
    return models


def row_of(trajectory: pd.DataFrame, stage: int, checkpoint: int | None) -> Any:
    """Label of the epoch that made a checkpoint; None if the trajectory has none.

    Args:
        trajectory: Trajectory of all stages, with the column `stage`.
        stage: Number of the stage.
        checkpoint: Number of the checkpoint in the stage's run.
    """
    rows = trajectory[(trajectory["stage"] == stage) & (trajectory["checkpoint"] == checkpoint)]
    return None if rows.empty else rows.index[0]


def pareto_front(rows: pd.DataFrame) -> pd.Index:
    """Labels of the epochs on the Pareto front of rate and metric, by falling rate."""
    judged = rows[rows["margin"].notna()]  # a failed epoch has none
    if "guard_margin" in judged:
        judged = judged[judged["guard_margin"] >= 0]  # one that breaks a guard is never chosen
    by_rate = judged.sort_values(["achieved_rate", "margin"], ascending=False)
    highest_before = by_rate["margin"].cummax().shift(fill_value=-math.inf)
    return by_rate.index[by_rate["margin"] > highest_before]


def _better_epochs(
    trajectory: pd.DataFrame, summary: Summary, delivered: CandidateResult, choice: Choice
) -> Iterator[NotDelivered]:
    for stage, rows in trajectory.groupby("stage"):
        number = int(str(stage))
        checkpoint = summary.numbered_stages[number].best_checkpoint
        label = row_of(trajectory, number, delivered.checkpoint if number == delivered.stage else checkpoint)
        chosen = None if label is None else rows.loc[label]
        for index in pareto_front(rows):
            row = rows.loc[index]
            is_better = chosen is None or row.achieved_rate > chosen.achieved_rate or row.margin > chosen.margin
            if index == label or row.achieved_rate == 0 or not is_better:
                continue
            name = f"stage {number}, epoch {row.epoch}" if len(summary.stages) > 1 else f"epoch {row.epoch}"
            why = _why(row, chosen, summary, summary.numbered_stages[number].reason, choice)
            yield NotDelivered(name, index, float(row.achieved_rate), float(row.metric), why)


def _why(row: Any, chosen: Any, summary: Summary, ending: str, choice: Choice) -> str:
    if row.margin < 0:
        return f"It breaks the budget: {row.metric:.4f}, where {tolerated(summary)} is tolerated."
    if row.requested_rate < choice.minimal_rate:
        return f"A rate of {row.requested_rate:.4f} was asked for, and minimal_rate is {choice.minimal_rate:.4g}."
    if not row.fully_compressed:
        return "The schedule of the rate had not ended in this epoch."
    if chosen is not None and row.achieved_rate < chosen.achieved_rate:
        if summary.goal == "accuracy":
            return f"It is larger: its rate is {row.achieved_rate:.4f}, and export.limits needs more."
        smaller = f"It is larger: its rate is {row.achieved_rate:.4f}, and another within budget has "
        is_timed = choice.objective == "latency" or getattr(choice.objective, "latency_ms", None)
        is_timed = is_timed or device_property(choice.objective) == "latency_ms"
        slower = ", and not faster" if is_timed else ""
        return f"{smaller}{chosen.achieved_rate:.4f}{slower}."
    # The ending of the search names a checkpoint that was lost, or that broke the budget when it was validated again.
    if f"heckpoint {row.checkpoint} " in ending:
        return ending
    if choice.search == "frontier":
        other = "Another" if chosen is None else f"Epoch {chosen.epoch}"
        return (
            f"It kept the budget in this epoch. {other} was returned as the latest that also kept a reserve, which "
            "guards against lucky epochs."
        )
    return "It kept the budget in this epoch, but the search returned another model."


def reasons_not_delivered(summary: Summary, objective: Objective | TargetObjective) -> dict[str, str]:
    """Why each other candidate is not delivered, by name.

    Args:
        summary: Summary of the run.
        objective: Objective that chose the delivered file.
    """
    reasons = dict(summary.rejected)
    delivered = summary.delivered_candidate
    compared = [candidate for candidate in summary.candidates if candidate.name not in reasons]
    if any(each.device is not None and each.device.failure is not None for each in compared):
        objective = local_objective(objective, next(iter(compared[0].latency_fastest_ms or [1])))
    for candidate in summary.candidates:
        if delivered is not None and candidate.id != delivered.id and candidate.name not in reasons:
            if summary.goal == "accuracy":
                own, chosen = (metric_words(each.shipped_validation) for each in (candidate, delivered))
                metrics = f"{summary.metric.name} is {own}, but the delivered file has {chosen}"
                reasons[candidate.name] = f"The goal is accuracy: {metrics}."
                continue
            words, chosen, other = _by_objective(objective, delivered, candidate)
            reasons[candidate.name] = f"The objective is {words}: {other}, but the delivered file has {chosen}."
    return reasons


def _by_objective(
    objective: Objective | TargetObjective, chosen: CandidateResult, other: CandidateResult
) -> tuple[str, str, str]:
    """The objective in words, and both candidates' values."""
    on_device = [getattr(candidate.device, device_property(objective) or "", None) for candidate in (chosen, other)]
    if isinstance(objective, TargetObjective) and objective.device is not None:
        objective = "device_latency" if objective.device == "latency" else "device_memory"
    size = objective.latency_ms if isinstance(objective, TargetObjective) else None
    if isinstance(objective, TargetObjective) and objective.target != "onnx":
        title = TARGETS[objective.target].title
        costs = [candidate.targets[objective.target] for candidate in (chosen, other)]
        if size is None:
            return f"the fewest bytes for {title}", f"{costs[0].bytes:,}", f"{costs[1].bytes:,}"
        times = [f"{(each.latency_fastest_ms or {})[size]:.3f} ms" for each in costs]
        return f"the lowest latency at batch {size} in {title}", times[0], times[1]
    if isinstance(objective, TargetObjective):
        objective = "bytes" if size is None else "latency"
    match objective:
        case "rate":
            return "the highest rate", f"{chosen.rate:.4f}", f"{other.rate:.4f}"
        case "latency":
            assert chosen.latency_fastest_ms is not None
            size = size or next(iter(chosen.latency_fastest_ms))
            latencies = [(candidate.latency_fastest_ms or {})[size] for candidate in (chosen, other)]
            return f"the lowest latency at batch {size}", f"{latencies[0]:.3f} ms", f"{latencies[1]:.3f} ms"
        case "bytes":
            return "the fewest bytes", f"{chosen.onnx_bytes:,}", f"{other.onnx_bytes:,}"
        case "gzip_bytes":
            return "the fewest bytes when gzipped", f"{chosen.onnx_gzip_bytes:,}", f"{other.onnx_gzip_bytes:,}"
        case "parameters":
            return "the fewest parameters", f"{chosen.parameters:,}", f"{other.parameters:,}"
        case "macs":
            return "the fewest MACs", f"{chosen.macs:,}", f"{other.macs:,}"
        case "device_latency":
            return "the lowest latency on the device", f"{on_device[0]:.3f} ms", f"{on_device[1]:.3f} ms"
        case "device_memory":
            return "the least memory on the device", f"{on_device[0]:,} bytes", f"{on_device[1]:,} bytes"

"""What limited a search: a cliff, the noise of the budget, the epochs, the time, or the highest rate."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kedro_aat.budget import UNIT_WITHOUT_DROP, Outcome
from kedro_aat.delivery.findings import Limited, LimitKind, NextStep
from kedro_aat.delivery.results import SearchResult
from kedro_aat.reporting.numbers import smallest_margins
from kedro_aat.training.cost import LEAST_COST
from kedro_aat.training.records import LARGEST_RESOLVING_ERROR

if TYPE_CHECKING:
    import pandas as pd

# A rise that makes the model 3% smaller is one; less may be noise.
LEAST_GAIN = 0.03
# A cliff: the margin falls by so many tolerated drops where the size falls by a factor of e, which no trained network
# does away from it (the search's own beliefs end at 8), between rates that are this near in the log of the size.
STEEP, NEAR = 12.0, 0.7
# It is at least so many tolerated drops deep, and so many standard errors.
LEAST_FALL, SURE = 2.0, 4.0


@dataclass(frozen=True)
class Row:
    """A trained epoch that did not fail.

    Attributes:
        number: Position among the epochs that trained.
        checkpoint: Number of its checkpoint.
        rate: Achieved rate, in [0, 1].
        metric: Metric on the validation split.
        margin: Distance of the metric to the lowest tolerated one.
        smallest_margin: The same, or that of the guards if it is smaller.
        standard_error: Standard error of the drop; None if unknown.
        lr_scale: Factor on the learning rate.
        is_complete: Whether the controller's own schedule has ended.
        tactic: Importance, ranking, and whether the baseline taught; None for what the search does not choose.
    """

    number: int
    checkpoint: int
    rate: float
    metric: float
    margin: float
    smallest_margin: float
    standard_error: float | None
    lr_scale: float
    is_complete: bool
    tactic: tuple[str | None, str | None, bool | None]


@dataclass(frozen=True)
class Layer:
    """What a stage left of a layer: its name, the share that was removed, and its shape, which may be empty."""

    name: str
    rate: float
    shape: str


class Course:
    """How one search went.

    Args:
        number: Number of the stage.
        result: Result of the search.
        trajectory: Its rows of the trajectory.
        layers: Its rows of the layer table; may be empty.
    """

    def __init__(self, number: int, result: SearchResult, trajectory: pd.DataFrame, layers: pd.DataFrame) -> None:
        self.number, self.result = number, result
        trained = trajectory.assign(smallest=smallest_margins(trajectory))
        trained = trained[trained["trained"].astype(bool)]
        self.num_trained = len(trained)
        self.trained = [_row(index, row) for index, row in enumerate(_plain(trained)) if row["metric"] is not None]
        self.layers = [
            Layer(row["layer"], row["rate"], row["shape"] or "") for row in _plain(layers) if row["rate"] is not None
        ]
        times = [row["seconds"] / max(row["cost"], LEAST_COST) for row in _plain(trained)]
        self.seconds_per_epoch = statistics.median(times) if times else None

    @cached_property
    def within(self) -> list[Row]:
        """Compressed models within budget."""
        return [row for row in self.trained if row.smallest_margin >= 0 and row.rate > 0 and row.is_complete]

    @property
    def rate(self) -> float:
        """The achieved rate that the search returned; 0 if it found nothing."""
        return self.result.rate.achieved if self.result.outcome is Outcome.WITHIN_BUDGET else 0.0

    @property
    def margin(self) -> float | None:
        """Margin of the returned epoch; None if there is none."""
        rows = [row for row in self.trained if row.checkpoint == self.result.best_checkpoint]
        return rows[0].smallest_margin if rows else None

    @property
    def nearest_margin(self) -> float | None:
        """Largest margin of a compressed model; None if there is none."""
        return max((row.smallest_margin for row in self.trained if row.rate > 0), default=None)

    @property
    def drop(self) -> float:
        """The tolerated drop, which margins are compared with."""
        return self.result.budget.drop if self.result.budget.drop > 1e-9 else UNIT_WITHOUT_DROP

    @property
    def standard_error(self) -> float | None:
        """Standard error of the returned model's drop; without one the median of all; None if unknown."""
        known = [row.standard_error for row in self.trained if row.standard_error is not None]
        return self.result.standard_error or (statistics.median(known) if known else None)

    @property
    def examples_needed(self) -> float:
        """How many times as many validation examples would resolve the budget."""
        return ((self.standard_error or 0.0) / (LARGEST_RESOLVING_ERROR * self.drop)) ** 2

    @property
    def higher_within(self) -> Row | None:
        """The epoch of the highest rate within budget, if that is clearly above the returned one; else None."""
        rows = [row for row in self.within if self.rate and row.rate > _clearly_above(self.rate)]
        return max(rows, key=lambda row: row.rate, default=None)

    @property
    def edge(self) -> tuple[float, float | None]:
        """The highest rate within budget, and its margin: the returned one, or a higher one that was measured."""
        higher = self.higher_within
        return (
            (self.rate, self.margin if self.rate else self.drop)
            if higher is None
            else (higher.rate, higher.smallest_margin)
        )

    @property
    def nearest_beyond(self) -> Row | None:
        """The epoch that broke the budget least, at a rate clearly above all within budget; None if there is none.

        A broken guard is left out, because no larger drop of the metric mends it.
        """
        rows = [row for row in self.trained if row.rate > _clearly_above(self.edge[0]) and row.is_complete]
        rows = [row for row in rows if row.margin < 0 and row.smallest_margin == row.margin]
        return max(rows, key=lambda row: row.margin, default=None)

    @property
    def narrowest(self) -> Layer | None:
        """The layer that has lost the largest share, if that is clearly more than of half of the layers; else None."""
        if len(self.layers) < 2 or self.result.algorithms == ["quantization"]:
            return None
        layer = max(self.layers, key=lambda layer: layer.rate)
        return layer if layer.rate > _clearly_above(statistics.median(each.rate for each in self.layers)) else None

    @property
    def has_tried_teacher(self) -> bool:
        """Whether the baseline taught in some epochs."""
        return any(row.tactic[2] for row in self.trained)

    def step(self, change: str, words: str, epochs: int) -> NextStep:
        """Something to try next that trains.

        Args:
            change: The setting and its value, or the command.
            words: What it is expected to change.
            epochs: Epochs that it trains at most.
        """
        seconds = self.seconds_per_epoch
        minutes = None if seconds is None else epochs * seconds / 60
        return NextStep(change=change, words=words, epochs=epochs, minutes=minutes)


def limits_of(course: Course, *, may_go_on: bool = False) -> list[Limited]:
    """What limited a search, the strongest first; at least one.

    Args:
        course: How the search went.
        may_go_on: Whether it was read while it was not finished, so that the epochs that are left limit it.
    """
    result = course.result
    used, allowed, highest = result.epochs.used, result.epochs.allowed, result.highest_rate
    found: list[tuple[LimitKind, str]] = []
    is_at_top = course.rate >= 1 - 1e-6 or (highest is not None and (result.rate.requested or 0.0) >= highest - 1e-6)
    if course.rate and is_at_top:
        highest = course.rate if highest is None else highest
        if used < allowed or course.rate >= 1 - 1e-6:
            words = "nothing did. The search ended by itself at the highest rate"
            found = [("nothing", f"{words}, {highest:.4f}, after {used} of {allowed} epochs.")]
        else:
            words = "the highest rate that settings and model allow"
            found = [("highest_rate", f"{words}, {highest:.4f}, was reached within the {allowed} epochs.")]
    else:
        limit = result.seconds.limit
        if limit is not None and used < allowed and limit - result.seconds.used < 2 * (course.seconds_per_epoch or 0.0):
            found.append(("time", f"the time. It ended after {used} of {allowed} epochs and {limit:.0f} s."))
        searched: list[tuple[LimitKind, str | None]] = [("noise", _noise(course)), ("layer", _cliff(course))]
        if used >= allowed - 1 and (gain := _late_gain(course)) is not None:
            searched.append(
                ("epochs", f"the epochs. {gain} All {allowed} were used, counted in epochs of the uncompressed model.")
            )
        found += [(kind, words) for kind, words in searched if words is not None]
        if not found and may_go_on and used < allowed:
            found = [("epochs", f"the epochs so far. {used} of {allowed} were used.")]
        if not found:
            found = [("budget", _budget(course))]
    return [Limited(stage=course.number, kind=kind, words=f"Stage {course.number}: {words}") for kind, words in found]


def _noise(course: Course) -> str | None:
    """Whether the standard error kept a model within budget from being returned, or dominates the budget."""
    error, higher, known = course.standard_error, course.higher_within, ""
    if error is not None:
        known = f" The standard error of a drop is {error:.4g}, {error / course.drop:.0%} of the budget."
    if higher is not None:
        return (
            f"the noise. A rate of {higher.rate:.4f} was measured within budget, too, but its margin of "
            f"{higher.smallest_margin:.4g} was too small a reserve.{known}"
        )
    return f"the noise.{known}" if error is not None and error > LARGEST_RESOLVING_ERROR * course.drop else None


def _cliff(course: Course) -> str | None:
    """Whether the metric falls steeply just above the returned rate, with the layer that has lost the most below it.

    Which layer made it fall is not known: the model beyond the cliff is not kept.
    """
    (rate, margin), beyond, layer = course.edge, course.nearest_beyond, course.narrowest
    if margin is None or beyond is None or layer is None:
        return None
    distance = math.log1p(-rate) - math.log1p(-min(beyond.rate, 1 - 1e-6))
    fall = (margin - beyond.margin) / course.drop
    luck = SURE * (course.standard_error or 0.0) / course.drop
    if distance > NEAR or fall < max(STEEP * distance, LEAST_FALL, luck):
        return None
    left = f", and {layer.shape} is left of it" if layer.shape else ""
    return (
        f"a cliff. From a rate of {rate:.4f} to {beyond.rate:.4f} the metric fell by {fall:.1f} budgets. Of the "
        f"layers, {layer.name} had lost the most before it, {layer.rate:.0%}{left}."
    )


def _late_gain(course: Course) -> str | None:
    """What the last third of the epochs still gained; None if that is nothing clear."""
    last = course.num_trained * 2 // 3
    if course.rate:
        before = max((row.rate for row in course.within if row.number < last), default=0.0)
        gain = (1 - before) / max(1 - course.rate, 1e-9)
        if gain <= 1 + LEAST_GAIN:
            return None
        return f"In the last third of them the model still became {gain:.2f}x smaller."
    margins = [(row.number < last, row.smallest_margin) for row in course.trained if row.rate > 0]
    old, new = (max((margin for early, margin in margins if early is wanted), default=None) for wanted in (True, False))
    if old is None or new is None or new <= old:
        return None
    return f"In the last third of them the best margin still rose, from {old:.4g} to {new:.4g}."


def _budget(course: Course) -> str:
    if (beyond := course.nearest_beyond) is None:
        return "the budget, as far as it was searched: no higher rate was tried."
    return f"the budget. The best model at a higher rate, {beyond.rate:.4f}, broke it by {-beyond.margin:.4g}."


def _clearly_above(rate: float) -> float:
    """The rate at which a model is clearly smaller."""
    return 1 - (1 - rate) * (1 - LEAST_GAIN)


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, with None for empty cells."""
    known = table.astype("object").where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]


def _row(number: int, row: dict[str, Any]) -> Row:
    return Row(
        number=number,
        checkpoint=int(row["checkpoint"]),
        rate=row["achieved_rate"],
        metric=row["metric"],
        margin=row["margin"],
        smallest_margin=row["smallest"],
        standard_error=row["standard_error"],
        lr_scale=row["lr_scale"],
        is_complete=bool(row["fully_compressed"]),
        tactic=(row.get("importance"), row.get("ranking"), row.get("distilled")),
    )

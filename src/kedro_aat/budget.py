"""The accuracy budget: how far the metric and its guards may fall, and whether a measurement is within that."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kedro_aat.errors import ConfigurationError, DivergedError, MetricError
from kedro_aat.imports import ImportedOrPath
from kedro_aat.validated import Settings

logger = logging.getLogger(__name__)

# Relative difference of two equal numbers that were computed in float32: a few roundings of 1.2e-7 each.
FLOAT32_ROUNDING = 5e-7
# Replaces a tolerated drop of zero as the unit of margins. In metric units.
UNIT_WITHOUT_DROP = 0.01

Kind = Literal["absolute", "relative"]


class Outcome(StrEnum):
    """How a run ended. Every ending is a value, and none is a model that silently breaks its budget."""

    CERTIFIED = "certified"
    WITHIN_BUDGET = "within_budget"
    INFEASIBLE = "infeasible"
    INTERRUPTED = "interrupted"

    @property
    def advice(self) -> str:
        """What to do next, in one sentence."""
        return {
            Outcome.CERTIFIED: "The model keeps its budget on data that the search never saw: deliver it.",
            Outcome.WITHIN_BUDGET: "The model keeps its budget on the validation data that also chose it.",
            Outcome.INFEASIBLE: "No compressed model kept the budget: allow a larger drop, more epochs, "
            "or a lower minimal rate.",
            Outcome.INTERRUPTED: "Run the same command again to continue.",
        }[self]


class DropSettings(Settings):
    """The tolerated drop: either `max_drop` in metric units, or `max_relative_drop` as a fraction of the baseline.

    Attributes:
        max_drop: Largest tolerated drop, in units of the metric; at least 0.
        max_relative_drop: Largest tolerated drop as a fraction of the baseline's magnitude, in [0, 1].
    """

    max_drop: Annotated[float, Field(ge=0, le=1e100)] | None = None
    max_relative_drop: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> DropSettings:
        num_drops = (self.max_drop is not None) + (self.max_relative_drop is not None)
        if num_drops != 1:
            raise ValueError(
                "exactly one of max_drop and max_relative_drop is required, but got "
                f"{'both' if num_drops else 'neither'}"
            )
        return self

    @property
    def kind(self) -> Kind:
        """Whether the drop is stated in metric units or relative to the baseline."""
        return "absolute" if self.max_relative_drop is None else "relative"

    def drop_from(self, baseline: float, *, higher_is_better: bool, key: str = "") -> float:
        """Returns the tolerated drop from a measured baseline, in metric units.

        Args:
            baseline: Metric of the uncompressed model; any sign.
            higher_is_better: Direction of the metric.
            key: What stands before the names of these settings in errors.

        Raises:
            ConfigurationError: If a relative drop is stated but the baseline is 0, or if the absolute drop is as large
                as a baseline that is a fraction (it was likely meant as a percentage).
        """
        if self.max_relative_drop is not None:
            if baseline == 0:
                raise ConfigurationError(
                    "budget",
                    [
                        f"{key}max_relative_drop: a fraction of a baseline of 0 is always 0; give max_drop in metric "
                        "units"
                    ],
                )
            return abs(baseline) * self.max_relative_drop
        drop = self.max_drop
        assert drop is not None
        if higher_is_better and 0 < baseline <= 1 <= drop:
            raise ConfigurationError(
                "budget",
                [
                    f"{key}max_drop: must be between 0 and the baseline ({baseline:.4g}), but got {drop:.4g}. "
                    f"Is it a percentage? Write {drop / 100:.4g}"
                ],
            )
        return drop


class GuardSettings(DropSettings):
    """A further metric that every accepted model keeps: a guard.

    Attributes:
        metric: A torchmetrics metric, called with the same outputs and targets as `training.metric`. If it returns one
            value per class (`average: none`), each class is a guard with this drop. None with a `training.validate`
            function, which returns the value itself, in `also` of its `Evaluation`.
        name: Its name in all messages and tables, and in `also` of an `Evaluation`; by default the last part of the
            metric's import path.
        max_drop: Largest tolerated drop, in units of this metric; at least 0.
        max_relative_drop: Largest tolerated drop as a fraction of the baseline's magnitude, in [0, 1].
        higher_is_better: Direction of the metric; None takes the metric's own.
    """

    metric: ImportedOrPath | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    higher_is_better: bool | None = None

    @model_validator(mode="after")
    def _has_a_name(self) -> GuardSettings:
        if self.metric is None and self.name is None:
            raise ValueError("a metric is required, or with a validate function the name of a value that it returns")
        return self

    @property
    def label(self) -> str:
        """Its name in messages."""
        return self.name or (self.metric.class_path.rpartition(".")[2] if self.metric else "")

    def direction(self) -> bool | None:
        """Whether a higher value is better; None if neither the settings nor the metric say."""
        if self.higher_is_better is not None:
            return self.higher_is_better
        return getattr(self.metric.make(), "higher_is_better", None) if self.metric else None

    def lookup_mistakes(self, key: str) -> list[str]:
        """A metric that cannot be imported or built, or that has no direction."""
        mistakes = super().lookup_mistakes(key)
        if mistakes:
            return mistakes
        try:
            direction = self.direction()
        except Exception as error:  # a user's class may raise anything
            path = self.metric.class_path if self.metric else ""
            return [f"{key}.metric: {path} refuses its init_args: {error}"]
        if direction is None:
            return [f"{key}.higher_is_better: {self.label} does not say which direction is better; set it here"]
        return []

    def guards(self, values: Mapping[str, float], key: str) -> list[Guard]:
        """The guards that follow from the baseline's values: one, or one per class.

        A class that is absent from the validation split, or of which the baseline gets nothing right, has nothing to
        lose: it is left out with a warning.

        Args:
            values: The baseline's guard values by their names.
            key: Key of these settings, for errors.

        Raises:
            ConfigurationError: If the drop does not fit the baseline, or every class is left out.
            MetricError: If there is no such value, or it is not a finite number.
        """
        higher_is_better = self.direction()
        assert higher_is_better is not None  # lookup_mistakes made sure of it
        names = [name for name in values if name == self.label or name.startswith(f"{self.label}, class ")]
        if not names:
            raise _missing(self.label, "the baseline", values)
        left_out = [
            name
            for name in names
            if name != self.label and (math.isnan(values[name]) or (higher_is_better and values[name] == 0))
        ]
        if left_out:
            logger.warning(
                "No guard: %s. The baseline's value is 0 or undefined: there is no validation example of the class, or "
                "the baseline gets none right.",
                "; ".join(left_out),
            )
        may_die = [name for name in names if higher_is_better and 0 < values[name] <= (self.max_drop or 0)]
        if may_die:
            logger.warning(
                "A drop of %.4g lets these guards fall to 0: %s. A smaller max_drop or a max_relative_drop keeps them.",
                self.max_drop,
                "; ".join(f"{name} ({values[name]:.4g})" for name in may_die),
            )
        if len(left_out) == len(names):
            raise ConfigurationError("budget", [f"{key}: {self.label} is 0 or undefined for every class"])
        return [
            Guard(
                name=name,
                kind=self.kind,
                baseline=require_finite(values[name], f"{name} of the baseline"),
                drop=self.drop_from(values[name], higher_is_better=higher_is_better, key=f"{key}."),
                higher_is_better=higher_is_better,
            )
            for name in names
            if name not in left_out
        ]


class BudgetSettings(DropSettings):
    """The tolerated drop: either `max_drop` in metric units, or `max_relative_drop` as a fraction of the baseline.

    Attributes:
        max_drop: Largest tolerated drop, in units of the metric; at least 0.
        max_relative_drop: Largest tolerated drop as a fraction of the baseline's magnitude, in [0, 1].
        also: Guards: further metrics, each with a tolerated drop of its own, that every accepted model keeps.
    """

    also: tuple[GuardSettings, ...] = ()

    def lookup_mistakes(self, key: str) -> list[str]:
        """Mistakes of the guards, and names that two of them share."""
        keys = [f"{key}.also.{index}" for index in range(len(self.also))]
        mistakes = [
            mistake for name, guard in zip(keys, self.also, strict=True) for mistake in guard.lookup_mistakes(name)
        ]
        labels = [guard.label for guard in self.also]
        return mistakes + [
            f"{name}.name: another guard is called {label}, too; give each a name of its own"
            for index, (name, label) in enumerate(zip(keys, labels, strict=True))
            if label in labels[:index]
        ]

    def budget(self, baseline: float, *, higher_is_better: bool, also: Mapping[str, float] | None = None) -> Budget:
        """Returns the budget for a measured baseline.

        Args:
            baseline: Metric of the uncompressed model; any sign.
            higher_is_better: Direction of the metric.
            also: Values of its guards, by their names.

        Raises:
            ConfigurationError: If a drop does not fit its baseline; see `drop_from` and `GuardSettings.guards`.
            MetricError: If a baseline is missing or not a finite number.
        """
        require_finite(baseline, "the baseline")
        return Budget(
            kind=self.kind,
            baseline=baseline,
            drop=self.drop_from(baseline, higher_is_better=higher_is_better),
            higher_is_better=higher_is_better,
            also=tuple(
                guard
                for index, settings in enumerate(self.also)
                for guard in settings.guards(also or {}, f"also.{index}")
            ),
        )


class Tolerance(Settings):
    """A baseline and the tolerated drop from it.

    Attributes:
        kind: Whether the drop was stated in metric units or relative to the baseline.
        baseline: Metric of the uncompressed model; any sign.
        drop: Tolerated drop in metric units, at least 0, whichever direction is better.
        higher_is_better: Direction of the metric.
    """

    kind: Kind = "absolute"
    baseline: float
    drop: Annotated[float, Field(ge=0)]
    higher_is_better: bool = True

    @property
    def lowest_tolerated(self) -> float:
        """The worst metric that is still within budget (the highest one if lower is better)."""
        return self.baseline - self.drop if self.higher_is_better else self.baseline + self.drop

    @property
    def limit_in_words(self) -> str:
        """What the worst tolerated metric is: the lowest, or the highest if lower is better."""
        return "lowest tolerated" if self.higher_is_better else "highest tolerated"

    @property
    def unit(self) -> float:
        """The tolerated drop as a unit of margins, above 0."""
        return self.drop if self.drop > 1e-9 else UNIT_WITHOUT_DROP

    def margin(self, metric: float) -> float:
        """Returns the distance to the lowest tolerated metric, in metric units; at least 0 is within budget.

        A metric exactly on the budget counts as within, even if float32 (in which most metrics are computed) puts it a
        rounding error below.
        """
        margin = (metric - self.lowest_tolerated) * (1 if self.higher_is_better else -1)
        rounding = FLOAT32_ROUNDING * max(abs(self.baseline), self.drop)
        return 0.0 if -rounding <= margin < 0 else margin

    def degradation(self, metric: float) -> float:
        """Returns how much worse a metric is than the baseline, in metric units; negative if it is better."""
        return (self.baseline - metric) * (1 if self.higher_is_better else -1)


class Guard(Tolerance):
    """A guard, worked out for the measured baseline.

    Attributes:
        name: Its name, as in `MulticlassRecall, class 3`.
    """

    name: str


class Budget(Tolerance):
    """The tolerated drop of the main metric, and of its guards.

    Attributes:
        also: The guards.
    """

    also: tuple[Guard, ...] = ()

    def guard_values(self, values: Mapping[str, float], what: str) -> dict[str, float]:
        """Returns the values of the guards alone.

        Args:
            values: What was measured, by name.
            what: What was measured, for errors, e.g. "epoch 7".

        Raises:
            MetricError: If a value is missing; `DivergedError` if it is NaN or infinite.
        """
        for guard in self.also:
            if guard.name not in values:
                raise _missing(guard.name, what, values)
        return {guard.name: require_finite(values[guard.name], f"{guard.name} of {what}") for guard in self.also}

    def guard_margin(self, values: Mapping[str, float]) -> float | None:
        """The smallest margin of the guards, in units of the main metric; None if there are none.

        A guard's margin is scaled from its own tolerated drop to that of the main metric: half of one is worth half of
        the other. Where a tolerated drop is 0, `UNIT_WITHOUT_DROP` takes its place.
        """
        margins = (guard.margin(values[guard.name]) * (self.unit / guard.unit) for guard in self.also)
        return min(margins, default=None)

    def smallest_margin(self, metric: float, values: Mapping[str, float]) -> float:
        """The margin of the main metric or the smallest one of the guards, whichever is smaller."""
        guards = self.guard_margin(values)
        return self.margin(metric) if guards is None else min(self.margin(metric), guards)


def _missing(name: str, what: str, values: Mapping[str, float]) -> MetricError:
    known = f"only of {', '.join(values)}" if values else "of none"
    return MetricError(
        f"{what} has no value of the guard {name}, but {known}. Let the validation function return "
        f"Evaluation(metric, also={{{name!r}: value}})."
    )


def require_finite(value: object, what: str) -> float:
    """Returns `value` as a float.

    Args:
        value: Result of a user's function: a number, or anything that `float()` accepts.
        what: Name of the measurement, e.g. "the metric of epoch 7".

    Raises:
        MetricError: If it is not a number.
        DivergedError: If it is NaN or infinite.
    """
    try:
        # Texts are rejected too: an empty one is never a number.
        number = float("" if isinstance(value, str | bytes) else value)  # type: ignore[arg-type]  # caught below
    except (TypeError, ValueError):
        raise MetricError(
            f"{what} must be a number, but is {value!r} of type {type(value).__name__}. "
            "Let the function return a float."
        ) from None
    if not math.isfinite(number):
        raise DivergedError(
            f"{what} must be a finite number, but is {value!r}. If training caused it, the state before "
            "is kept; a lower learning rate, gradient clipping or fp32 precision usually helps."
        )
    return number

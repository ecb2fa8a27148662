"""The accuracy budget: how far the metric may fall, and whether a measurement is within that."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kedro_aat.errors import ConfigurationError, DivergedError, MetricError
from kedro_aat.validated import Settings

# Relative difference of two equal numbers that were computed in float32: a few roundings of 1.2e-7 each.
FLOAT32_ROUNDING = 5e-7


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


class BudgetSettings(Settings):
    """The tolerated drop: either `max_drop` in metric units, or `max_relative_drop` as a fraction of the baseline.

    Attributes:
        max_drop: Largest tolerated drop, in units of the metric; at least 0.
        max_relative_drop: Largest tolerated drop as a fraction of the baseline's magnitude, in [0, 1].
    """

    max_drop: Annotated[float, Field(ge=0, le=1e100)] | None = None
    max_relative_drop: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> BudgetSettings:
        num_drops = (self.max_drop is not None) + (self.max_relative_drop is not None)
        if num_drops != 1:
            raise ValueError(
                "exactly one of max_drop and max_relative_drop is required, but got "
                f"{'both' if num_drops else 'neither'}"
            )
        return self

    def budget(self, baseline: float, *, higher_is_better: bool) -> Budget:
        """Returns the budget for a measured baseline.

        Args:
            baseline: Metric of the uncompressed model; any sign.
            higher_is_better: Direction of the metric.

        Raises:
            ConfigurationError: If a relative drop is stated but the baseline is 0, or if the absolute drop is as large
                as a baseline that is a fraction (it was likely meant as a percentage).
            MetricError: If the baseline is not a finite number.
        """
        require_finite(baseline, "the baseline")
        if self.max_relative_drop is not None:
            if baseline == 0:
                raise ConfigurationError(
                    "budget",
                    ["max_relative_drop: a fraction of a baseline of 0 is always 0; give max_drop in metric units"],
                )
            drop = abs(baseline) * self.max_relative_drop
        else:
            assert self.max_drop is not None
            drop = self.max_drop
            if higher_is_better and 0 < baseline <= 1 <= drop:
                raise ConfigurationError(
                    "budget",
                    [
                        f"max_drop: must be between 0 and the baseline ({baseline:.4g}), but got {drop:.4g}. "
                        f"Is it a percentage? Write {drop / 100:.4g}"
                    ],
                )
        kind: Literal["absolute", "relative"] = "absolute" if self.max_relative_drop is None else "relative"
        return Budget(kind=kind, baseline=baseline, drop=drop, higher_is_better=higher_is_better)


class Budget(Settings):
    """A baseline and the tolerated drop from it.

    Attributes:
        kind: Whether the drop was stated in metric units or relative to the baseline.
        baseline: Metric of the uncompressed model; any sign.
        drop: Tolerated drop in metric units, at least 0, whichever direction is better.
        higher_is_better: Direction of the metric.
    """

    kind: Literal["absolute", "relative"] = "absolute"
    baseline: float
    drop: Annotated[float, Field(ge=0)]
    higher_is_better: bool = True

    @property
    def lowest_tolerated(self) -> float:
        """The worst metric that is still within budget (the highest one if lower is better)."""
        return self.baseline - self.drop if self.higher_is_better else self.baseline + self.drop

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

"""The accuracy budget: how far the metric may fall, and whether a measurement keeps to that."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kedro_aat.errors import ConfigurationError, MetricError
from kedro_aat.validated import Settings

# Two float32 numbers that should be equal may differ by a few of their steps, which are 1.2e-7 of their size.
FLOAT32_ROUNDING = 5e-7


class Outcome(StrEnum):
    """How a run ended. Every ending is a value; none is a model that silently breaks its budget."""

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
            Outcome.INTERRUPTED: "Give the same command again to go on where the run stood.",
        }[self]


class BudgetSettings(Settings):
    """The tolerated drop: `max_drop` in metric units or `max_relative_drop` as a fraction of the baseline.

    Attributes:
        max_drop: Largest tolerated drop, in units of the metric; at least 0.
        max_relative_drop: Largest tolerated drop as a fraction of the baseline's magnitude, in [0, 1].
    """

    max_drop: Annotated[float, Field(ge=0)] | None = None
    max_relative_drop: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> BudgetSettings:
        given = (self.max_drop is not None) + (self.max_relative_drop is not None)
        if given != 1:
            raise ValueError(
                f"exactly one of max_drop and max_relative_drop is required, but got {'both' if given else 'neither'}"
            )
        return self

    def budget(self, baseline: float, *, higher_is_better: bool) -> Budget:
        """The budget for a measured baseline.

        Raises:
            ConfigurationError: For a relative drop from a baseline of 0, or an absolute drop as large as
                a baseline that is a fraction (it was likely meant as a percentage).
        """
        require_finite(baseline, "the baseline")
        if self.max_relative_drop is not None:
            if baseline == 0:
                raise ConfigurationError(
                    "budget",
                    ["max_relative_drop: a fraction of a baseline of 0 is no budget; give max_drop in metric units"],
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
    """A baseline and the drop from it that is tolerated.

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
        """The worst metric that is still within budget (the highest one where lower is better)."""
        return self.baseline - self.drop if self.higher_is_better else self.baseline + self.drop

    @property
    def summary(self) -> dict[str, str | float]:
        """The budget as plain data: kind, drop and the worst metric within it."""
        return {"kind": self.kind, "drop": self.drop, "lowest_tolerated": self.lowest_tolerated}

    def margin(self, metric: float) -> float:
        """Distance to the lowest tolerated metric, in metric units; at least 0 is within budget.

        A metric exactly on the budget counts as within, also where float32 (which most metrics are computed in) puts
        it a rounding error below.
        """
        margin = (metric - self.lowest_tolerated) * (1 if self.higher_is_better else -1)
        rounding = FLOAT32_ROUNDING * max(abs(self.baseline), self.drop)
        return 0.0 if -rounding <= margin < 0 else margin

    def degradation(self, metric: float) -> float:
        """How much worse than the baseline, in metric units; negative where it is better."""
        return (self.baseline - metric) * (1 if self.higher_is_better else -1)


def require_finite(value: object, what: str) -> float:
    """`value` as a float.

    Args:
        value: What a user's function returned: a number, or anything that `float()` takes.
        what: Names the measurement, e.g. "the metric of epoch 7".

    Raises:
        MetricError: If it is not a number, or is NaN or infinite.
    """
    try:
        # What `float` does not take is the TypeError below; a text, which it may, is refused like one that it does not.
        number = float("" if isinstance(value, str | bytes) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise MetricError(
            f"{what} must be a number, but is {value!r} of type {type(value).__name__}. "
            "Let the validation function return a float."
        ) from None
    if not math.isfinite(number):
        raise MetricError(
            f"{what} must be a finite number, but is {value!r}. The state of the epoch before is kept; "
            "a lower learning rate, gradient clipping or fp32 precision usually mends this."
        )
    return number

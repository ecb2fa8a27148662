"""Guards as a run hands them on: what each tolerates, and how the baseline and the delivered file do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from kedro_aat.budget import Budget, Guard
from kedro_aat.delivery.measurements import Result


class GuardResult(Result):
    """A guard, worked out for the baseline.

    Attributes:
        name: Name of the metric, with the class if it is a guard of one class.
        higher_is_better: Direction of the metric.
        kind: Whether the user stated the drop in metric units or relative to the baseline.
        baseline: Its value for the baseline on the validation split.
        drop: Tolerated drop in metric units, at least 0.
        lowest_tolerated: The worst value within the tolerated drop (the highest one if lower is better).
    """

    name: str
    higher_is_better: bool
    kind: Literal["absolute", "relative"]
    baseline: float
    drop: float
    lowest_tolerated: float

    @property
    def guard(self) -> Guard:
        """The same as the object that judges values."""
        return Guard.model_validate(self.model_dump(exclude={"lowest_tolerated"}))


class GuardValues(Result):
    """A guard's values for one model.

    Attributes:
        validation: Value on the validation split.
        test: Value on the test split; None if it was not measured, or is undefined there.
    """

    validation: float
    test: float | None = None


class GuardSummary(Result):
    """A guard in the summary. The certificate does not cover it: its values on the test split are as measured.

    Attributes:
        name: Name of the metric, with the class if it is a guard of one class.
        higher_is_better: Direction of the metric.
        kind: Whether the user stated the drop in metric units or relative to the baseline.
        drop: Tolerated drop in metric units, at least 0.
        lowest_tolerated: The worst value that is tolerated on the validation split; the highest one if lower is better.
        baseline: Values of the baseline.
        compressed: Values of the delivered file; the baseline's if nothing is delivered.
    """

    name: str
    higher_is_better: bool
    kind: Literal["absolute", "relative"]
    drop: float
    lowest_tolerated: float
    baseline: GuardValues
    compressed: GuardValues

    @property
    def share_left(self) -> float:
        """The share of the tolerated drop that is left on the validation split; 0 at the lowest tolerated value."""
        guard = Guard(
            name=self.name, baseline=self.baseline.validation, drop=self.drop, higher_is_better=self.higher_is_better
        )
        return guard.margin(self.compressed.validation) / guard.unit


def summarized(
    guards: list[GuardResult], delivered: Mapping[str, float] | None, test: Mapping[str, tuple[float, float]]
) -> list[GuardSummary]:
    """The guards for the summary.

    Args:
        guards: Guards of the run.
        delivered: Their values for the delivered file on the validation split; None if nothing is delivered.
        test: Values of the baseline and of the delivered file on the test split, as far as they were measured.
    """
    summaries = []
    for guard in guards:
        after = guard.baseline if delivered is None else delivered[guard.name]
        tests = test.get(guard.name, (None, None))
        summaries.append(
            GuardSummary(
                **guard.model_dump(exclude={"baseline"}),
                baseline=GuardValues(validation=guard.baseline, test=tests[0]),
                compressed=GuardValues(validation=after, test=tests[1]),
            )
        )
    return summaries


def both_defined(
    baseline: Mapping[str, float], compressed: Mapping[str, float], budget: Budget
) -> dict[str, tuple[float, float]]:
    """The values of the budget's guards that are finite numbers for both models: a class may be absent from a split.

    Args:
        baseline: What was measured of the baseline, by name.
        compressed: What was measured of the delivered file.
        budget: The budget with its guards.
    """
    pairs = {guard.name: (baseline.get(guard.name), compressed.get(guard.name)) for guard in budget.also}
    return {
        name: (before, after)
        for name, (before, after) in pairs.items()
        if before is not None and after is not None and math.isfinite(before) and math.isfinite(after)
    }


def broken(values: Mapping[str, float], budget: Budget) -> list[str]:
    """A sentence for each guard that is below its lowest tolerated value on the validation split."""
    return [
        f"breaks the guard {guard.name}: {values[guard.name]:.4f} on the validation split, where "
        f"{guard.lowest_tolerated:.4f} is tolerated"
        for guard in budget.also
        if guard.margin(values[guard.name]) < 0
    ]

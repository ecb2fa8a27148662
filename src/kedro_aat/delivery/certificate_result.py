"""What the test split says about the delivered file, as it is handed on and kept in the catalog."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kedro_aat.delivery.measurements import Result


class CertificateFields(Result):
    """The statistics of a certificate; None if there is none. See `kedro_aat.certificate.Certificate`.

    Attributes:
        is_certified: Whether the model keeps its budget with confidence 1 - alpha.
        kind: `exact` if the test keeps its level for any number of examples, `asymptotic` if from `holds_from` on.
        statistic: Test statistic.
        p_value: Its p-value.
        alpha: Accepted probability of certifying a model that breaks its budget.
        examples: Number of test examples.
        discordant: Numbers of examples lost and won; None unless scores are right or wrong.
        unit: Score of a right example, or the width of the range of the scores.
        tolerated_drop: The budget, in units of the scores.
        estimated_drop: Mean drop on the test split.
        standard_error: Its standard error.
        upper_bound: The true drop is below it with confidence 1 - alpha.
        groups: Number of independent groups of examples; None if every example counts for itself.
        holds_from: Number of examples from which the level of an asymptotic test holds.
        reason: Why the scores could not be tested.
        words: The result in plain words.
    """

    is_certified: bool
    kind: Literal["exact", "asymptotic"] | None = None
    statistic: float | None = None
    p_value: float | None = None
    alpha: float | None = None
    examples: int | None = None
    discordant: tuple[int, int] | None = None
    unit: float | None = None
    tolerated_drop: float | None = None
    estimated_drop: float | None = None
    standard_error: float | None = None
    upper_bound: float | None = None
    groups: int | None = None
    holds_from: int | None = None
    reason: str | None = None
    words: str


class CertificateResult(CertificateFields):
    """What the test split says about the delivered file.

    Attributes:
        baseline: Metric of the baseline on the test split; None if the split was already read for another model.
        compressed: Metric of the delivered file on the test split; None in the same case.
        guards: Values of each guard on the test split, of the baseline and of the file, where both are defined.
    """

    baseline: float | None
    compressed: float | None
    guards: dict[str, tuple[float, float]] = Field(default_factory=dict)

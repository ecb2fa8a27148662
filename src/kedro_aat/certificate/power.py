"""What a certificate can be expected to say, computed before anything is tested."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator

from kedro_aat.certificate.verdict import Certificate, check_alpha
from kedro_aat.errors import DataError
from kedro_aat.validated import Settings


class CertificateSettings(Settings):
    """How the returned model is certified, and what is assumed when the power is reported before training.

    Attributes:
        alpha: Accepted probability of certifying a model that breaks its budget, in (0, 0.5).
        test_examples: Size of the test split, from which the power is computed before training; the split itself is
            not read then. With None, only the number of examples that it takes is reported.
        score_range: Lowest and highest possible score of one example, in units of the metric (of the absolute error for
            RMSE and R2), as your problem has it and not as the data happen to show it. Needed where the metric has no
            limit of its own: MAE, MSE, RMSE, R2, and the user's own scores unless they are right or wrong.
        expected_drop: Assumed true drop, as a share of the tolerated one, in [0, 1).
        expected_discordance: Assumed share of examples that only one of the two models gets right, in tolerated drops.
        group: What groups the examples of which some depend on each other, such as `patient` of several frames each: a
            key of the splits beside `inputs` and `targets`, or an attribute of the datasets, with one value per
            example. Then groups are tested instead of examples, and standard errors are those of groups. The same
            setting as `training.group`, which is there for `certificate: null`.
    """

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    test_examples: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    score_range: tuple[float, float] | None = None
    expected_drop: Annotated[float, Field(ge=0, lt=1)] = 0.3
    expected_discordance: Annotated[float, Field(ge=1)] = 2.0
    group: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("score_range")
    @classmethod
    def _rising(cls, score_range: tuple[float, float] | None) -> tuple[float, float] | None:
        if score_range is not None and not score_range[0] < score_range[1]:
            raise ValueError(f"must be [lowest, highest], but got [{score_range[0]:g}, {score_range[1]:g}]")
        return score_range


def power(num_examples: int, true_drop: float, discordance: float, tolerated_drop: float, alpha: float = 0.05) -> float:
    """Computes the probability that a candidate will be certified, before it is tested.

    The normal approximation to the power of Tango's score test, with the restricted estimate to which the test
    converges in large samples (Nam 1997, Biometrics 53:1422-1430). `tests/certificate/test_power.py` compares it with
    the exact test.

    Args:
        num_examples: Number of test examples.
        true_drop: True drop of a metric that is the mean of scores 0 and 1; negative if the candidate is better.
        discordance: Share of examples on which the models disagree, in [|true_drop|, 1]. For other scores in [0, 1],
            the mean of the squared differences, for which the result is an approximation.
        tolerated_drop: The budget, in [0, 1).
        alpha: Level of the test, in (0, 0.5).

    Returns:
        A probability; 0 if the true drop is not within the budget.

    Raises:
        DataError: If an argument is out of its range.
    """
    from scipy.stats import norm

    if num_examples < 1:
        raise DataError(f"num_examples must be at least 1, but got {num_examples}")
    spread_at_budget, spread = _spreads(true_drop, discordance, tolerated_drop, alpha)
    if true_drop >= tolerated_drop or num_examples < _fewest(true_drop, tolerated_drop, alpha):
        return 0.0
    surplus = (tolerated_drop - true_drop) * math.sqrt(num_examples) - norm.isf(alpha) * spread_at_budget
    if spread == 0:
        return float(surplus >= 0)
    return float(norm.cdf(surplus / spread))


def examples_needed(
    true_drop: float, discordance: float, tolerated_drop: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Computes how many test examples it takes to certify a candidate with a given power; see `power`.

    Args:
        true_drop: Expected drop; both it and `discordance` may come from validation data.
        discordance: Expected share of examples on which the models disagree, in [|true_drop|, 1].
        tolerated_drop: The budget, in [0, 1).
        alpha: Level of the test, in (0, 0.5).
        power: Required probability of being certified, in (0, 1).

    Returns:
        The number, or None if the true drop is not within the budget, so that no number is enough.

    Raises:
        DataError: If an argument is out of its range.
    """
    from scipy.stats import norm

    if not 0 < power < 1:
        raise DataError(f"power must be above 0 and below 1, but got {power}. 0.8 is usual")
    spread_at_budget, spread = _spreads(true_drop, discordance, tolerated_drop, alpha)
    if true_drop >= tolerated_drop:
        return None
    # Negative if hardly any power is required; then the lower limit decides.
    root = (norm.isf(alpha) * spread_at_budget + norm.ppf(power) * spread) / (tolerated_drop - true_drop)
    return max(math.ceil(max(float(root), 0.0) ** 2), _fewest(true_drop, tolerated_drop, alpha))


def examples_to_certify(certificate: Certificate, *, power: float = 0.8) -> int | None:
    """Computes how many test examples (or groups, if these were tested) it would take if all were as measured.

    Args:
        certificate: Certificate of a model that was not certified.
        power: Required probability of being certified, in (0, 1).

    Returns:
        The number, or None if the measured drop is not within the budget, or nothing was tested.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    drop, tolerated = certificate.estimated_drop, certificate.tolerated_drop
    if drop >= tolerated or certificate.statistic is None:
        return None
    if certificate.discordant is not None and certificate.unit is not None:
        # One more discordant example, since none measured does not mean that there are none: `paired_standard_error`.
        discordance = (sum(certificate.discordant) + 1) / (certificate.examples + 2)
        scale = certificate.unit
        return examples_needed(
            drop / scale, max(discordance, abs(drop / scale)), tolerated / scale, alpha=certificate.alpha, power=power
        )
    count = certificate.groups or certificate.examples
    deviation = (drop - tolerated) / certificate.statistic * math.sqrt(count)
    spare, worst = tolerated - drop, (certificate.unit or 0.0) - drop

    def excess(log_number: float) -> float:
        # The weighted mean that `p_of_mean` draws is about normal, plus the exponential weight of one worst example.
        number = math.exp(log_number)
        error, scale = deviation / math.sqrt(number), max(worst / number, 1e-300)
        distance = (spare - norm.ppf(power) * error) / error  # of the budget, in standard errors
        ratio = error / scale
        tail = norm.sf(distance) + math.exp(min(0.0, ratio**2 / 2 - ratio * distance + norm.logcdf(distance - ratio)))
        return float(tail) - certificate.alpha

    number = math.exp(brentq(excess, 0.0, 200.0)) if excess(0.0) > 0 else 1.0
    return max(count + 1, math.ceil(number))


@dataclass(frozen=True)
class Forecast:
    """What is known before training about a metric whose scores have a known range.

    Attributes:
        assumed_drop: Assumed drop of the true metric, in units of the metric.
        assumed_discordance: Assumed share of examples that only one of the models gets right; for scores between right
            and wrong, the mean squared difference of the two models' scores, as a share of the squared range.
        validation_standard_error: Standard error of a drop measured on the validation split, in units of the metric.
        num_validation_needed: Number of validation examples with which a drop is measured with a standard error of a
            third of the tolerated one.
        test_examples: Size of the test split; None if unknown.
        power: Probability of a certificate with this test split; None if its size is unknown.
        examples_needed: Number of test examples for a power of 0.8; None if no number is enough.
        fewest: Number of test examples below which nothing is certified, not even a model that loses nothing; None in
            files of versions before 0.2.0.
    """

    assumed_drop: float
    assumed_discordance: float
    validation_standard_error: float
    num_validation_needed: int
    test_examples: int | None
    power: float | None
    examples_needed: int | None
    fewest: int | None = None

    def __str__(self) -> str:
        chance = f"in 80 of 100 cases with {self.examples_needed:,} test examples"
        if self.power is not None:
            chance = (
                f"in about {100 * self.power:.0f} of 100 cases with your {self.test_examples:,} test examples, and in "
                f"80 of 100 with {self.examples_needed:,}"
            )
        fewest = "" if self.fewest is None else f" With fewer than {self.fewest:,}, no model is certified."
        return (
            f"Certificate: a model whose true drop is {self.assumed_drop:.4g} will be certified {chance} "
            f"(if the models disagree on {self.assumed_discordance:.2%} of the examples).{fewest}"
        )


def forecast(
    settings: CertificateSettings, tolerated_drop: float, num_validation: int, *, unit: float = 1.0
) -> Forecast | None:
    """Predicts the power of the certificate and the precision of the validation, before training.

    Args:
        settings: The assumptions.
        tolerated_drop: The budget, as a share of `unit`.
        num_validation: Number of validation examples.
        unit: Width of the range of the scores, in units of the metric.

    Returns:
        The forecast, or None if the budget is 0 or so large that the assumptions make no sense.
    """
    drop = settings.expected_drop * tolerated_drop
    discordance = settings.expected_discordance * tolerated_drop
    if not 0 < discordance < 1:
        return None
    test_examples = settings.test_examples
    return Forecast(
        assumed_drop=unit * drop,
        assumed_discordance=discordance,
        validation_standard_error=unit * math.sqrt((discordance - drop**2) / num_validation),
        num_validation_needed=math.ceil((discordance - drop**2) / (tolerated_drop / 3) ** 2),
        test_examples=test_examples,
        power=power(test_examples, drop, discordance, tolerated_drop, settings.alpha) if test_examples else None,
        examples_needed=examples_needed(drop, discordance, tolerated_drop, alpha=settings.alpha),
        fewest=_fewest(0.0, tolerated_drop, settings.alpha),
    )


def _spreads(true_drop: float, discordance: float, tolerated_drop: float, alpha: float) -> tuple[float, float]:
    """Returns standard deviations of one example's drop: the one that the score estimates, and the true one.

    The score estimates it under the hypothesis that the true drop is as large as the budget.
    """
    check_alpha(alpha)
    if not 0 <= tolerated_drop < 1:
        raise DataError(
            f"tolerated_drop must be at least 0 and below 1, but got {tolerated_drop}. "
            f"Is it a percentage? Write {tolerated_drop / 100:.4g}"
        )
    if not abs(true_drop) <= discordance <= 1:
        raise DataError(
            f"discordance must be at least the size of true_drop ({abs(true_drop):.4g}) and at most 1, "
            f"but got {discordance}"
        )
    won = (discordance - true_drop) / 2
    # The equation of `tango_score` with shares in place of counts.
    linear = (2 - true_drop) * tolerated_drop - discordance
    share_won = (math.sqrt(linear**2 + 8 * won * tolerated_drop * (1 - tolerated_drop)) - linear) / 4
    at_budget = math.sqrt(2 * share_won + tolerated_drop * (1 - tolerated_drop))
    return at_budget, math.sqrt(discordance - true_drop**2)


def _fewest(true_drop: float, tolerated_drop: float, alpha: float) -> int:
    """Returns the fewest examples with which a candidate that loses and wins none is certified: (1 - drop)^N = alpha.

    The normal approximation has no such limit. A candidate that is truly better may be certified with fewer; for any
    other one the budget is above 0.
    """
    if true_drop < 0:
        return 1
    return math.ceil(math.log(alpha) / math.log1p(-tolerated_drop))

"""What to expect of the certificate, said before anything is trained."""

from __future__ import annotations

import math

from kedro_aat.budget import Budget
from kedro_aat.certificate import CertificateSettings, Forecast, forecast
from kedro_aat.certificate.grouped import expected_of_groups
from kedro_aat.certificate.linearized import MIN_EFFECTIVE_EXAMPLES, NO_GROUPS
from kedro_aat.certificate.verdict import known_range, width_of
from kedro_aat.delivery.measurements import Result
from kedro_aat.errors import ConfigurationError, DataError
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.scoring.scores import worst_drop

WITHHELD = (
    "`certificate` is null, so the test split stays unread while you try things out, and `kedro aat certify` certifies "
    "the delivered model later, once."
)
WHEN_TO_SET = (
    "Set it only when you have the model that you want, just before `kedro aat certify`: with settings in place of "
    "null, every run reads the test split."
)


class ExpectedCertificate(Result):
    """Whether the metric can be certified, from how many examples, and with which power.

    Attributes:
        forecast: The numbers; None if there will be no certificate, or if nothing is known about its power.
        words: The same for people who are no statisticians.
    """

    forecast: Forecast | None = None
    words: str


def expected_certificate(
    baseline: Evaluation, metric: str, budget: Budget, num_validation: int, settings: CertificateSettings | None
) -> ExpectedCertificate:
    """Says what the certificate will need.

    Args:
        baseline: The uncompressed model on the validation split.
        metric: Name of the metric.
        budget: The accuracy budget.
        num_validation: Number of validation examples.
        settings: How the returned model is certified; None if it is not.

    Raises:
        ConfigurationError: If the budget is larger than the range of the scores, or if the range does not include the
            baseline's scores.
    """
    if settings is not None:
        return _expected(baseline, metric, budget, num_validation, settings)
    expected = _expected(baseline, metric, budget, num_validation, CertificateSettings())
    words = f"{WITHHELD} {expected.words}"
    if "Set certificate." in expected.words:
        words += f" {WHEN_TO_SET}"
    return ExpectedCertificate(forecast=expected.forecast, words=words)


def _expected(
    baseline: Evaluation, metric: str, budget: Budget, num_validation: int, settings: CertificateSettings
) -> ExpectedCertificate:
    if baseline.scores is None:
        return ExpectedCertificate(
            words=f"No certificate is possible, because {metric} has no score per example. The test split will be "
            "measured all the same."
        )
    if baseline.is_linearized and baseline.groups is not None:
        return ExpectedCertificate(words=f"No certificate is possible with {metric}: {NO_GROUPS}.")
    try:
        width = _largest_drop(baseline, budget, settings.score_range)
    except DataError as error:
        raise ConfigurationError("certificate", [f"{error} of {metric} on the validation split"]) from None
    if width is None and baseline.is_linearized and not _takes_range(baseline):
        return ExpectedCertificate(
            words=f"No certificate is possible, because it is not known how much one example that was not drawn can "
            f"change {metric}. The test split will be measured all the same."
        )
    if width is None:
        return ExpectedCertificate(
            words=f"No certificate is possible yet, because {metric} has no known limit for one example: the worst "
            "example may be one that was not drawn. Set certificate.score_range to [lowest, highest] possible score of "
            "one example (absolute error for RMSE and R2), which you know from your problem; the data cannot tell. "
            "Without it, the test split will be measured only."
        )
    if budget.drop >= width:
        raise ConfigurationError(
            "budget",
            [
                f"the tolerated drop of {budget.drop:.4g} is as large as the range of {metric} ({width:.4g}), so "
                "that any model keeps it; state a smaller one"
            ],
        )
    if budget.drop == 0:
        words = "No certificate is possible for a budget of 0: no number of examples shows that nothing is lost at all."
        return ExpectedCertificate(words=words)
    expected = forecast(settings, budget.drop / width, num_validation, unit=width)
    if expected is None:
        return ExpectedCertificate(words="The budget is too large to say anything about the certificate's power.")
    words = str(expected)
    if baseline.groups is not None:
        groups = baseline.groups.cpu().numpy()
        return ExpectedCertificate(words=expected_of_groups(groups, budget.drop / width, settings.alpha))
    if baseline.linearization is not None:
        share = baseline.linearization.effective_examples / num_validation
        fewest = math.ceil(MIN_EFFECTIVE_EXAMPLES / share) if share > 0 else None
        words += (
            f" {metric} is no mean over examples, so the certificate will be asymptotic: shown to hold by simulations, "
            f"which is no proof. It also takes at least {MIN_EFFECTIVE_EXAMPLES} "
            f"{'large errors' if _takes_range(baseline) else 'examples of the rarest class'}"
            + ("." if fewest is None else f", which are in about {fewest:,} test examples like those for validation.")
        )
    return ExpectedCertificate(forecast=expected, words=words)


def _takes_range(baseline: Evaluation) -> bool:
    """Whether `certificate.score_range` is the range of the errors behind a linearized metric, as of RMSE and R2."""
    return baseline.linearization is not None and baseline.linearization.per_squared_error is not None


def _largest_drop(baseline: Evaluation, budget: Budget, score_range: tuple[float, float] | None) -> float | None:
    """The largest possible drop of one example's score; None if it is unknown or infinite."""
    if baseline.is_linearized:
        largest = worst_drop(baseline, baseline, budget, score_range)
        return largest if largest is not None and math.isfinite(largest) else None
    assert baseline.scores is not None  # the caller made sure of it
    return width_of(known_range(score_range or baseline.score_range, baseline.scores.cpu().double().numpy()))

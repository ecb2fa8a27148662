"""The power of the certificate, compared with that of the exact test."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedro_aat.certificate import (
    Certificate,
    CertificateSettings,
    certify,
    examples_needed,
    examples_to_certify,
    forecast,
    paired_standard_error,
    power,
)
from kedro_aat.certificate.p_values import p_of_mean
from kedro_aat.errors import DataError
from tests.certificate.outcomes import counted, exact_power, outcomes


def test_power_of_the_digits_test_and_of_a_larger_one() -> None:
    assert round(power(360, 0.003, 0.02, 0.01), 2) == 0.21
    assert power(2500, 0.003, 0.02, 0.01) == pytest.approx(0.8, abs=0.04)
    assert examples_needed(0.003, 0.02, 0.01) == pytest.approx(2500, rel=0.11)


@pytest.mark.parametrize(
    ("num_examples", "true_drop", "discordance", "tolerated_drop"),
    [
        (360, 0.003, 0.02, 0.01),
        (2500, 0.003, 0.02, 0.01),
        (1000, 0.0, 0.02, 0.01),
        (360, 0.0, 0.05, 0.03),
        (500, 0.01, 0.1, 0.05),
        (200, -0.02, 0.1, 0.02),
        (100, 0.0, 1.0, 0.1),
    ],
)
def test_power_is_close_to_that_of_the_exact_test(
    num_examples: int, true_drop: float, discordance: float, tolerated_drop: float
) -> None:
    shares = (discordance + true_drop) / 2, (discordance - true_drop) / 2
    exact = exact_power(num_examples, tolerated_drop, *shares)
    assert power(num_examples, true_drop, discordance, tolerated_drop) == pytest.approx(exact, abs=0.035)


def test_power_is_zero_beyond_the_budget() -> None:
    assert power(10_000, 0.01, 0.02, 0.01) == 0
    assert examples_needed(0.01, 0.02, 0.01) is None


def test_without_disagreement_the_fewest_examples_are_exact() -> None:
    needed = examples_needed(0, 0, 0.01)
    assert needed == 299
    assert (power(298, 0, 0, 0.01), power(299, 0, 0, 0.01)) == (0, 1)
    assert not counted(290, 0, 0, 0.01).is_certified
    assert counted(310, 0, 0, 0.01).is_certified


possible = st.tuples(st.floats(-0.2, 0.2), st.floats(0, 0.5), st.floats(0, 0.3)).filter(
    lambda drawn: abs(drawn[0]) <= drawn[1] and drawn[2] - drawn[0] > 1e-3
)


@given(expected=possible, required=st.floats(0.5, 0.95))
def test_examples_needed_are_those_that_reach_the_power(expected: tuple[float, float, float], required: float) -> None:
    true_drop, discordance, tolerated_drop = expected
    needed = examples_needed(true_drop, discordance, tolerated_drop, power=required)
    assert needed is not None
    assert power(needed, true_drop, discordance, tolerated_drop) >= required - 1e-6
    if needed > 1:
        assert (
            power(needed - 1, true_drop, discordance, tolerated_drop) <= required + 1e-6
            or power(needed - 2, true_drop, discordance, tolerated_drop) == 0
        )


def test_examples_to_certify_counts_one_more_disagreement() -> None:
    # 3 lost and 1 won of 360: a drop of 2 / 360, and a discordance of (4 + 1) / (360 + 2).
    measured = counted(360, 3, 1, 0.01)
    assert not measured.is_certified
    expected = examples_needed(2 / 360, 5 / 362, 0.01, power=0.9)
    assert examples_to_certify(measured, power=0.9) == expected
    # In percent, the numbers of examples are the same.
    baseline, candidate = outcomes(360, 3, 1)
    percent = certify(100 * baseline, 100 * candidate, tolerated_drop=1.0)
    assert examples_to_certify(percent, power=0.9) == expected


def test_examples_to_certify_are_those_at_the_certificates_level() -> None:
    measured = counted(360, 3, 1, 0.01)
    strict = Certificate(**{**dict(measured), "alpha": 0.01})
    assert examples_to_certify(strict) == examples_needed(2 / 360, 5 / 362, 0.01, alpha=0.01)
    assert examples_to_certify(strict) != examples_to_certify(measured)


def test_no_number_of_examples_certifies_a_drop_that_is_as_large_as_the_budget() -> None:
    baseline = np.array([0.5, 0.75, 0.25, 0.5])
    assert examples_to_certify(certify(baseline, baseline - 0.25, tolerated_drop=0.25, score_range=(0, 1))) is None


def test_examples_to_certify_scores_that_are_neither_right_nor_wrong() -> None:
    generator = np.random.default_rng(0)
    baseline = generator.random(100)
    candidate = np.clip(baseline + generator.normal(0, 0.1, 100), 0, 1)
    drop = float((baseline - candidate).mean())
    tolerated = drop + 0.015
    measured = certify(baseline, candidate, tolerated_drop=tolerated, score_range=(0, 1))
    # Gaffke's bound of so many examples of the same mean and spread certifies four of five draws.
    needed = examples_to_certify(measured)
    assert needed is not None
    drops = generator.normal(drop, 10 * paired_standard_error(baseline, candidate), (500, needed))
    assert np.mean([p_of_mean(each, 1.0, tolerated) <= 0.05 for each in drops]) == pytest.approx(0.8, abs=0.07)
    # Never fewer than were not enough.
    assert examples_to_certify(certify(baseline, candidate, tolerated_drop=drop + 0.2, score_range=(0, 1))) == 101


def test_examples_to_certify_count_the_one_that_may_fail() -> None:
    """The worst example that was not drawn counts more than the spread of those that were."""
    errors = np.random.default_rng(0).random(300)
    measured = certify(errors, errors, tolerated_drop=0.1, higher_is_better=False, score_range=(0, 50))
    # The weight of one example of 50 is above 0.1 / 50 with a probability of (1 - 0.1 / 50)^N = 0.05.
    assert examples_to_certify(measured) == pytest.approx(1497, rel=0.2)
    needed = examples_to_certify(measured)
    assert needed is not None
    more = np.zeros(needed)
    assert certify(more, more, tolerated_drop=0.1, higher_is_better=False, score_range=(0, 50)).is_certified


@pytest.mark.parametrize("lost", [36, 40])
def test_no_number_of_examples_certifies_a_measured_drop_beyond_the_budget(lost: int) -> None:
    assert examples_to_certify(counted(360, lost, 0, 0.1)) is None


def test_forecast_before_training() -> None:
    settings = CertificateSettings(test_examples=360, expected_drop=0.3, expected_discordance=2.0)
    predicted = forecast(settings, 0.01, num_validation=400)
    assert predicted is not None
    assert (predicted.assumed_drop, predicted.assumed_discordance) == pytest.approx((0.003, 0.02))
    variance = 0.02 - 0.003**2
    assert predicted.validation_standard_error == pytest.approx(math.sqrt(variance / 400))
    assert predicted.num_validation_needed == math.ceil(variance / (0.01 / 3) ** 2)
    assert predicted.test_examples == 360
    assert predicted.power == power(360, 0.003, 0.02, 0.01)
    assert predicted.examples_needed == examples_needed(0.003, 0.02, 0.01)
    assert predicted.fewest == 299
    percent = forecast(settings, 0.01, num_validation=400, unit=100)
    assert percent is not None
    assert percent.assumed_drop == pytest.approx(0.3)
    assert percent.validation_standard_error == pytest.approx(100 * predicted.validation_standard_error)
    assert str(predicted) == (
        "Certificate: a model whose true drop is 0.003 will be certified in about 21 of 100 cases with your 360 test "
        "examples, and in 80 of 100 with 2,762 (if the models disagree on 2.00% of the examples). With fewer than 299, "
        "no model is certified."
    )


def test_forecast_of_a_large_drop_at_another_level() -> None:
    settings = CertificateSettings(test_examples=50, expected_drop=0.9, expected_discordance=2.0, alpha=0.2)
    predicted = forecast(settings, 0.3, num_validation=400)
    assert predicted is not None
    assert predicted.num_validation_needed == math.ceil((0.6 - 0.27**2) / 0.1**2)
    assert predicted.validation_standard_error == pytest.approx(math.sqrt((0.6 - 0.27**2) / 400))
    assert predicted.power == power(50, settings.expected_drop * 0.3, 2.0 * 0.3, 0.3, 0.2)


def test_forecast_without_a_test_split() -> None:
    predicted = forecast(CertificateSettings(alpha=0.1), 0.01, num_validation=400)
    assert predicted is not None
    assert (predicted.test_examples, predicted.power) == (None, None)
    assert predicted.examples_needed == examples_needed(0.003, 0.02, 0.01, alpha=0.1)
    assert str(predicted).startswith(
        "Certificate: a model whose true drop is 0.003 will be certified in 80 of 100 cases with 1,998 test examples "
    )


@pytest.mark.parametrize("tolerated_drop", [0.0, 0.5, 0.9])
def test_there_is_no_forecast_if_its_assumptions_make_no_sense(tolerated_drop: float) -> None:
    assert forecast(CertificateSettings(), tolerated_drop, num_validation=400) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.0, 0.1, 0.1), "num_examples must be at least 1"),
        ((10, 0.2, 0.1, 0.1), "discordance must be at least"),
        ((10, 0.0, 1.1, 0.1), "discordance must be at least"),
        ((10, 0.0, 0.1, 1.0), "Is it a percentage"),
        ((10, 0.0, 0.1, 0.1, 0.7), "alpha must be"),
    ],
)
def test_power_rejects_arguments_out_of_range(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        power(*arguments)


@pytest.mark.parametrize("required", [0, 1, 1.5, 80])
def test_examples_needed_rejects_a_power_out_of_range(required: float) -> None:
    with pytest.raises(DataError, match="power must be above 0 and below 1"):
        examples_needed(0.0, 0.1, 0.1, power=required)


def test_one_example_may_be_enough() -> None:
    assert examples_needed(-0.5, 0.5, 0.9, power=0.01) == 1
    assert 0.01 <= power(1, -0.5, 0.5, 0.9) < power(2, -0.5, 0.5, 0.9)

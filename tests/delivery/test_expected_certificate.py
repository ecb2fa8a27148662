"""What is said of the certificate before anything is trained."""

from __future__ import annotations

import math

import pytest
import torch

from kedro_aat.budget import Budget
from kedro_aat.certificate import CertificateSettings
from kedro_aat.delivery.expected_certificate import ExpectedCertificate, expected_certificate
from kedro_aat.errors import ConfigurationError
from kedro_aat.training.callables import Evaluation, Linearization

RIGHT = torch.tensor([1.0, 1.0, 1.0, 0.0])
ERRORS = torch.tensor([0.2, 0.4, 0.1, 0.5])


def expected(
    baseline: Evaluation, drop: float = 0.02, *, higher_is_better: bool = True, **settings: object
) -> ExpectedCertificate:
    """What is expected for a budget.

    Args:
        baseline: The baseline's evaluation.
        drop: The tolerated drop.
        higher_is_better: Direction of the metric.
        **settings: Settings of the certificate.
    """
    budget = Budget(baseline=baseline.metric, drop=drop, higher_is_better=higher_is_better)
    return expected_certificate(baseline, "Metric", budget, 400, CertificateSettings.model_validate(settings))


def test_right_or_wrong_scores_have_a_forecast() -> None:
    found = expected(Evaluation(0.75, RIGHT, score_range=(0, 1)), test_examples=1000)
    assert found.forecast is not None
    assert found.forecast.power is not None
    assert "with your 1,000 test examples" in found.words
    assert expected(Evaluation(0.75, RIGHT), test_examples=1000) == found  # of a function of the user's


def test_scores_without_a_limit_need_a_range() -> None:
    baseline = Evaluation(0.3, ERRORS, score_range=(0, math.inf))
    assert "Set certificate.score_range" in expected(baseline, higher_is_better=False).words
    found = expected(baseline, higher_is_better=False, score_range=(0, 10))
    assert found.forecast is not None
    assert found.forecast.assumed_drop == pytest.approx(0.3 * 0.02)
    assert found.forecast.fewest == math.ceil(math.log(0.05) / math.log1p(-0.002))


def test_a_metric_without_scores_is_measured_all_the_same() -> None:
    found = expected(Evaluation(0.75))
    assert found.forecast is None
    assert found.words.startswith("No certificate is possible, because Metric has no score per example.")


@pytest.mark.parametrize(
    ("drop", "score_range", "words"),
    [
        (1.5, (0, 1), "the tolerated drop of 1.5 is as large as the range of Metric (1)"),
        (0.02, (0, 0.3), "score_range must include all scores, from 0.1 to 0.5"),
    ],
)
def test_what_cannot_be_certified_is_refused_before_training(
    drop: float, score_range: tuple[float, float], words: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        expected(Evaluation(0.3, ERRORS), drop, higher_is_better=False, score_range=score_range)
    assert words in str(error.value)


def test_a_linearized_metric_says_how_many_examples_it_takes() -> None:
    linearization = Linearization(effective_examples=20)
    baseline = Evaluation(
        0.7, torch.full((4,), 0.7), score_range=(-3, 4), is_linearized=True, linearization=linearization
    )
    words = expected(baseline).words
    assert "It also takes at least 10 examples of the rarest class, which are in about 200 test" in words
    assert "asymptotic: shown to hold by simulations, which is no proof" in words


def test_no_range_is_asked_for_where_none_helps() -> None:
    """R2 of several targets, for example."""
    baseline = Evaluation(
        0.7, torch.full((4,), 0.7), is_linearized=True, linearization=Linearization(effective_examples=20)
    )
    words = expected(baseline, score_range=(0, 10)).words
    assert words.startswith("No certificate is possible, because it is not known how much one example")
    assert "score_range" not in words


def test_without_a_certificate_the_words_say_how_to_get_one_later() -> None:
    baseline = Evaluation(0.75, RIGHT, score_range=(0, 1))
    budget = Budget(baseline=0.75, drop=0.02)
    found = expected_certificate(baseline, "Metric", budget, 400, None)
    assert found.words.startswith("`certificate` is null, so the test split stays unread")
    assert "With fewer than 149, no model is certified." in found.words
    assert found.forecast is not None


def test_without_a_certificate_a_range_is_to_be_set_only_before_the_split_is_read() -> None:
    baseline = Evaluation(0.3, ERRORS, score_range=(0, math.inf))
    budget = Budget(baseline=0.3, drop=0.02, higher_is_better=False)
    assert "just before `kedro aat certify`" in expected_certificate(baseline, "Metric", budget, 400, None).words
    assert "kedro aat certify" not in expected(baseline, higher_is_better=False).words


def test_a_budget_of_nothing_is_said_to_have_no_certificate() -> None:
    assert "for a budget of 0" in expected(Evaluation(0.75, RIGHT, score_range=(0, 1)), 0.0).words


def test_groups_count_instead_of_examples() -> None:
    groups = torch.arange(100).repeat_interleave(4)
    baseline = Evaluation(0.75, RIGHT.repeat(100), score_range=(0, 1), groups=groups)
    assert "With fewer than about 149 groups in the test split, no model is certified" in expected(baseline).words
    linearized = Evaluation(0.7, torch.full((400,), 0.7), score_range=(-3, 4), is_linearized=True, groups=groups)
    assert expected(linearized).words.startswith("No certificate is possible with Metric")

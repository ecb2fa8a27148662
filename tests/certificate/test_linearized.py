"""The asymptotic certificate of linearized scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kedro_aat.certificate import Certificate, certify
from kedro_aat.certificate.linearized import MIN_EFFECTIVE_EXAMPLES, certify_linearized
from kedro_aat.errors import DataError

SCORES = np.linspace(-1, 2, 200)


def certified(drop: float = 0.0, **changes: Any) -> Certificate:
    arguments: dict[str, Any] = {"worst_drop": 3.0, "effective_examples": 100, "tolerated_drop": 0.1} | changes
    return certify_linearized(SCORES, SCORES - drop, **arguments)


def test_it_is_the_test_of_a_mean_with_the_worst_drop() -> None:
    """For scores that are a mean, it is the exact test."""
    generator = np.random.default_rng(0)
    baseline = generator.beta(8, 2, 300)
    candidate = np.where(generator.random(300) < 0.01, 0, baseline)
    exact = certify(baseline, candidate, tolerated_drop=0.05, score_range=(0, 1))
    found = certify_linearized(baseline, candidate, worst_drop=1.0, effective_examples=300, tolerated_drop=0.05)
    assert found.kind == "asymptotic"
    assert found.holds_from == MIN_EFFECTIVE_EXAMPLES
    assert found.p_value == exact.p_value
    assert found.upper_bound == exact.upper_bound


def test_without_a_loss_it_takes_the_rule_of_three() -> None:
    """(1 - drop / worst)^N = alpha."""
    needed = -3.0 * math.log(0.05) / len(SCORES)
    assert certified(tolerated_drop=1.05 * needed).is_certified
    assert not certified(tolerated_drop=0.95 * needed).is_certified


def test_lower_is_better() -> None:
    better = certify_linearized(
        SCORES,
        SCORES - 0.5,
        worst_drop=3.0,
        effective_examples=100,
        tolerated_drop=0.1,
        higher_is_better=False,
    )
    assert better.is_certified
    assert better.estimated_drop == pytest.approx(-0.5)


def test_too_few_effective_examples_have_no_certificate() -> None:
    result = certified(effective_examples=7.0)
    assert result.kind is None
    assert not result.is_certified
    assert result.reason is not None
    assert result.reason.startswith(
        "the rarest class, or the few largest terms of the metric, count as only 7 examples"
    )
    assert f"takes about {math.ceil(200 * MIN_EFFECTIVE_EXAMPLES / 7):,} examples like these" in result.reason


def test_a_class_without_examples_has_no_certificate() -> None:
    assert certified(effective_examples=0.0).kind is None


@pytest.mark.parametrize("worst_drop", [None, math.inf, math.nan])
def test_scores_without_a_limit_have_no_certificate(worst_drop: float | None) -> None:
    result = certified(worst_drop=worst_drop)
    assert result.kind is None
    assert result.reason is not None
    assert "certificate.score_range" in result.reason


def test_a_budget_that_any_model_keeps_is_refused() -> None:
    with pytest.raises(DataError, match="tolerated_drop must be at least 0 and less than"):
        certified(tolerated_drop=3.0)


def test_groups_have_no_certificate_of_such_a_metric() -> None:
    result = certified(is_grouped=True)
    assert result.kind is None
    assert result.reason is not None
    assert result.reason.startswith("for groups of examples")

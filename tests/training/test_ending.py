"""The model that is returned is the one that was judged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kedro_aat import AdaptiveCompressionTrainingLoop, Outcome
from kedro_aat.errors import UnrepeatableError
from tests.scripted import ScriptedController, ScriptedModel, train_epoch

DROP = 0.02


def search(folder: Path, metric_of: Callable[[float, int], float]) -> AdaptiveCompressionTrainingLoop:
    """Runs a search whose metric depends on the rate and on the number of the validation."""
    model = ScriptedModel(0.0)
    calls: list[float] = []

    def validate(model: ScriptedModel) -> float:
        calls.append(metric_of(float(model.state[0]), len(calls) + 1))
        return calls[-1]

    params = {
        "maximal_absolute_accuracy_degradation": DROP,
        "search": {"kind": "frontier", "maximal_total_epochs": 12},
    }
    config = {"accuracy_aware_training": {"mode": "adaptive_compression_level", "params": params}}
    loop = AdaptiveCompressionTrainingLoop(config, ScriptedController(model), 0.95, verbose=False)
    loop.run(model, train_epoch, validate, log_dir=folder)
    loop.num_validations = len(calls)  # type: ignore[attr-defined]
    return loop


def falling(rate: float) -> float:
    """0.95 without compression, and on the budget at rate 0.8."""
    return 0.95 - DROP * (rate / 0.8) ** 4


def test_last_validation_that_differs_is_an_error_that_names_both(tmp_path: Path) -> None:
    usual = search(tmp_path / "usual", lambda rate, number: falling(rate))
    last: int = usual.num_validations  # type: ignore[attr-defined]
    assert last == len(usual.history) + 1  # nothing is validated more often than before
    judged = usual.statistics.compressed_accuracy
    with pytest.raises(UnrepeatableError, match=f"a metric of {judged:.8g}, but validated again it has 0.05"):
        search(tmp_path / "lucky", lambda rate, number: 0.05 if number == last else falling(rate))


@pytest.mark.parametrize("share", [0.09, -0.09])
def test_negligible_difference_counts_as_the_worse(
    share: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usual = search(tmp_path / "usual", lambda rate, number: falling(rate) + DROP / 4)
    last: int = usual.num_validations  # type: ignore[attr-defined]
    change = share * DROP
    with caplog.at_level(logging.WARNING):
        loop = search(tmp_path / "other", lambda rate, number: falling(rate) + DROP / 4 + (number >= last) * change)
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert "differ by up to 0.0018, so" in caplog.text
    expected = usual.statistics.compressed_accuracy + min(change, 0)
    if usual.statistics.accuracy_budget + min(change, 0) >= 0:
        assert loop.statistics.compressed_accuracy == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_noisy_validation_returns_a_model_that_kept_the_budget_twice(seed: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(seed).normal(0, DROP / 10, 1000)
    loop = search(tmp_path, lambda rate, number: falling(rate) + noise[number])
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert loop.statistics.accuracy_budget >= 0
    assert loop.statistics.compression_rate > 0.5

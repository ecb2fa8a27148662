"""Guards in the loops: values that a script's validation function returns beside the metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kedro_aat import Evaluation, NNCFConfig
from kedro_aat.budget import Outcome
from kedro_aat.errors import ConfigurationError, MetricError
from tests.scripted import ScriptedModel
from tests.training.scripted_loop import BASELINE, FORMULA, PARAMS, ScriptedLoop

GUARD = {"name": "rare", "higher_is_better": True, "max_drop": 0.4}


def validate(model: ScriptedModel, epoch: int) -> Evaluation:
    """The accuracy, and a class that loses as much as the model."""
    return Evaluation(model.accuracy(FORMULA), also={"rare": 0.9 - float(model.state[0])})


def loop(params: dict[str, Any], baseline: Any) -> ScriptedLoop:
    return ScriptedLoop(params=PARAMS | params, baseline=baseline)


@pytest.mark.parametrize("search", [{}, {"search": {"kind": "frontier", "maximal_total_epochs": 20}}])
def test_a_loop_keeps_the_guards_that_its_function_returns(search: dict[str, Any], tmp_path: Path) -> None:
    unguarded = loop(search, BASELINE)
    unguarded.run(tmp_path / "unguarded", validate=validate)
    assert unguarded.loop.statistics.compression_rate > 0.4

    guarded = loop(search | {"also": [GUARD]}, Evaluation(BASELINE, also={"rare": 0.9}))
    guarded.run(tmp_path / "guarded", validate=validate)
    assert guarded.loop.outcome is Outcome.WITHIN_BUDGET
    assert 0 < guarded.loop.statistics.compression_rate <= 0.4 + 1e-9
    assert all(row.guards.keys() == {"rare"} for row in guarded.loop.history)


def test_a_baseline_without_the_guard_is_one_error() -> None:
    with pytest.raises(MetricError, match="the baseline has no value of the guard rare"):
        loop({"also": [GUARD]}, BASELINE)


def test_a_guard_of_a_script_has_no_metric() -> None:
    guard = {"metric": "torchmetrics.classification.BinaryRecall", "max_drop": 0.1}
    section = {"mode": "adaptive_compression_level", "params": PARAMS | {"also": [guard]}}
    with pytest.raises(ConfigurationError, match="a guard of a training loop has a name and higher_is_better"):
        NNCFConfig.from_dict({"accuracy_aware_training": section})

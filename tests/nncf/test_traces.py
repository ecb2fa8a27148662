"""Replays recorded runs of NNCF 2.19's loops: same epochs, rates, increments, learning rates and metrics.

Our loop follows a trace to its end, or up to the point where a fixed defect of the original changes it. The constants
below name each such trace with the defect (the numbers are those of the project's list of defects) and what our loop
does instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kedro_aat import (
    AdaptiveCompressionTrainingLoop,
    BaseEarlyExitCompressionTrainingLoop,
    EarlyExitCompressionTrainingLoop,
    Outcome,
)
from kedro_aat.budget import Budget
from kedro_aat.search.policy import EpochResult, Problem
from kedro_aat.search.stepping import UniformDecrease
from tests import scripted

TRACES: dict[str, Any] = {
    recorded["scenario"]["name"]: recorded
    for recorded in json.loads((Path(__file__).parent / "nncf_traces.json").read_text())["traces"]
}

# Defect 4: the original trained its last rate for one epoch; ours for `patience_epochs`, so epochs follow.
LAST_RATE_GETS_ITS_PATIENCE = {
    *(
        "defaults",
        "defaults_no_total",
        "relative_1pct",
        "patience_10",
        "init_0",
        "full_scheduled",
        "step_0.4",
    ),
    *("lr_factor_0.1", "lr_factor_1", "earlystop_noimprove", "noisy_1", "noisy_no_dump", "drift_down"),
    *("metric_percent", "random_0"),
}
# Defect 3: the original stopped before training at the maximal rate; ours trains there.
TRAINS_AT_THE_MAXIMAL_RATE = {
    "always_satisfies_hits_max": 0.95,
    "controller_max_0.42": 0.42,
    "random_6": 0.7,
    "random_10": 0.7,
}
# Defect 8: the initial phase ignored the limit on the total number of epochs; ours respects it, so epochs are missing.
INITIAL_PHASE_KEEPS_THE_LIMIT = {"total_3_less_than_init": 3}
# Defect 5: checkpoints of rates that agree in three decimals overwrote each other; ours has the right weights. The only
# difference is the number of epochs for which the weights were trained (`c`), from this row on.
CLOSE_RATES_KEEP_THEIR_CHECKPOINTS = {"step_0.4": 11}
# Defect 2: without a rate within budget the original returned the model in memory and its last target rate.
NOTHING_WITHIN_BUDGET = {
    *("never_satisfies", "never_satisfies_min_rate_0.2", "total_3_less_than_init", "ee_never", "ee_no_dump"),
    # Defect 17: if the model never became fully compressed, the original raised a TypeError after all the training.
    "ee_partial_stage_never_full",
}


class Replay:
    """Runs our loop on the scenario of a trace, and records a row at every validation."""

    def __init__(self, scenario: dict[str, Any], folder: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self.model = scripted.ScriptedModel(scenario["initial_rate"])
        self.controller = scripted.ScriptedController(
            self.model,
            maximal_rate=scenario.get("controller_maximal_rate", 1.0),
            increment=scenario.get("schedule_inc", 0.0),
            is_partial_until_search=scenario.get("partial_until_search", False),
        )
        self._formula = scenario["acc"]
        self._learning_rate: Callable[[], float] = lambda: float("nan")
        config = {"accuracy_aware_training": {"mode": scenario["mode"], "params": scenario["params"]}}
        common: dict[str, Any] = {
            "verbose": False,
            "dump_checkpoints": scenario.get("dump_checkpoints", True),
        }
        self.loop: BaseEarlyExitCompressionTrainingLoop
        if scenario["mode"] == "early_exit":
            self.loop = EarlyExitCompressionTrainingLoop(config, self.controller, scenario["uncompressed"], **common)
        else:
            self.loop = AdaptiveCompressionTrainingLoop(
                config,
                self.controller,
                scenario["uncompressed"],
                minimal_compression_rate=scenario.get("minimal_compression_rate", 0.0),
                maximal_compression_rate=scenario.get("maximal_compression_rate", 0.95),
                **common,
            )
        self.loop.run(
            self.model,
            scripted.train_epoch,
            self._validate,
            self._configure_optimizers,
            early_stopping_fn=scripted.early_stopping(scenario.get("early_stopping")),
            log_dir=folder,
        )

    def _configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self._learning_rate = lambda: optimizer.param_groups[0]["lr"]
        return optimizer, None

    def _validate(self, model: scripted.ScriptedModel, epoch: int) -> float:
        rate, at_rate, trained = model.state.tolist()
        metric = model.accuracy(self._formula)
        self.rows.append(
            {
                "epoch": epoch,
                "model_rate": rate,
                "e": at_rate,
                "c": trained,
                "lr": self._learning_rate(),
                "metric": metric,
            }
        )
        return metric


_REPLAYS: dict[str, Replay] = {}


@pytest.fixture
def replay(name: str, tmp_path: Path) -> Replay:
    """The replay of a trace, once for all tests; they only read it."""
    if name not in _REPLAYS:
        _REPLAYS[name] = Replay(TRACES[name]["scenario"], tmp_path)
    return _REPLAYS[name]


ALL = pytest.mark.parametrize("name", sorted(TRACES))
ADAPTIVE = pytest.mark.parametrize(
    "name", [name for name in sorted(TRACES) if TRACES[name]["scenario"]["mode"] != "early_exit"]
)


def test_there_are_34_traces() -> None:
    assert len(TRACES) == 34


@ALL
def test_loop_follows_the_trace(name: str, replay: Replay) -> None:
    scenario, trace = TRACES[name]["scenario"], TRACES[name]["trace"]
    ours, theirs = replay.rows[:-1], trace["per_validation"]  # our loop validates once more after the final load
    if scenario["mode"] == "adaptive_compression_level":
        theirs = theirs[:-1]
    wrong_weights_from = CLOSE_RATES_KEEP_THEIR_CHECKPOINTS.get(name, len(theirs))
    for number, (row, original) in enumerate(zip(ours, theirs, strict=False)):
        if row["epoch"] >= INITIAL_PHASE_KEEPS_THE_LIMIT.get(name, float("inf")) < original["epoch"]:
            break
        keys = set(row) - ({"c"} if number >= wrong_weights_from else set())
        for key in keys:
            assert row[key] == pytest.approx(original[key], abs=1e-9), (number, key)

    if name in LAST_RATE_GETS_ITS_PATIENCE:
        assert len(ours) > len(theirs)
        extra = ours[len(theirs) :]
        assert {row["model_rate"] for row in extra} == {theirs[-1]["model_rate"]}
        patience = scenario["params"]["patience_epochs"]
        assert len(extra) + 1 <= patience
    elif name in TRAINS_AT_THE_MAXIMAL_RATE:
        assert len(ours) > len(theirs)
        assert ours[len(theirs)]["model_rate"] == TRAINS_AT_THE_MAXIMAL_RATE[name]
    elif name in INITIAL_PHASE_KEEPS_THE_LIMIT:
        assert ours[-1]["epoch"] == INITIAL_PHASE_KEEPS_THE_LIMIT[name] < theirs[-1]["epoch"]
    else:
        assert len(ours) == len(theirs)


@ADAPTIVE
def test_targets_and_steps_follow_the_trace(name: str, replay: Replay) -> None:
    scenario, trace = TRACES[name]["scenario"], TRACES[name]["trace"]
    keys = set(UniformDecrease.model_fields) & set(scenario["params"])
    policy = UniformDecrease(**{key: scenario["params"][key] for key in keys})
    maximal = min(scenario.get("maximal_compression_rate", 0.95), scenario.get("controller_maximal_rate", 1.0))
    state = policy.initial(
        Problem(
            minimal_rate=scenario.get("minimal_compression_rate", 0.0),
            maximal_rate=maximal,
            initial_rate=scenario["initial_rate"],
        )
    )
    stops_early = scripted.early_stopping(scenario.get("early_stopping"))
    for record, original in zip(replay.loop.history, trace["per_validation"][:-1], strict=False):
        if record.epoch != original["epoch"]:
            assert name in INITIAL_PHASE_KEEPS_THE_LIMIT
            break
        result = {key: value for key, value in vars(record).items() if key in EpochResult.model_fields}
        assert record.metric is not None
        stopped = stops_early is not None and record.trained and stops_early(record.metric)
        state = policy.tell(state, EpochResult(**result, early_stop=stopped))
        target = original["target_rate"]
        assert state.target_rate == (None if target is None else pytest.approx(target, abs=1e-9))
        assert state.step == pytest.approx(original["step"], abs=1e-9)
        assert state.lr_scale == pytest.approx(original["lr_factor"], abs=1e-9)


@ALL
def test_returned_model_and_statistics(name: str, replay: Replay) -> None:
    trace = TRACES[name]["trace"]
    statistics = replay.loop.statistics
    # Defect 6: the reported rate is the rate of the model after the final load.
    assert statistics.compression_rate == replay.controller.compression_rate
    assert trace["minimal_tolerable_accuracy"] == pytest.approx(
        statistics.compressed_accuracy - statistics.accuracy_budget, abs=1e-9
    )
    if name in NOTHING_WITHIN_BUDGET:
        assert replay.loop.outcome is Outcome.INFEASIBLE
        assert statistics.compression_rate == 0.0
        assert replay.model.state.tolist() == [0.0, 0.0, 0.0]  # the original model at rate 0
        return
    assert replay.loop.outcome is Outcome.WITHIN_BUDGET
    assert statistics.accuracy_budget >= 0
    # A fixed defect adds epochs, which can only find a higher rate.
    original_rate = trace["final_model"]["rate"]
    adds_epochs = name in LAST_RATE_GETS_ITS_PATIENCE or name in TRAINS_AT_THE_MAXIMAL_RATE
    if adds_epochs and statistics.compression_rate > original_rate:
        return
    assert statistics.compression_rate == pytest.approx(original_rate, abs=1e-9)
    assert statistics.compressed_accuracy == pytest.approx(trace["final_model"]["metric"], abs=1e-9)


def test_budget_of_the_traces_is_ours() -> None:
    for recorded in TRACES.values():
        scenario = recorded["scenario"]
        params, baseline = scenario["params"], scenario["uncompressed"]
        relative = params.get("maximal_relative_accuracy_degradation")
        drop = params.get("maximal_absolute_accuracy_degradation")
        budget = Budget(baseline=baseline, drop=baseline * relative / 100 if drop is None else drop)
        expected = recorded["trace"]["minimal_tolerable_accuracy"]
        assert budget.lowest_tolerated == pytest.approx(expected, abs=1e-12)

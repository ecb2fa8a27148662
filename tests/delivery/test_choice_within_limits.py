"""Which file is delivered if there are limits, decided on made-up files."""

from __future__ import annotations

from typing import Any

import pytest

from kedro_aat.budget import Outcome
from kedro_aat.delivery.deliver import deliver
from kedro_aat.export.settings import ExportSettings
from tests.delivery.made_up import BASELINE, BUDGET, DATA, KINDS, TRAINING, Tools, chosen, fast, made


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"onnx_bytes": 1999}, "onnx_bytes are 2,000, above the limit of 1,999"),
        ({"parameters": 1999}, "parameters are 2,000, above the limit of 1,999"),
        ({"macs": 1999}, "macs are 2,000, above the limit of 1,999"),
        (
            {"latency_ms": {1: 9.0, 4: 2.4}},
            "the median latency at batch 4 is 2.5 ms, above the limit of 2.4 ms",
        ),
        (
            {"macs": 1500, "parameters": 2000, "onnx_bytes": 1000},
            "onnx_bytes are 2,000, above the limit of 1,000, macs",
        ),
    ],
)
def test_limits_exclude_what_exceeds_them(tools: Tools, limits: dict[str, Any], words: str) -> None:
    large = made("large", 0.9, bytes=2000, parameters=2000, macs=2000, median={1: 2.0, 4: 2.5})
    small = made("small", 0.1, bytes=1000, parameters=1000, macs=1000, median={1: 1.0, 4: 1.0})
    _, result = chosen(large, small, objective="rate", limits=limits)
    assert result.delivered == "small"
    assert list(result.rejected) == ["large"]
    assert result.rejected["large"].startswith(words)
    assert len(result.candidates) == 2


@pytest.mark.parametrize("limits", [{"onnx_bytes": 2000}, {"parameters": 2000}, {"latency_ms": {1: 2.0}}])
def test_limit_that_is_just_kept(tools: Tools, limits: dict[str, Any]) -> None:
    large = made("large", bytes=2000, parameters=2000, median={1: 2.0, 4: 2.5})
    assert chosen(large, limits=limits)[1].delivered == "large"


def test_nearest_to_the_limits_is_the_one_whose_worst_excess_is_smallest(tools: Tools) -> None:
    first = made("first", bytes=1900, parameters=1001)
    second = made("second", bytes=1500, parameters=1500)
    exported, result = chosen(first, second, limits={"onnx_bytes": 1000, "parameters": 1000})
    assert exported is None
    assert (result.outcome, result.delivered, result.compressed) == (Outcome.INFEASIBLE, None, None)
    assert result.reason == (
        "No model within budget keeps the limits. second comes nearest: onnx_bytes are 1,500, above the "
        "limit of 1,000, "
        "parameters are 1,500, above the limit of 1,000."
    )
    assert set(result.rejected) == {"first", "second"}
    assert result.breaks_limits


def test_nearest_is_measured_in_multiples_of_the_limit(tools: Tools) -> None:
    first = made("first", macs=30, median={1: 6.0, 4: 1.0})
    second = made("second", macs=11, bytes=1500, median={1: 1.0, 4: 30.0})
    _, result = chosen(first, second, limits={"macs": 10, "onnx_bytes": 1000})
    assert "second comes nearest" in result.reason
    _, result = chosen(first, second, limits={"latency_ms": {1: 2.0, 4: 20.0}})
    assert "second comes nearest" in result.reason


def test_nearest_by_latency(tools: Tools) -> None:
    first = made("first", median={1: 9.0, 4: 1.0})
    second = made("second", median={1: 4.0, 4: 4.0})
    _, result = chosen(first, second, limits={"latency_ms": {1: 2.0, 4: 2.0}})
    assert "second comes nearest" in result.reason


def test_less_compressed_models_are_tried_only_if_no_file_keeps_the_limits(tools: Tools) -> None:
    large, small = made("large", bytes=3000), made("small", bytes=1000)
    others = [made("rate 0.4", bytes=2500), made("rate 0.3", bytes=1500)]
    _, result = chosen(large, others=others, limits={"onnx_bytes": 2000})
    assert result.delivered == "rate 0.3"
    assert list(result.rejected) == ["large", "rate 0.4"]
    assert [candidate.name for candidate in result.candidates] == ["large", "rate 0.4", "rate 0.3"]
    _, result = chosen(large, small, others=others, limits={"onnx_bytes": 2000})
    assert result.delivered == "small"
    assert [candidate.name for candidate in result.candidates] == ["large", "small"]


def test_others_that_were_only_timed_are_tried_if_the_limits_demand_it(tools: Tools) -> None:
    candidate = fast("first", 3.0, bytes=3000)
    others = [fast("slow", 5.0, bytes=1000), fast("fast", 1.0, bytes=3000)]
    _, result = chosen(candidate, others=others, objective="latency", limits={"onnx_bytes": 2000})
    assert result.delivered == "slow"
    assert [candidate.name for candidate in result.candidates] == ["first", "fast", "slow"]


def test_goal_of_accuracy_delivers_the_best_metric_of_the_files_that_keep_the_limits(tools: Tools) -> None:
    files = [
        made("accurate", bytes=900, metrics=dict.fromkeys(KINDS, 0.7)),
        made("small", bytes=500, metrics=dict.fromkeys(KINDS, 0.6)),
        made("large", bytes=2000, metrics=dict.fromkeys(KINDS, 0.8)),
    ]
    export = ExportSettings.model_validate(
        {"batch_sizes": (1, 4), "num_threads": 3, "latency_seconds": 0.25, "limits": {"onnx_bytes": 1000}}
    )
    _, result = deliver(files, iter(()), BASELINE, DATA, BUDGET, TRAINING, export, "The search ended.", goal="accuracy")
    assert result.delivered == "accurate"
    assert list(result.rejected) == ["large"]

"""What a device measured, and what it failed on, in the tables and reasons that people read."""

from __future__ import annotations

from typing import Any

import pytest

from kedro_aat.delivery.results import Summary
from kedro_aat.reporting.metrics import flat_metrics
from kedro_aat.reporting.numbers import cost_rows
from kedro_aat.reporting.others import reasons_not_delivered
from tests.reporting.runs import changed, summary_of

FAILED = {"target": "onnx", "failure": "TimeoutError: no answer in 60 s"}


def answered(latency_ms: float, memory_bytes: int) -> dict[str, Any]:
    return {"target": "onnx", "latency_ms": latency_ms, "memory_bytes": memory_bytes}


def summary(baseline: dict[str, Any], first: dict[str, Any], delivered: dict[str, Any]) -> Summary:
    """A run whose device said this of the baseline and of both candidates."""
    known = summary_of("within_budget")
    candidates = [
        each.model_dump() | {"device": device}
        for each, device in zip(known.candidates, (first, delivered), strict=True)
    ]
    return changed(
        known,
        baseline=known.baseline.model_dump() | {"device": baseline},
        compressed=known.compressed.model_dump() | {"device": delivered},
        candidates=candidates,
    )


def test_numbers_of_the_device_are_rows() -> None:
    made = summary(answered(10.0, 8_000_000), FAILED, answered(2.5, 4_000_000))
    rows = cost_rows(made.baseline, made.compressed)
    assert ("latency on the device, ms", "10.000", "2.500", "0.25x") in rows
    assert ("memory on the device, bytes", "8,000,000", "4,000,000", "0.50x") in rows
    assert flat_metrics(made)["compressed.device.latency_ms"] == 2.5


def test_a_failure_of_the_device_is_a_row() -> None:
    made = summary(answered(10.0, 8_000_000), FAILED, FAILED)
    rows = cost_rows(made.baseline, made.compressed)
    assert ("latency on the device, ms", "10.000", "-", "") in rows
    assert ("device failed, compressed", "", "", "TimeoutError: no answer in 60 s") in rows


@pytest.mark.parametrize(
    ("objective", "first", "words"),
    [
        (
            "device_latency",
            answered(3.0, 5),
            "the lowest latency on the device: 3.000 ms, but the delivered file has 2.500 ms",
        ),
        (
            "device_memory",
            answered(3.0, 5000),
            "the least memory on the device: 5,000 bytes, but the delivered file has 4,000 bytes",
        ),
        ("device_memory", FAILED, "the fewest bytes: 2,000, but the delivered file has 400"),
        ("device_latency", FAILED, "the lowest latency at batch 1: 0.040 ms, but the delivered file has 0.008 ms"),
    ],
)
def test_reasons_are_by_what_decided(objective: Any, first: dict[str, Any], words: str) -> None:
    (reason,) = reasons_not_delivered(summary(FAILED, first, answered(2.5, 4000)), objective).values()
    assert reason == f"The objective is {words}."

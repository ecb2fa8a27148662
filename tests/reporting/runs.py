"""Made-up results of small runs, one for every outcome that a report shows."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx
import pandas as pd
import torch
from torch import nn

from kedro_aat.config import AatSettings
from kedro_aat.delivery.results import Summary
from kedro_aat.export import NotExported
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.reporting.summary import trajectory
from kedro_aat.training.records import EpochRecord

METRIC = "torchmetrics.classification.BinaryAccuracy"
COSTS = {
    "parameters": 1000,
    "nonzero_parameters": 1000,
    "macs": 5000,
    "onnx_bytes": 4000,
    "onnx_gzip_bytes": 3000,
    "openvino_bytes": 4400,
}


def settings(**changes: Any) -> AatSettings:
    return AatSettings.model_validate({"budget": {"max_drop": 0.05}, "training": {"metric": METRIC}} | changes)


def epochs(stage: int, steps: list[tuple[float, float]], *, baseline: float, is_higher_better: bool) -> pd.DataFrame:
    """Trajectory of one search stage, whose first epoch only validated.

    Args:
        stage: Number of the search stage.
        steps: Rate and metric of each epoch.
        baseline: Metric of the baseline; the budget is 0.05.
        is_higher_better: Direction of the metric.
    """
    sign = 1 if is_higher_better else -1
    rows = [
        EpochRecord(
            checkpoint=number,
            epoch=number,
            trained=number > 0,
            started_from=None,
            requested_rate=rate,
            achieved_rate=rate,
            metric=metric,
            margin=sign * (metric - baseline) + 0.05,
            standard_error=0.01,
            loss=None,
            learning_rate=0.1 / (number + 1),
            lr_scale=1.0,
            fully_compressed=True,
            best_rate=None,
            seconds=1.0,
        )
        for number, (rate, metric) in enumerate(steps)
    ]
    return trajectory(rows).assign(stage=stage)


def trajectory_of(summary: Summary) -> pd.DataFrame:
    """Trajectory in which the model at rate 0.8 keeps the budget and that at 0.9 does not."""
    higher, baseline = summary.metric.higher_is_better, summary.baseline.validation
    worse = -1 if higher else 1
    drops = [(0.0, 0.0), (0.5, 0.01), (0.8, 0.03), (0.9, 0.5), (0.9, 0.2)]
    steps = [(rate, baseline + worse * drop) for rate, drop in drops]
    frames = [epochs(1, steps, baseline=baseline, is_higher_better=higher)]
    if len(summary.stages) == 2:
        steps = [(1.0, baseline + worse * 0.04), (1.0, baseline + worse * 0.02)]
        frames.append(epochs(2, steps, baseline=baseline, is_higher_better=higher))
    return pd.concat(frames, ignore_index=True)


def candidate(name: str, stage: int, checkpoint: int, rate: float, share: float, validation: float) -> dict[str, Any]:
    """A candidate of the summary.

    Args:
        name: Name.
        stage: Number of its search stage.
        checkpoint: Number of its checkpoint.
        rate: Compression rate.
        share: Its costs as a fraction of the baseline's.
        validation: Metric on the validation split.
    """
    costs: dict[str, Any] = {key: int(value * share) for key, value in COSTS.items()}
    result = {"name": name, "stage": stage, "checkpoint": checkpoint, "rate": rate, "validation": validation}
    return result | costs | measured(share)


def measured(share: float) -> dict[str, Any]:
    """Latency and memory, as a fraction of the baseline's."""
    latencies = {"1": 0.1 * share, "64": 2.0 * share}
    quartiles = {size: [0.9 * latency, 1.2 * latency] for size, latency in latencies.items()}
    return {
        "latency_ms": latencies,
        "latency_quartiles_ms": quartiles,
        "latency_fastest_ms": {size: 0.8 * latency for size, latency in latencies.items()},
        "openvino_latency_ms": {"1": 0.3 * share, "64": 1.5 * share},
        "openvino_latency_quartiles_ms": quartiles,
        "openvino_latency_fastest_ms": {"1": 0.2 * share, "64": 1.2 * share},
        "peak_memory_bytes": {"1": int(20e6 * share), "64": int(30e6 * share)},
    }


def summary_of(outcome: str, *, is_higher_better: bool = True, algorithm: str = "filter_pruning") -> Summary:
    """Summary of a run with two search stages, which delivers the smaller model of the second stage.

    Args:
        outcome: Outcome of the run; if "infeasible", no model is delivered.
        is_higher_better: Direction of the metric.
        algorithm: Algorithm of the first stage.
    """
    baseline = 0.9 if is_higher_better else 0.4
    kept = baseline + (-0.02 if is_higher_better else 0.02)
    made = [candidate(algorithm, 1, 2, 0.8, 0.5, kept), candidate("quantization", 2, 1, 1.0, 0.1, kept)]
    delivered = None if outcome == "infeasible" else made[1]
    compressed = delivered or dict.fromkeys((*COSTS, *measured(1)))
    lowest = baseline - 0.05 if is_higher_better else baseline + 0.05
    budget = {"kind": "absolute", "drop": 0.05, "lowest_tolerated": lowest}
    stage: dict[str, Any] = {
        "rate": {"requested": 0.8, "achieved": 0.8},
        "best_checkpoint": 2,
        "standard_error": 0.01,
        "validation": kept,
        "budget": budget,
        "reason": "All 5 epochs were used.",
        "epochs": {"used": 3, "allowed": 3},
        "seconds": {"used": 6.15, "limit": None},
        "device": "cpu",
        "run": "0123456789ab",
    }
    stage |= {"outcome": "infeasible" if outcome == "infeasible" else "within_budget"}
    second = stage | {"rate": {"requested": 0.99, "achieved": 1.0}, "best_checkpoint": 1}
    data = {
        "outcome": outcome,
        "reason": "All 5 epochs were used.",
        "advice": "What to do next.",
        "delivered": delivered and delivered["name"],
        "metric": {"name": "BinaryAccuracy" if is_higher_better else "MeanAbsoluteError"}
        | {"higher_is_better": is_higher_better},
        "budget": budget,
        "baseline": {"validation": baseline, "test": baseline} | COSTS | measured(1),
        "compressed": {
            **{key: compressed[key] for key in (*COSTS, *measured(1))},
            "validation": kept if delivered else baseline,
            "validation_standard_error": 0.01 if delivered else None,
            "test": kept if delivered else None,
            "rate": {"requested": 0.8, "achieved": 0.8} if delivered else {"requested": 0.0, "achieved": 0.0},
        },
        "certificate": {"is_certified": outcome == "certified", "words": "What the test split said."},
        "candidates": made if delivered else [],
        "rejected": {},
        "stages": [{"algorithms": [algorithm], **stage}, {"algorithms": ["quantization"], **second}],
        "distillation": {"kind": "auto", "temperature": 3.0, "weight": 0.7},
        "report": "aat_report.html",
        "epochs": {"used": 6, "allowed": 6},
        "seconds": {"used": 12.3, "limit": None},
        "run": "0123456789ab",
        "seed": 7,
        "environment": {"python": "3.11.7", "processor": "x86_64", "threads": 1, "device": "cpu"},
        "versions": {"onnxruntime": "1.32.0", "torch": "2.13.0"},
    }
    return Summary.model_validate(data)


def changed(summary: Summary, **changes: Any) -> Summary:
    """A summary with some values changed; a mapping changes only the entries that it names."""
    return Summary.model_validate(_merged(summary.model_dump(), changes))


def _merged(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {
        key: _merged(data[key], value) if isinstance(value, dict) and isinstance(data.get(key), dict) else value
        for key, value in changes.items()
    }
    return data | merged


def layers(note: str = "its outputs are outputs of the model") -> pd.DataFrame:
    """A layer table: two layers are cut, and one of them is quantized to 8 bits."""
    from kedro_aat.reporting.layers import COLUMNS

    cut = {"stage": 1, "algorithm": "filter_pruning", "shape_before": "8x1x3x3", "shape": "2x1x3x3", "rate": 0.75}
    cut |= {"parameters_before": 72, "parameters": 18, "macs_before": 4608, "macs": 1152, "note": ""}
    rows = [
        cut | {"layer": "stem"},
        cut | {"layer": "head", "note": note},
        {"stage": 2, "algorithm": "quantization", "layer": "stem.weight", "shape": "2x1x3x3", "rate": 1.0}
        | {"weights": 18, "bits": 8, "sensitivity": 1e-4, "note": ""},
    ]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype(COLUMNS)


@cache  # the exporter takes seconds
def onnx_model() -> onnx.ModelProto:
    return to_onnx(nn.Linear(3, 2), torch.zeros(2, 3))


def exported(summary: Summary) -> onnx.ModelProto | NotExported:
    return NotExported(summary.reason) if summary.delivered is None else onnx_model()

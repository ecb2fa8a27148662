"""What a plan says of a run against the run: memory, disk and processor time, as ratios.

A case is planned in one process and run in another. Times are those of the processor, since others use the machine.

    python -m benchmarks.scale plan [--size 1]
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.scale.bars import Row
from benchmarks.scale.real_run import Case, Measured, prepared, run
from kedro_aat.planning.formulas import Plan, plan, total
from kedro_aat.planning.measuring import measure

FACTOR = 1.5  # both ways
_SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01, "momentum": 0.9}}
_INT8 = {"algorithm": "quantization"}


def cases(size: float) -> dict[str, Case]:
    """The cases by name.

    Args:
        size: Factor on the parameters of the perceptrons; 1 for 3, 12 and 41 million.
    """
    search = {"kind": "frontier", "maximal_total_epochs": 4}

    def mlp(width: int, **settings: Any) -> Case:
        return Case("mlp", {"width": round(width * size**0.5)}, {"search": search, **settings})

    without = {"distillation": None}
    filters = {"compression": {"algorithm": "filter_pruning"}}
    return {
        "MLP 3M, AdamW, sparsity": mlp(850),
        "MLP 12M, AdamW, sparsity": mlp(1700),
        "MLP 12M, SGD, sparsity, no teacher": mlp(1700, training={"optimizer": _SGD, **without}),
        "MLP 12M, AdamW, filters": mlp(1700, **filters),
        "MLP 12M, AdamW, int8": mlp(1700, compression=_INT8),
        "MLP 41M, AdamW, sparsity": mlp(3200),
        "ResNet-18, AdamW, sparsity": Case("cnn", {}, {"search": search}),
        "ResNet-18, SGD, filters": Case("cnn", {}, {"search": search, **filters, "training": {"optimizer": _SGD}}),
        "ResNet-18, AdamW, int8, no teacher": Case(
            "cnn", {}, {"search": search, "compression": _INT8, "training": without}
        ),
        "ViT 4M, AdamW, sparsity": Case("vit", {"width": 256, "depth": 6}, {"search": search}),
        "ViT 4M, AdamW, filters, then int8": Case(
            "vit",
            {"width": 256, "depth": 6},
            {
                "search": search,
                **filters,
                "second_stage": {
                    "compression": _INT8,
                    "skip_without_gain": False,
                    "search": search | {"maximal_total_epochs": 2},
                },
            },
        ),
    }


def rows(size: float) -> Iterator[Row]:
    """Measures each case.

    Args:
        size: As for `cases`.
    """
    context = multiprocessing.get_context("spawn")
    for name, case in cases(size).items():
        with context.Pool(1) as pool:
            planned = pool.apply(_planned, (case,))
        with context.Pool(1) as pool:
            measured = pool.apply(_run, (case,))
        for what, ratio in ratios(planned, measured).items():
            larger = max(ratio, 1 / ratio) if ratio else float("inf")
            yield Row(f"{name}: {what}, planned {ratio:.2f} times the measured", larger, "x", FACTOR)


def ratios(planned: Plan, measured: Measured) -> dict[str, float]:
    """Planned numbers as a share of the measured ones."""
    time_of = {item.name: item.value for item in planned.time}
    search = sum(seconds for name, seconds in time_of.items() if name.startswith("search"))
    searched = sum(seconds for node, seconds in measured.seconds.items() if node.startswith("finetune"))
    peak = max(peak for node, peak in measured.peaks.items() if node.startswith("finetune"))
    return {
        "peak in training": total(planned.device) / peak,
        "peak in training without the process": _without_process(planned, total(planned.device))
        / (peak - planned.job.process_bytes),
        "peak of the run": planned.peak_bytes / max(measured.peaks.values()),
        "newest checkpoint": planned.checkpoint / measured.newest,
        "checkpoints": sum(item.value for item in planned.disk if item.name.startswith("checkpoints"))
        / measured.checkpoints,
        "disk": total(planned.disk) / measured.disk,
        "epoch": total(planned.epoch) / measured.epoch,
        "search": search / searched,
        "whole run": total(planned.time) / sum(measured.seconds.values()),
    }


def _without_process(planned: Plan, number: float) -> float:
    return number - planned.job.process_bytes


def _planned(case: Case) -> Plan:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        catalog = prepared(case, Path(folder))
        model, train, validation = (
            catalog[name].load() for name in ("baseline_model", "train_data", "validation_data")
        )
        return plan(measure(model, train, validation, case.aat, clock=time.process_time))


def _run(case: Case) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        return run(case, Path(folder))

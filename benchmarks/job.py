"""The complete default job on the digits: bytes, latency and labels of the delivered file, compared to the baseline's.

    python benchmarks/job.py [--seeds 0 1 2] [--repeats 2]

Latency is measured `--repeats` times in alternating turns, which shows how well the ratios repeat.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs as a script

from benchmarks.digits import baseline_of, project_parameters
from kedro_aat.config import AatSettings
from kedro_aat.datasets.handles import TensorBoardLog
from kedro_aat.delivery.results import SearchResult
from kedro_aat.export import NotExported
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.session import OnnxModel
from kedro_aat.pipelines.aat.baseline import evaluate_baseline
from kedro_aat.pipelines.aat.deliver import export_model
from kedro_aat.pipelines.aat.search import (
    build_controller,
    finetune_adaptively,
    finetune_second_stage,
)
from kedro_aat.training.checkpoints import CheckpointStore


def job(parameters: dict[str, Any], seed: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Run all nodes up to the export for one seed, and return numbers about the delivered file."""
    model, train, validation, test = baseline_of(parameters, seed, folder)
    settings = AatSettings.model_validate(parameters["aat"] | {"seed": seed})
    evaluation, scores = evaluate_baseline(model, train, validation, settings)
    store, log = CheckpointStore(folder / "checkpoints"), TensorBoardLog(folder / "tensorboard")
    controller, search, trajectory = finetune_adaptively(
        build_controller(model, evaluation, settings, train),
        *(model, train, validation, evaluation, scores, store, log, settings),
    )
    second_controller, second, _ = finetune_second_stage(
        controller, *(model, train, validation, evaluation, scores, search, trajectory, store, log, settings)
    )
    delivered, file, *_, result = export_model(
        *(controller, second_controller, model, validation, evaluation, search, second, trajectory, store, settings)
    )
    if isinstance(file, NotExported) or isinstance(delivered, NotExported):
        raise SystemExit(f"seed {seed}: {result.reason}")
    with torch.inference_mode():
        answers = [answer(test["inputs"]).argmax(1) for answer in (delivered.eval(), OnnxModel(file))]
    ratios = []
    for _ in range(repeats):
        before, after = measure_latency([to_onnx(model, test["inputs"]), file], test["inputs"])
        ratios.append({size: after[size].fastest / before[size].fastest for size in before})
    baseline, compressed = result.baseline, result.compressed
    assert compressed is not None  # there is a file
    return {
        "seed": seed,
        "delivered": result.delivered,
        "tolerated": search.budget.lowest_tolerated,
        "validation": compressed.validation,
        "parameters": baseline.parameters / compressed.parameters,
        "bytes": baseline.onnx_bytes / compressed.onnx_bytes,
        "latency": ratios,
        "labels": float((answers[0] == answers[1]).float().mean()),
        "epochs": sum(stage.epochs.used for stage in (search, second) if isinstance(stage, SearchResult)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    logging.getLogger("kedro_aat").setLevel(logging.ERROR)
    columns = ("seed", "delivered", "tolerated", "validation", "parameters", "bytes")
    table = Table(*columns, "latency, batch 1", "batch 64", "equal labels", "epochs", box=None)
    parameters = project_parameters()
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            row = job(parameters, seed, arguments.repeats, Path(folder))
        table.add_row(
            str(seed),
            row["delivered"],
            f"{row['tolerated']:.4f}",
            f"{row['validation']:.4f}",
            f"1/{row['parameters']:.1f}",
            f"1/{row['bytes']:.1f}",
            *(" ".join(f"{ratio[size]:.3f}x" for ratio in row["latency"]) for size in (1, 64)),
            f"{row['labels']:.2%}",
            str(row["epochs"]),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

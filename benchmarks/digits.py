"""The rate that the digits job reaches within its budget, by real training, one row a seed.

Each seed makes a baseline and a search of its own, with the settings in conf/base/parameters.yml.

    python benchmarks/digits.py [--seeds 0 1 2] [--epochs 60] [--max-drop 0.01]
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from kedro.config import OmegaConfigLoader
from rich.console import Console
from rich.table import Table

from kedro_aat.config import AatSettings
from kedro_aat.datasets.handles import TensorBoardLog
from kedro_aat.pipelines.aat.nodes import build_controller, evaluate_baseline, finetune_adaptively
from kedro_aat.pipelines.digits.nodes import BaselineSettings, SplitSettings, split_digits, train_baseline
from kedro_aat.training.checkpoints import CheckpointStore

ROOT = Path(__file__).parents[1]


def run(parameters: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Baseline and search of one seed."""
    digits, settings = parameters["digits"], parameters["aat"]
    table = pd.read_csv(ROOT / "data" / "01_raw" / "digits.csv")
    train, validation, _ = split_digits(table, SplitSettings.model_validate(digits["split"]))
    started = time.perf_counter()
    model = train_baseline(
        train,
        validation,
        CheckpointStore(folder / "baseline"),
        BaselineSettings.model_validate(digits["baseline"] | {"seed": seed}),
    )
    trained = time.perf_counter()
    aat = AatSettings.model_validate(settings | {"seed": seed})
    evaluation, scores = evaluate_baseline(model, train, validation, aat)
    store, log = CheckpointStore(folder / "checkpoints"), TensorBoardLog(folder / "tensorboard")
    controller = build_controller(model, evaluation, aat)
    _, result, _ = finetune_adaptively(controller, train, validation, evaluation, scores, store, log, aat)
    seconds = {"baseline_s": trained - started, "search_s": time.perf_counter() - trained}
    return result | {"baseline": evaluation["validation"], "lowest": evaluation["budget"]["lowest_tolerated"]} | seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--max-drop", type=float, default=0.01)
    arguments = parser.parse_args()
    logging.getLogger("kedro_aat").setLevel(logging.WARNING)
    parameters = OmegaConfigLoader(str(ROOT / "conf"), base_env="base", default_run_env="base")["parameters"]
    parameters["aat"]["search"]["maximal_total_epochs"] = arguments.epochs
    parameters["aat"]["budget"] = {"max_drop": arguments.max_drop}
    columns = ("seed", "outcome", "baseline", "tolerated", "compressed", "rate", "1/(1-rate)", "epochs", "seconds")
    table = Table(*columns, box=None)
    logs: list[float] = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            result = run(parameters, seed, Path(folder))
        rate = result["rate"]["achieved"]
        logs.append(-math.log(1 - rate))
        table.add_row(
            str(seed),
            result["outcome"],
            f"{result['baseline']:.4f}",
            f"{result['lowest']:.4f}",
            f"{result['validation']:.4f}",
            f"{rate:.4f}",
            f"{1 / (1 - rate):.1f}",
            str(result["epochs"]["used"]),
            f"{result['baseline_s']:.0f} + {result['search_s']:.0f}",
        )
    Console(width=120).print(table)
    print(f"geometric mean of 1/(1-rate): {math.exp(sum(logs) / len(logs)):.1f}")


if __name__ == "__main__":
    main()

"""Compares search policies on the digits, by real training: the rate reached within the budget, and how fast.

Each seed trains a baseline, and each policy searches from it, with its own defaults and otherwise the settings in
conf/base/parameters.yml; all start at a rate of 0. `nncf` is the search of NNCF, which stops before it trains at its
maximal rate of 0.95; the others may go to the maximal rate of the settings.

    python benchmarks/digits.py [--seeds 0 1 2] [--policies frontier nncf] [--epochs 60] [--max-drop 0.01]
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from kedro.config import OmegaConfigLoader
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs as a script

from benchmarks.search import STEPPING_RATES, Original
from kedro_aat.config import AatSettings
from kedro_aat.datasets.handles import TensorBoardLog
from kedro_aat.delivery.results import SearchResult
from kedro_aat.pipelines.aat.baseline import evaluate_baseline
from kedro_aat.pipelines.aat.search import build_controller, finetune_adaptively
from kedro_aat.pipelines.digits.nodes import BaselineSettings, SplitSettings, split_digits, train_baseline
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.stepping import Interpolate, UniformDecrease
from kedro_aat.training.checkpoints import CheckpointStore

Split = dict[str, Tensor]  # inputs and targets

ROOT = Path(__file__).parents[1]
POLICIES = {
    "frontier": Frontier,
    "nncf": Original,
    "uniform_decrease": UniformDecrease,
    "interpolate": Interpolate,
}


def settings_of(parameters: dict[str, Any], name: str, seed: int, epochs: int) -> AatSettings:
    """Returns the pipeline's settings with another policy; `nncf` has NNCF's maximal rate.

    Args:
        parameters: Parameters of the project.
        name: Name of the policy.
        seed: Seed of the training.
        epochs: Limit on the number of epochs trained.
    """
    policy = POLICIES[name](maximal_total_epochs=epochs)
    settings = AatSettings.model_validate(parameters["aat"] | {"seed": seed, "search": {"kind": policy.kind}})
    changes: dict[str, Any] = {"search": policy}
    if name == "nncf":
        changes["maximal_rate"] = STEPPING_RATES["maximal_rate"]
    return settings.model_copy(update=changes)


def project_parameters() -> dict[str, Any]:
    """Reads conf/base/parameters.yml."""
    parameters: dict[str, Any] = OmegaConfigLoader(str(ROOT / "conf"), base_env="base", default_run_env="base")[
        "parameters"
    ]
    return parameters


def baseline_of(parameters: dict[str, Any], seed: int, folder: Path) -> tuple[nn.Module, Split, Split, Split]:
    """Trains a baseline, and returns it with the training, validation and test splits.

    Args:
        parameters: Parameters of the project.
        seed: Seed of the training.
        folder: Folder for checkpoints.
    """
    digits = parameters["digits"]
    table = pd.read_csv(ROOT / "data" / "01_raw" / "digits.csv")
    train, validation, test = split_digits(table, SplitSettings.model_validate(digits["split"]))
    settings = BaselineSettings.model_validate(digits["baseline"] | {"seed": seed})
    return train_baseline(train, validation, CheckpointStore(folder / "baseline"), settings), train, validation, test


class Row(NamedTuple):
    """One search: its policy and seed, the metric of the baseline, the result, the trajectory and the wall time."""

    policy: str
    seed: int
    baseline: float
    result: SearchResult
    trajectory: pd.DataFrame
    seconds: float


def run(parameters: dict[str, Any], names: list[str], seed: int, epochs: int, folder: Path) -> list[Row]:
    """Trains a baseline, and runs a search by each policy.

    Args:
        parameters: Parameters of the project.
        names: Names of the policies.
        seed: Seed of the training.
        epochs: Limit on the number of epochs that each search trains.
        folder: Folder for checkpoints and logs.
    """
    model, train, validation, _ = baseline_of(parameters, seed, folder)
    found = []
    for name in names:
        settings = settings_of(parameters, name, seed, epochs)
        evaluation, scores = evaluate_baseline(model, train, validation, settings)
        controller = build_controller(model, evaluation, settings, train)
        store, log = CheckpointStore(folder / name), TensorBoardLog(folder / f"tensorboard-{name}")
        started = time.perf_counter()
        _, result, trajectory = finetune_adaptively(
            controller, model, train, validation, evaluation, scores, store, log, settings
        )
        found.append(Row(name, seed, evaluation.validation, result, trajectory, time.perf_counter() - started))
    return found


def epochs_to(trajectory: pd.DataFrame, rate: float) -> float:
    """Returns the number of epochs until a model of at least this rate was within budget; infinite if none was."""
    reached = trajectory[trajectory["best_rate"] >= rate - 1e-9]
    return float(reached["epoch"].min()) if len(reached) else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--policies", nargs="+", default=["frontier", "nncf"], choices=list(POLICIES))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--max-drop", type=float, default=0.01)
    arguments = parser.parse_args()
    logging.getLogger("kedro_aat").setLevel(logging.ERROR)
    parameters = project_parameters()
    parameters["aat"]["budget"] = {"max_drop": arguments.max_drop}
    columns = ("policy", "seed", "outcome", "baseline", "tolerated", "compressed", "rate", "1/(1-rate)", "epochs", "s")
    table = Table(*columns, box=None)
    rows: list[Row] = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows += run(parameters, arguments.policies, seed, arguments.epochs, Path(folder))
    for row in sorted(rows, key=lambda row: arguments.policies.index(row.policy)):
        rate = row.result.rate.achieved
        table.add_row(
            row.policy,
            str(row.seed),
            row.result.outcome,
            f"{row.baseline:.4f}",
            f"{row.result.budget.lowest_tolerated:.4f}",
            f"{row.result.validation:.4f}",
            f"{rate:.4f}",
            f"{1 / (1 - rate):.1f}",
            str(row.result.epochs.used),
            f"{row.seconds:.0f}",
        )
    console = Console(width=120)
    console.print(table)
    for name in arguments.policies:
        ours = [row for row in rows if row.policy == name]
        mean = math.exp(statistics.mean(-math.log(1 - row.result.rate.achieved) for row in ours))
        console.print(f"{name}: geometric mean of 1/(1-rate) {mean:.1f}")
        originals = [row for row in rows if row.policy == "nncf"]
        if originals and name != "nncf":
            ratios = [
                epochs_to(row.trajectory, other.result.rate.achieved)
                / max(1, epochs_to(other.trajectory, other.result.rate.achieved))
                for row, other in zip(ours, originals, strict=True)
            ]
            shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
            console.print(
                f"  epochs to the final rate of nncf, relative to nncf: {statistics.median(ratios):.2f} ({shown})"
            )


if __name__ == "__main__":
    main()

"""Size ratios of zoo models in an NNCF-style script, with NNCF's `uniform_decrease` and with `frontier`.

The script is as users of NNCF 2.x write it: a training function with a fixed learning rate, a validation function that
returns a number, and a configuration in NNCF's format. Both searches get the same epochs.

    python -m benchmarks.script [--tasks digits_cnn regression_r2 cancer_mlp] [--seeds 0] [--epochs 40] [--distill]
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import tempfile
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.tasks.baseline import problem_of, settings_of
from benchmarks.tasks.registry import all_tasks
from benchmarks.tasks.results import Row, run
from benchmarks.tasks.rivals.compressed import size_ratio
from benchmarks.tasks.task import Algorithm, Candidate, Found, Problem
from kedro_aat import (
    AdaptiveCompressionTrainingLoop,
    NNCFConfig,
    Outcome,
    create_compressed_model,
    register_default_init_args,
)
from kedro_aat.training.data import synthetic_input

TASKS = ["digits_cnn", "regression_r2", "cancer_mlp"]
ALGORITHMS: tuple[Algorithm, ...] = ("filters", "sparsity")
SEARCHES = ("uniform_decrease", "frontier")
# Both schedules hold the rate 0.5, at which `uniform_decrease` then begins.
COMPRESSION: dict[str, dict[str, Any]] = {
    "filters": {
        "algorithm": "filter_pruning",
        "params": {
            "schedule": "baseline",
            "pruning_target": 0.5,
            "prune_first_conv": True,
            "prune_downsample_convs": True,
        },
    },
    "sparsity": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5, "params": {"sparsity_target": 0.5}},
}


def config_of(problem: Problem, search: str, num_epochs: int, *, distill: bool) -> NNCFConfig:
    """The configuration in NNCF's format."""
    compression = [COMPRESSION[problem.algorithm]]
    if distill:
        is_softmax = isinstance(settings_of(problem.task).loss.build(), nn.CrossEntropyLoss)
        compression.append({"algorithm": "knowledge_distillation", "type": "softmax" if is_softmax else "mse"})
    params = {
        "maximal_absolute_accuracy_degradation": problem.budget.drop,
        "maximal_total_epochs": num_epochs,
        "higher_is_better": problem.budget.higher_is_better,
        "search": {"kind": search},
    }
    section = {"mode": "adaptive_compression_level", "params": params}
    return NNCFConfig.from_dict({"accuracy_aware_training": section, "compression": compression}, warn=False)


def script(problem: Problem, search: str, num_epochs: int, *, distill: bool) -> Found:
    """Runs the script."""
    started = time.perf_counter()
    settings, train = settings_of(problem.task), problem.splits.train
    criterion, model = settings.loss.build(), copy.deepcopy(problem.baseline)
    data = TensorDataset(train["inputs"], train["targets"])
    loader = DataLoader(data, settings.batch_size, shuffle=True, drop_last=len(data) > settings.batch_size)
    config = register_default_init_args(
        config_of(problem, search, num_epochs, distill=distill), loader, criterion=criterion
    )
    controller, model = create_compressed_model(model, config, example_input=synthetic_input(train))

    def train_epoch(controller: Any, model: nn.Module, epoch: int, optimizer: Any, lr_scheduler: Any) -> float:
        model.train()
        total = 0.0
        for inputs, targets in loader:
            controller.scheduler.step()
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets) + controller.loss()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / len(loader)

    loop = AdaptiveCompressionTrainingLoop(config, controller, problem.budget.baseline, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        loop.run(
            model,
            train_epoch,
            lambda model: problem.metric(model, problem.splits.validation),
            lambda: (settings.optimizer.build(model.parameters()), None),
            log_dir=folder,
        )
    returned = None
    if loop.outcome is Outcome.WITHIN_BUDGET:
        small = controller.strip()
        returned = Candidate(small, size_ratio(problem, small), loop.statistics.compressed_accuracy)
    num_trained = sum(row.trained for row in loop.history)
    return Found(returned, (), num_trained, time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=list(all_tasks()))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--distill", action="store_true", help="with knowledge_distillation in the configuration")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("kedro_aat").setLevel(logging.ERROR)
    title = f"size ratio (drop on test, in tolerated drops) after {arguments.epochs} epochs"
    table = Table("task", "seed", "algorithm", *SEARCHES, "gain", "seconds", title=title, box=None)
    gains = []
    for name in arguments.tasks:
        for seed in arguments.seeds:
            for algorithm in arguments.algorithms:
                problem = problem_of(all_tasks()[name], seed, algorithm)
                rows: list[Row] = []
                for search in SEARCHES:

                    def method(problem: Problem, num_epochs: int, search: str = search) -> Found:
                        return script(problem, search, num_epochs, distill=arguments.distill)

                    rows.append(run(problem, search, method, arguments.epochs))
                    print(name, seed, algorithm, search, f"{rows[-1].size_ratio:.2f}", rows[-1].error, flush=True)
                gains.append(rows[1].size_ratio / rows[0].size_ratio)
                table.add_row(
                    name,
                    str(seed),
                    algorithm,
                    *(f"{row.size_ratio:.2f} ({row.test_drop:.2f})" for row in rows),
                    f"{gains[-1]:.2f}",
                    " / ".join(f"{row.seconds:.0f}" for row in rows),
                )
    console = Console(width=130)
    console.print(table)
    console.print(f"geometric mean of the gains {statistics.geometric_mean(gains):.2f}, smallest {min(gains):.2f}")


if __name__ == "__main__":
    main()

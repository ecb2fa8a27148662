"""The result of one method on one problem, and the Parquet file that keeps all of them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock

from benchmarks.tasks.task import Candidate, Found, Method, Problem
from kedro_aat.errors import DivergedError
from kedro_aat.training.random_state import seed_everything

KEY = ["task", "seed", "algorithm", "method", "epochs"]
ROUNDING = 1e-5  # of a drop in units of the tolerated one, so that one exactly on the budget counts as kept


@dataclass(frozen=True)
class Row:
    """One run. Without a model to return, or after an error, its size ratio is 1 and its drops are 0.

    Attributes:
        task: Name of the task.
        seed: Seed of baseline, data and method.
        algorithm: `filters` or `sparsity`.
        method: Name of the method.
        epochs: Epochs that it was allowed.
        is_for_choosing: Whether constants may be chosen on the task.
        is_unlimited: Whether the true drop is known.
        epochs_trained: Epochs that it trained.
        seconds: Time that it took.
        baseline_validation: Metric of the baseline on the validation split.
        baseline_test: Metric of the baseline on the test split.
        tolerated_drop: The budget, in metric units.
        size_ratio: Of the returned model.
        validation: Metric of the returned model on the validation split.
        test: Metric of the returned model on the test split; NaN if it is not finite.
        validation_drop: Drop from the baseline, in units of the tolerated one.
        test_drop: The same on the test split; infinite if the metric is not finite.
        is_broken: Whether the returned model breaks its budget on the test split.
        best_size_ratio: Largest ratio of all models that the method tried and that keep the budget on the test split.
        error: The error that ended the method; empty if there was none.
        tactic: How the returned model was last trained, in words; empty if the method has no choice.
    """

    task: str
    seed: int
    algorithm: str
    method: str
    epochs: int
    is_for_choosing: bool
    is_unlimited: bool
    epochs_trained: float
    seconds: float
    baseline_validation: float
    baseline_test: float
    tolerated_drop: float
    size_ratio: float
    validation: float
    test: float
    validation_drop: float
    test_drop: float
    is_broken: bool
    best_size_ratio: float
    error: str
    tactic: str = ""


def run(problem: Problem, name: str, method: Method, num_epochs: int) -> Row:
    """Runs a method on one core, and judges what it found on the test split.

    Args:
        problem: The problem.
        name: Name of the method.
        method: The method.
        num_epochs: Epochs that it may train.
    """
    torch.set_num_threads(1)
    seed_everything(problem.seed)
    started, error = time.perf_counter(), ""
    try:
        found = method(problem, num_epochs)
    except Exception as raised:  # what a rival's library cannot compress counts as not compressed
        found = Found(None, (), 0.0, time.perf_counter() - started)
        error = f"{type(raised).__name__}: {raised}"
    task, budget = problem.task, problem.budget
    baseline_test = problem.metric(problem.baseline, problem.splits.test)

    def judge(candidate: Candidate) -> tuple[float, float]:
        """The metric on the test split, and its drop in units of the tolerated one."""
        try:
            metric = problem.metric(candidate.model, problem.splits.test)
        except DivergedError:
            return math.nan, math.inf
        drop = budget.degradation(metric) - budget.degradation(baseline_test)
        return metric, drop / budget.drop

    returned = found.returned or Candidate(problem.baseline, 1.0, budget.baseline)
    test, test_drop = judge(returned)
    tried = [(returned.size_ratio, test_drop), *((other.size_ratio, judge(other)[1]) for other in found.others)]
    return Row(
        task=task.name,
        seed=problem.seed,
        algorithm=problem.algorithm,
        method=name,
        epochs=num_epochs,
        is_for_choosing=task.is_for_choosing,
        is_unlimited=task.is_unlimited,
        epochs_trained=float(found.epochs),
        seconds=found.seconds,
        baseline_validation=budget.baseline,
        baseline_test=baseline_test,
        tolerated_drop=budget.drop,
        size_ratio=returned.size_ratio,
        validation=returned.validation,
        test=test,
        validation_drop=budget.degradation(returned.validation) / budget.drop,
        test_drop=test_drop,
        is_broken=test_drop > 1 + ROUNDING,
        best_size_ratio=max([1.0, *(ratio for ratio, drop in tried if drop <= 1 + ROUNDING)]),
        error=error,
        tactic=found.tactic,
    )


def read_rows(path: Path) -> pd.DataFrame:
    """The rows that the file holds, none if there is no file."""
    if path.exists():
        return pd.read_parquet(path)
    return pd.DataFrame(columns=[field.name for field in dataclasses.fields(Row)])


def add_rows(path: Path, rows: Iterable[Row]) -> None:
    """Adds rows to the file, and replaces those of the same runs. Several processes may add to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        new = pd.DataFrame([dataclasses.asdict(row) for row in rows])
        table = pd.concat([pd.read_parquet(path), new], ignore_index=True) if path.exists() else new
        table = table.drop_duplicates(KEY, keep="last").sort_values(KEY, ignore_index=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        table.to_parquet(unfinished, index=False)
        unfinished.replace(path)

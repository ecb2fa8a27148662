"""Trains the baselines of the zoo, keeps them on disk, and measures models of a task."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.tasks.task import Algorithm, Problem, Split, Splits, Task
from kedro_aat.budget import Budget, BudgetSettings
from kedro_aat.pipelines.digits.baseline import Uncompressed
from kedro_aat.tensors import hash_tensors, load_tensors, save_tensors
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.random_state import seed_everything
from kedro_aat.training.runner import evaluate
from kedro_aat.training.settings import TrainingSettings

CACHE = Path.home() / ".cache" / "kedro_aat" / "zoo"


def settings_of(task: Task) -> TrainingSettings:
    """The task's `training` on one core, without standard errors, which take longer than the metric itself."""
    return TrainingSettings.model_validate(
        {**task.training, "device": "cpu", "num_threads": 1, "num_bootstrap_resamples": 0}
    )


def train_baseline(task: Task, seed: int, splits: Splits, folder: Path = CACHE) -> nn.Module:
    """Trains the task's model with its optimizer, whose learning rate falls from `baseline_lr` to 0 along a cosine.

    Args:
        task: The task.
        seed: Seed of the initial weights and of the shuffling.
        splits: Its data for that seed.
        folder: Where trained models are kept; one that was trained in the same way on the same data is read from there.

    Returns:
        The model in evaluation mode.
    """
    settings = settings_of(task)
    arguments = settings.optimizer.init_args | {"lr": task.baseline_lr}
    settings = settings.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"init_args": arguments})})
    seed_everything(seed)
    model = task.model()
    key = f"{task.baseline_epochs} {settings.model_dump_json(exclude={'metric', 'baseline_check'})}"
    path = folder / f"{task.name}-{seed}-{_fingerprint(model, splits.train, key)}.safetensors"
    if path.exists():
        model.load_state_dict(load_tensors(path))
        return model.eval()
    seed_everything(seed)  # so that dropout is the same whatever was computed before
    functions = DefaultTraining(model, settings, splits.train, splits.validation, seed=seed).callables()
    assert functions.configure_optimizers is not None
    optimizer, _ = functions.configure_optimizers()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.baseline_epochs)
    for epoch in range(task.baseline_epochs):
        functions.train_epoch(Uncompressed(model), model, epoch=epoch, optimizer=optimizer, lr_scheduler=None)
        scheduler.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")  # another process may train the same baseline
    save_tensors(model.state_dict(), unfinished)
    unfinished.replace(path)
    return model.eval()


def metric_of(task: Task) -> Callable[[nn.Module, Split], float]:
    """The function that returns the metric of a model on a split."""
    settings = settings_of(task)

    def metric(model: nn.Module, split: Split) -> float:
        return evaluate(model, DefaultTraining(model, settings, None, split).callables().validate).metric

    return metric


def budget_of(task: Task, baseline: float) -> Budget:
    """The task's budget for the baseline's metric."""
    direction = settings_of(task).direction()
    assert direction is not None, f"{task.name}: `higher_is_better` is missing in `training`"
    return BudgetSettings.model_validate(task.budget).budget(baseline, higher_is_better=direction)


def problem_of(task: Task, seed: int, algorithm: Algorithm, folder: Path = CACHE) -> Problem:
    """A task with the baseline of that seed, which is trained if it is not in `folder`."""
    splits, metric = task.splits(seed), metric_of(task)
    baseline = train_baseline(task, seed, splits, folder)
    budget = budget_of(task, metric(baseline, splits.validation))
    return Problem(task, seed, algorithm, baseline, splits, budget, metric)


def _fingerprint(model: nn.Module, train: Split, key: str) -> str:
    """Hash of what a trained model depends on; the untrained model's outputs stand for its code."""
    with torch.no_grad():
        outputs = model.eval()(train["inputs"][:8])
    return hash_tensors([*model.state_dict().items(), *train.items(), ("outputs", outputs), (key, torch.zeros(0))])[:12]

"""Training of a compressed model along a cosine, and the bisection that several rivals share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.tasks.baseline import settings_of
from benchmarks.tasks.rivals.compressed import Compressed, size_ratio
from benchmarks.tasks.task import Candidate, Found, Problem
from kedro_aat.errors import DivergedError
from kedro_aat.pipelines.digits.baseline import Uncompressed
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.runner import listed

LR_FACTOR = 3.0  # on the owner's learning rate, which is right for fine-tuning, not for recovering from a cut


class Training:
    """Trains a model epoch by epoch; the learning rate falls to 0 along a cosine.

    Args:
        problem: The problem.
        compressed: The model, trained in place.
        num_epochs: Length of the cosine.
        first_epoch: Epochs that the method trained before, so that it sees another order of the examples.
        lr_factor: Factor on the owner's learning rate.
        teacher: Model that teaches by distillation; None for none.
    """

    def __init__(
        self,
        problem: Problem,
        compressed: Compressed,
        num_epochs: int,
        *,
        first_epoch: int,
        lr_factor: float = LR_FACTOR,
        teacher: nn.Module | None = None,
    ) -> None:
        self._problem, self._model, self._epoch = problem, compressed.model, first_epoch
        self._controller = compressed.controller or Uncompressed(compressed.model)
        splits = problem.splits
        training = DefaultTraining(
            self._model, settings_of(problem.task), splits.train, splits.validation, seed=problem.seed, teacher=teacher
        )
        self._functions = training.callables()
        assert self._functions.configure_optimizers is not None
        self._optimizer, _ = self._functions.configure_optimizers()
        num_steps = num_epochs * training.steps_per_epoch
        for optimizer in listed(self._optimizer):
            for group in optimizer.param_groups:
                group["lr"] *= lr_factor
            _follow_cosine(optimizer, num_steps)

    def epoch(self) -> float | None:
        """Trains an epoch, and returns the metric on the validation split; None if the training diverged."""
        self._functions.train_epoch(
            self._controller, self._model, epoch=self._epoch, optimizer=self._optimizer, lr_scheduler=None
        )
        self._epoch += 1
        if not all(bool(parameter.isfinite().all()) for parameter in self._model.parameters()):
            return None
        try:
            return self._problem.metric(self._model, self._problem.splits.validation)
        except DivergedError:
            return None


def _follow_cosine(optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    cosine = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * min(1.0, step / num_steps))) / 2)
    optimizer.register_step_post_hook(lambda *_: cosine.step())


def found_of(candidates: list[Candidate], num_epochs: int, started: float) -> Found:
    """What a method returns that delivers the smallest of its models within budget.

    Args:
        candidates: The models within budget.
        num_epochs: Epochs that were trained.
        started: When the method began, by `time.perf_counter`.
    """
    smallest_first = sorted(candidates, key=lambda candidate: -candidate.size_ratio)
    returned = smallest_first[0] if smallest_first else None
    return Found(returned, tuple(smallest_first[1:]), num_epochs, time.perf_counter() - started)


# (size ratio, number of epochs, epochs trained before) -> a trained model, and its metric or None if it diverged
Trial = Callable[[float, int, int], tuple[Compressed, float | None]]


def bisect(problem: Problem, num_epochs: int, num_trials: int, trial: Trial, first_ratio: float = 4.0) -> Found:
    """Bisects the logarithm of the size ratio, which doubles until a trial fails; equal epochs for each trial.

    Args:
        problem: The problem.
        num_epochs: Epochs of all trials.
        num_trials: Number of trials.
        trial: Trains a model of about a size ratio, from the baseline.
        first_ratio: Size ratio of the first trial.
    """
    started = time.perf_counter()
    low, high, u = 0.0, math.inf, math.log(first_ratio)
    candidates: list[Candidate] = []
    for number in range(num_trials):
        first, last = (num_epochs * count // num_trials for count in (number, number + 1))
        if first == last:  # fewer epochs than trials
            continue
        compressed, metric = trial(math.exp(u), last - first, first)
        if metric is not None and problem.budget.margin(metric) >= 0:
            model = compressed.copy()
            candidates.append(Candidate(model, size_ratio(problem, model), metric))
            low = u
        else:
            high = u
        u = (low + high) / 2 if high < math.inf else 2 * u
    return found_of(candidates, num_epochs, started)


def train(
    problem: Problem,
    compressed: Compressed,
    num_epochs: int,
    first_epoch: int,
    lr_factor: float = LR_FACTOR,
    teacher: nn.Module | None = None,
) -> float | None:
    """Trains a model, and returns the metric after the last epoch; None if the training diverged."""
    training = Training(problem, compressed, num_epochs, first_epoch=first_epoch, lr_factor=lr_factor, teacher=teacher)
    metric = None
    for _ in range(num_epochs):
        if (metric := training.epoch()) is None:
            break
    return metric

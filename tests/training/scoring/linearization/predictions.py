"""Targets and outputs of two models that resemble each other, for each kind of metric."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from kedro_aat.training.callables import Evaluation
from kedro_aat.training.scoring.watchers import watchers_for

NUM_EXAMPLES = 400

Predictions = tuple[Tensor, Tensor, Tensor]


def _noisy(outputs: Tensor, generator: torch.Generator, noise: float) -> tuple[Tensor, Tensor]:
    first = outputs + torch.randn(outputs.shape, generator=generator)
    return first, first + noise * torch.randn(outputs.shape, generator=generator)


def classes(num_classes: int = 4, shape: tuple[int, ...] = (), seed: int = 0) -> Predictions:
    """Targets (N, ...), and outputs of two models (N, C, ...); the last class is rare."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([1.0] * (num_classes - 1) + [0.3])
    count = NUM_EXAMPLES * math.prod(shape)
    targets = torch.multinomial(shares, count, replacement=True, generator=generator).reshape(NUM_EXAMPLES, *shape)
    one_hot = nn.functional.one_hot(targets, num_classes).movedim(-1, 1).float()
    return targets, *_noisy(2 * one_hot, generator, 0.5)


def labels(shape: tuple[int, ...] = (), seed: int = 0) -> Predictions:
    """Targets of 0 and 1, (N, ...), and logits of two models, (N, ...)."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(NUM_EXAMPLES, *shape, generator=generator) < 0.3).long()
    return targets, *_noisy(2.0 * targets - 1, generator, 0.5)


def numbers(seed: int = 0) -> Predictions:
    """Targets and outputs of two models, (N,) each."""
    generator = torch.Generator().manual_seed(seed)
    targets = 2 * torch.randn(NUM_EXAMPLES, generator=generator) + 5
    return targets, *_noisy(targets, generator, 0.4)


def value(metric: Metric, outputs: Tensor, targets: Tensor) -> float:
    """The metric of all examples at once."""
    metric.reset()
    metric.update(outputs, targets)
    return float(metric.compute())


def evaluation(metric: Metric, outputs: Tensor, targets: Tensor, batch_size: int = 64) -> Evaluation:
    """What a validation returns, by the first way that reproduces the metric."""
    for way in watchers_for(metric, 100, len(targets)):
        watcher = way()
        metric.reset()
        for batch in zip(outputs.split(batch_size), targets.split(batch_size), strict=True):
            metric.update(*batch)
            watcher.update(*batch)
        if (found := watcher.evaluation(metric)) is not None:
            return found
    raise AssertionError("the last way always works")

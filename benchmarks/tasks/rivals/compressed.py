"""Cuts a model or sets its weights to zero, and measures how small it became."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from benchmarks.tasks.baseline import settings_of
from benchmarks.tasks.task import Problem
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.scopes import prunable_weights
from kedro_aat.compression.settings import FilterPruning, MagnitudeSparsity
from kedro_aat.training.data import synthetic_input
from kedro_aat.training.default import DefaultTraining

NUM_GRADIENT_BATCHES = 8
STEPS_PER_TAYLOR_UPDATE = 4  # the controller updates its scores in every fourth step


@dataclass(frozen=True)
class Compressed:
    """A model whose filters are cut, or whose zeros a controller keeps at zero.

    Attributes:
        model: The model to train.
        controller: Keeps the zeros; None for a model that is cut.
    """

    model: nn.Module
    controller: ModelController | None = None

    def copy(self) -> nn.Module:
        """A copy of the model without masks."""
        return self.controller.strip() if self.controller else copy.deepcopy(self.model)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def size_ratio(problem: Problem, model: nn.Module) -> float:
    """1 over the share of what is left in a model without masks, as `Candidate` defines it."""
    if problem.algorithm == "filters":
        return num_parameters(problem.baseline) / num_parameters(model)
    weights = [weight.parameter for weight in prunable_weights(model)]
    num_left = sum(int(weight.count_nonzero()) for weight in weights)
    return sum(weight.numel() for weight in weights) / max(1, num_left)


def compress(
    problem: Problem, model: nn.Module, ratio: float, settings: FilterPruning | MagnitudeSparsity
) -> Compressed:
    """Compresses a copy of a model, which may be compressed already, at once.

    Args:
        problem: The problem.
        model: A model without masks.
        ratio: Size ratio to the baseline, as near as the controller comes to it.
        settings: How filters or weights are ranked.

    Raises:
        ModelError: If the model has no channels that can be cut.
    """
    controller = build_controller(copy.deepcopy(model), settings, example_input=synthetic_input(problem.splits.train))
    if isinstance(settings, MagnitudeSparsity):
        controller.compression_rate = 1 - 1 / ratio
        return Compressed(controller.model, controller)
    if settings.importance == "taylor":
        show_gradients(problem, controller)
    rate = 1 - size_ratio(problem, model) / ratio  # of the parameters that this model has
    controller.compression_rate = min(max(rate, 0.0), controller.maximal_compression_rate)
    return Compressed(controller.strip(do_copy=False))


def show_gradients(problem: Problem, controller: ModelController) -> None:
    """Lets a controller with Taylor scores see the gradients of some batches; nothing is trained."""
    for loss in losses(problem, controller.model):
        controller.model.zero_grad()
        loss.backward()
        for _ in range(STEPS_PER_TAYLOR_UPDATE):
            controller.scheduler.step()
    controller.model.zero_grad()


def losses(problem: Problem, model: nn.Module) -> Iterator[Tensor]:
    """The loss of a model in evaluation mode on the first training batches."""
    settings = settings_of(problem.task)
    loss = settings.loss.build()
    training = DefaultTraining(model, settings, problem.splits.train, problem.splits.validation, seed=problem.seed)
    model.eval()
    for inputs, targets in itertools.islice(training.train_batches(0), NUM_GRADIENT_BATCHES):
        yield loss(model(inputs), targets)

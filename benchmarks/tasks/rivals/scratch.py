"""A smaller network trained from scratch, with and without distillation by the baseline."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn

from benchmarks.tasks.baseline import settings_of
from benchmarks.tasks.rivals.compressed import Compressed, compress
from benchmarks.tasks.rivals.training import bisect, train
from benchmarks.tasks.task import Found, Problem
from kedro_aat.compression.settings import FilterPruning

NUM_TRIALS = 3


def scratch(problem: Problem, num_epochs: int, *, is_distilled: bool = False) -> Found:
    """Bisects the size of networks whose layers are all narrower by about the same factor."""
    # The owner knows a learning rate that trains the network from its start.
    lr_factor = problem.task.baseline_lr / settings_of(problem.task).optimizer.init_args["lr"]
    teacher = copy.deepcopy(problem.baseline) if is_distilled else None

    def trial(ratio: float, epochs: int, first_epoch: int) -> tuple[Compressed, float | None]:
        compressed = compress(problem, problem.baseline, ratio, FilterPruning(importance="l2"))
        forget(compressed.model)
        return compressed, train(problem, compressed, epochs, first_epoch, lr_factor=lr_factor, teacher=teacher)

    return bisect(problem, num_epochs, NUM_TRIALS, trial)


scratch_distilled = partial(scratch, is_distilled=True)


@torch.no_grad()
def forget(model: nn.Module) -> None:
    """Initializes a model anew; parameters without an initialization keep their values in random order."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    for module in model.modules():  # a module's own initialization comes after that of its parts, as when it is built
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()

"""What a task of the zoo is, and what a method that compresses its model is given and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kedro_aat.budget import Budget

Split = dict[str, Tensor]  # inputs (N, ...) and targets (N, ...)
Algorithm = Literal["filters", "sparsity"]


@dataclass(frozen=True)
class Splits:
    """The data of a task for one seed.

    Attributes:
        train: Trains the baseline and the compressed models.
        validation: Judges every epoch of a search.
        test: Read after the search, to see whether the budget was truly kept.
    """

    train: Split
    validation: Split
    test: Split


def generated(seed: int, sizes: tuple[int, int, int], make: Callable[[int, torch.Generator], Split]) -> Splits:
    """Splits of made-up examples.

    Args:
        seed: Seed. Each split has a generator of its own, so that the size of one does not change the others.
        sizes: Examples of each split.
        make: Makes so many examples.
    """
    generators = [torch.Generator().manual_seed(3 * seed + index) for index in range(3)]
    return Splits(*(make(size, generator) for size, generator in zip(sizes, generators, strict=True)))


@dataclass(frozen=True)
class Task:
    """A small model with its data, and how careless its owner is.

    Attributes:
        name: Short name, such as `digits_cnn`.
        source: The data, and where they come from, in one sentence.
        is_for_choosing: Whether constants of the search may be chosen on it; the other tasks are reported apart.
        is_unlimited: Whether the test split is so large that the true drop is known to a tenth of the budget.
        model: Builds the untrained model; random numbers come from torch's global generator.
        splits: Seed -> the data. Only generated data depend on more of the seed than the shuffling.
        training: Settings of the pipeline's `training`: batch size, optimizer with its learning rate as the owner
            set it (from a tenth of a good one to three times), loss, metric. `distillation` is left at its default.
        budget: `{"max_drop": ...}` or `{"max_relative_drop": ...}`.
        baseline_epochs: Epochs in which the baseline is trained.
        baseline_lr: Learning rate of the baseline, which falls to zero along a cosine.
        algorithms: The algorithms that can compress the model.
    """

    name: str
    source: str
    is_for_choosing: bool
    is_unlimited: bool
    model: Callable[[], nn.Module]
    splits: Callable[[int], Splits]
    training: Mapping[str, Any]
    budget: Mapping[str, float]
    baseline_epochs: int
    baseline_lr: float
    algorithms: tuple[Algorithm, ...] = ("filters", "sparsity")


@dataclass(frozen=True)
class Problem:
    """A task with a trained baseline and one algorithm: what a method has to solve.

    Attributes:
        task: The task.
        seed: Seed of baseline, data and method.
        algorithm: Whether filters are cut or single weights are set to zero.
        baseline: The trained model, on the CPU; a method must not change it.
        splits: The data; a method may read `train` and `validation` only.
        budget: Budget on the validation split.
        metric: Returns the metric of a model on a split.
    """

    task: Task
    seed: int
    algorithm: Algorithm
    baseline: nn.Module
    splits: Splits
    budget: Budget
    metric: Callable[[nn.Module, Split], float]


@dataclass(frozen=True)
class Candidate:
    """A compressed model that a method found within budget on the validation split.

    Attributes:
        model: With its filters cut, or its weights set to zero.
        size_ratio: 1 over the share of what is left: of all parameters for filters, of the weights of convolutions,
            linear layers and the like for sparsity. At least 1.
        validation: Its metric on the validation split.
    """

    model: nn.Module
    size_ratio: float
    validation: float


@dataclass(frozen=True)
class Found:
    """The result of a method.

    Attributes:
        returned: What the method would deliver; None if nothing.
        others: The other models within budget that it tried.
        epochs: Epochs that it trained.
        seconds: Time that it took, in seconds.
        tactic: How the returned model was last trained, in words; empty if the method has no choice.
    """

    returned: Candidate | None
    others: tuple[Candidate, ...]
    epochs: float
    seconds: float
    tactic: str = ""


Method = Callable[[Problem, int], Found]  # (problem, number of epochs)

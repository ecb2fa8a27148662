"""Tasks on tables, with multilayer perceptrons: breast cancer, and four tables that are generated without end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import nn

from benchmarks.tasks.images import shuffled
from benchmarks.tasks.task import Split, Splits, Task

Table = tuple[NDArray[np.float64], NDArray[np.float64]]  # features (N, features) and targets (N,)


def cancer(seed: int) -> Splits:
    """The 569 tumors of scikit-learn, with 30 standardized features."""
    from sklearn.datasets import load_breast_cancer

    features, targets = load_breast_cancer(return_X_y=True)
    inputs = torch.tensor((features - features.mean(0)) / features.std(0), dtype=torch.float32)
    return shuffled(inputs, torch.tensor(targets, dtype=torch.float32).unsqueeze(1), 341, 114, seed)


def generated(
    draw: Callable[[Generator, int], Table], num_train: int, num_validation: int, seed: int, num_test: int = 50_000
) -> Splits:
    """Draws a table; inputs are (N, features) and targets (N, 1).

    Args:
        draw: Returns a table of a given length.
        num_train: Examples for training.
        num_validation: Examples for validation.
        seed: Seed of the generator.
        num_test: Examples for testing.
    """
    generator = np.random.default_rng(seed)

    def split(number: int) -> Split:
        features, targets = draw(generator, number)
        return {
            "inputs": torch.tensor(features, dtype=torch.float32),
            "targets": torch.tensor(targets, dtype=torch.float32).unsqueeze(1),
        }

    return Splits(split(num_train), split(num_validation), split(num_test))


def rare(generator: Generator, number: int) -> Table:
    """One class in 20: two of 40 clusters in 10 dimensions, which 24 features mix, and 8 features of mere noise."""
    problem = np.random.default_rng(0)  # every seed draws from the same distribution
    centers, mixing = problem.normal(0, 1.3, (40, 10)), problem.normal(0, 0.4, (10, 24))
    cluster = generator.integers(40, size=number)
    signal = (centers[cluster] + generator.normal(0, 0.8, (number, 10))) @ mixing
    features = np.hstack([signal, generator.normal(0, 1, (number, 8))])
    return features, (cluster < 2).astype(float)


def interactions(generator: Generator, number: int) -> Table:
    """Two classes by products, waves and thresholds of 12 features, one of them with a heavy tail; 4 say nothing."""
    x = generator.normal(0, 1, (number, 16))
    logit = (
        2 * x[:, 0] * x[:, 1] + 2 * np.sin(2 * x[:, 2]) + 1.5 * (x[:, 3] > x[:, 4]) * x[:, 5] - 1.5 * np.abs(x[:, 6])
    )
    logit += x[:, 7:12] @ np.array([0.8, -0.6, 0.4, -0.4, 0.2]) + 1
    x[:, 7] = np.exp(x[:, 7])
    return x, (generator.uniform(size=number) < 1 / (1 + np.exp(-2 * logit))).astype(float)


def friedman(generator: Generator, number: int) -> Table:
    """The first function of Friedman (1991): 5 of 10 features matter; the noise has a standard deviation of 1."""
    x = generator.uniform(size=(number, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return 2 * x - 1, y + generator.normal(0, 1, number)


def robot_arm(generator: Generator, number: int) -> Table:
    """Distance of the hand of an arm with 6 joints from a point, as in the `kin` tables of DELVE, and some noise."""
    angles = generator.uniform(-np.pi / 2, np.pi / 2, (number, 6))
    direction = angles.cumsum(1)
    lengths = np.array([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    hand = np.stack([np.cos(direction) @ lengths, np.sin(direction) @ lengths], 1)
    distance: NDArray[np.float64] = np.hypot(*(hand - [0.5, 0.8]).T)
    return angles, distance + generator.normal(0, 0.1, number)


def perceptron(*sizes: int, norm: bool = False, dropout: float = 0.0) -> nn.Module:
    """Linear layers with ReLU between them.

    Args:
        *sizes: Number of features, of each hidden layer's outputs, and of the last one's.
        norm: Whether each hidden layer has a BatchNorm.
        dropout: Share of hidden outputs that training sets to zero.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def binary(name: str) -> dict[str, object]:
    """A metric of two classes; without its checks, since the loss needs targets that are not integers."""
    return {"class_path": f"torchmetrics.classification.{name}", "init_args": {"validate_args": False}}


TASKS: tuple[Task, ...] = (
    Task(
        name="cancer_mlp",
        source="scikit-learn's breast cancer: 569 tumors, 341 of them for training and 114 for validation.",
        is_for_choosing=True,
        is_unlimited=False,
        model=partial(perceptron, 30, 96, 48, 1, dropout=0.2),
        splits=cancer,
        training={  # the learning rate is a good one
            "batch_size": 32,
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.002}},
            "loss": {"class_path": "torch.nn.BCEWithLogitsLoss"},
            "metric": binary("BinaryAUROC"),
        },
        budget={"max_drop": 0.005},
        baseline_epochs=20,
        baseline_lr=0.002,
    ),
    Task(
        name="table_rare",
        source="Generated: one class in 20, 4,000 for training, 2,000 for validation, 150,000 for testing.",
        is_for_choosing=False,
        is_unlimited=True,
        model=partial(perceptron, 32, 128, 96, 1, norm=True),
        splits=partial(generated, rare, 4000, 2000, num_test=150_000),  # F1 depends on the few of the rare class
        training={  # the learning rate is a tenth of a good one
            "batch_size": 64,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0003, "weight_decay": 0.05}},
            "loss": {"class_path": "torch.nn.BCEWithLogitsLoss"},
            "metric": binary("BinaryF1Score"),
        },
        budget={"max_drop": 0.03},
        baseline_epochs=30,
        baseline_lr=0.003,
    ),
    Task(
        name="table_auroc",
        source="Generated: two classes by nonlinear interactions, 3,000 for training, 1,000 for validation.",
        is_for_choosing=True,
        is_unlimited=True,
        model=partial(perceptron, 16, 128, 128, 64, 1, norm=True, dropout=0.1),
        splits=partial(generated, interactions, 3000, 1000),
        training={  # the learning rate is a third of a good one
            "batch_size": 64,
            "optimizer": {
                "class_path": "torch.optim.SGD",
                "init_args": {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.005},
            },
            "loss": {"class_path": "torch.nn.BCEWithLogitsLoss"},
            "metric": binary("BinaryAUROC"),
        },
        budget={"max_drop": 0.01},
        baseline_epochs=40,
        baseline_lr=0.1,
    ),
    Task(
        name="regression_rmse",
        source="Generated: Friedman's first function, 1,500 for training, 400 for validation, 50,000 for testing.",
        is_for_choosing=False,
        is_unlimited=True,
        model=partial(perceptron, 10, 128, 128, 1),
        splits=partial(generated, friedman, 1500, 400),
        training={  # the learning rate is a tenth of a good one
            "batch_size": 32,
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.0003}},
            "loss": {"class_path": "torch.nn.MSELoss"},
            "metric": {"class_path": "torchmetrics.MeanSquaredError", "init_args": {"squared": False}},
        },
        budget={"max_relative_drop": 0.03},
        baseline_epochs=100,
        baseline_lr=0.003,
    ),
    Task(
        name="regression_r2",
        source="Generated: the reach of a robot arm, 2,000 for training, 500 for validation, 50,000 for testing.",
        is_for_choosing=True,
        is_unlimited=True,
        model=partial(perceptron, 6, 96, 96, 96, 1),
        splits=partial(generated, robot_arm, 2000, 500),
        training={  # the learning rate is three times a good one
            "batch_size": 64,
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.009}},
            "loss": {"class_path": "torch.nn.MSELoss"},
            "metric": {"class_path": "torchmetrics.R2Score"},
        },
        budget={"max_drop": 0.02},
        baseline_epochs=60,
        baseline_lr=0.003,
    ),
)

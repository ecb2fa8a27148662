"""Tasks on series: real ones that sktime and statsmodels ship, and noisy chirps that are generated without end."""

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.tasks.images import shuffled
from benchmarks.tasks.task import Split, Splits, Task

WINDOW, HORIZON = 64, 12  # weeks that the forecast sees, and weeks that it predicts


def packaged(package: str, *parts: str) -> Path:
    """A file of an installed package, which is not imported: its own dependencies may be missing."""
    found = find_spec(package)
    assert found is not None, f"{package}: install what the extra `zoo` names"
    assert found.submodule_search_locations is not None  # a package, not a module
    return Path(found.submodule_search_locations[0], *parts)


def labeled_series(name: str, length: int) -> tuple[Tensor, Tensor]:
    """Reads a data set of the UCR or UEA archive that sktime ships.

    Args:
        name: Name of the data set.
        length: Length to which the series are cut, or filled up with zeros.

    Returns:
        The series, (N, channels, length), and their classes, (N).
    """
    inputs, labels = [], []
    for part in ("TRAIN", "TEST"):
        text = packaged("sktime", "datasets", "data", name, f"{name}_{part}.ts").read_text(encoding="utf-8")
        for line in text.partition("@data")[2].split():
            *channels, label = line.split(":")
            rows = torch.tensor([[float(value) for value in channel.split(",")] for channel in channels])[:, :length]
            inputs.append(F.pad(rows, (0, length - rows.shape[1])))
            labels.append(label)
    classes = sorted(set(labels))
    return torch.stack(inputs), torch.tensor([classes.index(label) for label in labels])


def plaid(seed: int) -> Splits:
    """Currents of 11 kinds of appliances, (N, 2, 512): their shape, and their peak, which differs by powers of ten."""
    inputs, targets = labeled_series("PLAID", 512)
    peaks = inputs.abs().amax(2, keepdim=True) + 0.001
    return shuffled(torch.cat([inputs / peaks, 0.3 * peaks.log().expand_as(inputs)], 1), targets, 574, 250, seed)


def vowels(seed: int) -> Splits:
    """The vowels /ae/ of nine speakers, as 12 cepstral coefficients in their first 7 frames."""
    inputs, targets = labeled_series("JapaneseVowels", 7)
    return shuffled(inputs, targets, 280, 180, seed)


def carbon_dioxide(seed: int) -> Splits:
    """Weekly CO2 at Mauna Loa, in time order: what follows a window, both relative to the window's last value."""
    table = pd.read_csv(packaged("statsmodels", "datasets", "co2", "co2.csv"))
    values = torch.tensor(table["co2"].interpolate().to_numpy(), dtype=torch.float32)
    windows = values.unfold(0, WINDOW + HORIZON, 1)
    windows = windows - windows[:, WINDOW - 1 : WINDOW]
    gap = WINDOW + HORIZON  # so that no week is in two splits
    starts = (0, 1000 + gap, 1000 + 500 + 2 * gap)
    ends = (1000, 1000 + gap + 500, len(windows))
    train, validation, test = (
        {"inputs": windows[start:end, :WINDOW].unsqueeze(1), "targets": windows[start:end, WINDOW:]}
        for start, end in zip(starts, ends, strict=True)
    )
    return Splits(train, validation, test)


def chirps(seed: int) -> Splits:
    """Two chirps and noise, (N, 1, 128); to find is the stronger one's frequency in the middle, in octaves."""
    generator = np.random.default_rng(seed)

    def drawn(number: int) -> Split:
        time = np.linspace(-1, 1, 128)
        octaves, bend, phase = generator.uniform(-1.5, 1.5, (3, number, 2, 1))
        turns = 6 * 2**octaves * (time + bend / 6 * time**2)
        waves = np.sin(2 * math.pi * (turns + phase)) * np.array([[1.0], [0.5]])
        inputs = waves.sum(1) + generator.normal(0, 0.5, (number, 128))
        return {
            "inputs": torch.tensor(inputs, dtype=torch.float32).unsqueeze(1),
            "targets": torch.tensor(octaves[:, 0], dtype=torch.float32),  # (N, 1)
        }

    return Splits(drawn(1200), drawn(600), drawn(50_000))


class Block(nn.Module):
    """Two convolutions with BatchNorm and a shortcut, as in ResNet (He et al. 2016), which halve the length."""

    def __init__(self, before: int, after: int, size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(before, after, size, stride=2, padding=size // 2, bias=False)
        self.bn1 = nn.BatchNorm1d(after)
        self.conv2 = nn.Conv1d(after, after, size, padding=size // 2, bias=False)
        self.bn2 = nn.BatchNorm1d(after)
        self.shortcut = nn.Conv1d(before, after, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResidualCNN1d(nn.Module):
    """A residual network over series, with the mean over time before the last layer.

    Args:
        channels: Channels of the series.
        outputs: Number of outputs.
        widths: Channels of the first convolution and of each block.
        size: Length of the filters.
        stride: Stride of the first convolution.
    """

    def __init__(self, channels: int, outputs: int, widths: tuple[int, ...], size: int, stride: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(channels, widths[0], size, stride=stride, padding=size // 2, bias=False),
            nn.BatchNorm1d(widths[0]),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*(Block(before, after, size) for before, after in pairwise(widths)))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).mean(2))
        return out


def forecaster() -> nn.Module:
    """Plain convolutions and a linear layer that sees every position."""
    return nn.Sequential(
        nn.Conv1d(1, 24, 7, stride=2, padding=3),
        nn.ReLU(),
        nn.Conv1d(24, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * WINDOW // 4, 48),
        nn.ReLU(),
        nn.Linear(48, HORIZON),
    )


def accuracy(num_classes: int) -> dict[str, object]:
    """The share of right classes."""
    arguments = {"num_classes": num_classes, "average": "micro"}
    return {"class_path": "torchmetrics.classification.MulticlassAccuracy", "init_args": arguments}


TASKS: tuple[Task, ...] = (
    Task(
        name="ucr_cnn1d",
        source="PLAID (UCR archive, in sktime): 1,074 currents of 11 kinds of appliances, 250 of them for validation.",
        is_for_choosing=True,
        is_unlimited=False,
        model=lambda: ResidualCNN1d(2, 11, widths=(16, 24, 32, 64), size=7, stride=4),
        splits=plaid,
        training={  # the learning rate is a tenth of a good one
            "batch_size": 32,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0003}},
            "metric": accuracy(11),
        },
        budget={"max_drop": 0.02},
        baseline_epochs=60,
        baseline_lr=0.003,
    ),
    Task(
        name="vowels_cnn1d",
        source="JapaneseVowels (UEA archive, in sktime): 640 vowels of 9 speakers, 180 of them for validation.",
        is_for_choosing=False,
        is_unlimited=False,
        model=lambda: ResidualCNN1d(12, 9, widths=(32, 48, 64), size=3, stride=1),
        splits=vowels,
        training={  # the learning rate is a fifth of a good one
            "batch_size": 16,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01, "momentum": 0.9}},
            "metric": accuracy(9),
        },
        budget={"max_relative_drop": 0.015},
        baseline_epochs=40,
        baseline_lr=0.05,
    ),
    Task(
        name="series_forecast",
        source="Weekly CO2 at Mauna Loa (in statsmodels): 12 weeks after windows of 64, 500 windows for validation.",
        is_for_choosing=False,
        is_unlimited=False,
        model=forecaster,
        splits=carbon_dioxide,
        training={  # the learning rate is a third of a good one
            "batch_size": 32,
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.0005}},
            "loss": {"class_path": "torch.nn.L1Loss"},
            "metric": {"class_path": "torchmetrics.MeanAbsoluteError"},
        },
        budget={"max_relative_drop": 0.03},
        baseline_epochs=60,
        baseline_lr=0.0015,
    ),
    Task(
        name="noise_cnn1d",
        source="Generated: two chirps in noise, 1,200 for training, 600 for validation, 50,000 for testing.",
        is_for_choosing=False,
        is_unlimited=True,
        model=lambda: ResidualCNN1d(1, 1, widths=(16, 24, 32, 40), size=7, stride=2),
        splits=chirps,
        training={  # the learning rate is a quarter of a good one
            "batch_size": 32,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.005, "momentum": 0.9}},
            "loss": {"class_path": "torch.nn.SmoothL1Loss"},
            "metric": {"class_path": "torchmetrics.MeanAbsoluteError"},
        },
        budget={"max_relative_drop": 0.03},
        baseline_epochs=40,
        baseline_lr=0.02,
    ),
)

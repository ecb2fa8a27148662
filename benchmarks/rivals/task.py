"""The task that every tool gets: a small residual CNN that names shapes. Needs torch alone, in every environment."""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_SIZE = 64
LR = 1e-3  # of all fine-tuning; it falls to 0 along a cosine
SIDE = 20


class Block(nn.Module):
    """Two convolutions with a shortcut around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class Net(nn.Module):
    """Maps images (B, 1, 20, 20) to logits (B, 8); 28,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block1 = Block(16)
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.block2 = Block(32)
        self.pool, self.flat, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.down(self.block1(self.stem(x))))
        logits: Tensor = self.head(self.flat(self.pool(x)))
        return logits


@dataclass(frozen=True)
class Job:
    """What a tool is given.

    Attributes:
        folder: Where it writes its file.
        model: The trained baseline.
        train: Inputs and targets.
        validation: Inputs and targets.
        epochs: Number of epochs that it may train, all trials together.
        lowest: Lowest tolerated accuracy on the validation split.
        max_drop: The tolerated drop.
    """

    folder: Path
    model: nn.Module
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    epochs: int
    lowest: float
    max_drop: float

    @property
    def example(self) -> Tensor:
        """One example as a batch."""
        return self.validation[0][:1]


def read_job() -> Job:
    """Reads what `__main__` wrote into the folder that the command line names."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = Path(sys.argv[1])
    data = torch.load(folder / "data.pt", weights_only=True)
    terms = json.loads((folder / "terms.json").read_text(encoding="utf-8"))
    model = Net()
    model.load_state_dict(torch.load(folder / "baseline.pt", weights_only=True))
    return Job(folder, model.eval(), data["train"], data["validation"], **terms)


def fine_tune(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    num_epochs: int,
    *,
    lr: float = LR,
    after_epoch: Callable[[], None] = lambda: None,
) -> None:
    """Trains a model in place with Adam and the cross-entropy."""
    inputs, targets = data
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    num_steps = num_epochs * math.ceil(len(inputs) / BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(num_steps, 1))
    for _ in range(num_epochs):
        model.train()
        for rows in torch.randperm(len(inputs)).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            scheduler.step()
        model.eval()
        after_epoch()


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of right answers."""
    model.eval()
    return float((model(data[0]).argmax(1) == data[1]).float().mean())


def bisect(job: Job, trial: Callable[[float], nn.Module], num_trials: int) -> nn.Module | None:
    """Bisects a ratio in (0, 1): the highest whose trained model is within budget; None if there is none."""
    low, high, best = 0.0, 1.0, None
    for _ in range(num_trials):
        ratio = (low + high) / 2
        model = trial(ratio)
        reached = accuracy(model, job.validation)
        print(f"ratio {ratio:.3f}: {reached:.4f}, at least {job.lowest:.4f}", file=sys.stderr)
        low, high, best = (ratio, high, copy.deepcopy(model)) if reached >= job.lowest else (low, ratio, best)
    return best


def to_onnx(model: nn.Module, job: Job, file: Path, *, dynamo: bool = True) -> None:
    """Exports with a free batch axis, by torch's own exporter."""
    model.eval()
    axes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}}
    example = torch.cat([job.example, job.example])
    torch.onnx.export(
        model, (example,), file, input_names=["x"], dynamo=dynamo, external_data=False, verbose=False, **axes
    )


def finish(job: Job, started: float, model: nn.Module | None, note: str = "", *, dynamo: bool = True) -> None:
    """Writes the file, and what else is known; no file if there is no model."""
    if model is not None:
        to_onnx(model, job, job.folder / "model.onnx", dynamo=dynamo)
    report(job, started, note)


def report(job: Job, started: float, note: str = "") -> None:
    """Writes the seconds since `started`, by `time.perf_counter`."""
    found = {"seconds": time.perf_counter() - started, "note": note}
    (job.folder / "found.json").write_text(json.dumps(found), encoding="utf-8")

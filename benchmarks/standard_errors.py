"""Measures what the standard error adds to the time of a validation.

Each row is a metric on a small model. It is validated in alternating pairs, without a standard error and with it; the
ratio is the median of the pairs'. Times are those of the processor, so that a busy machine does not change them.

    OMP_NUM_THREADS=1 python benchmarks/standard_errors.py [--pairs 15]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.settings import TrainingSettings

# Largest ratio that the project promises.
LIMIT = 1.3


class UNet(nn.Module):
    """A U-Net of two levels for images (B, 3, H, W).

    Args:
        num_classes: Number of classes.
        width: Channels of the first level.
    """

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.first, self.second = self._block(3, width), self._block(width, 2 * width)
        self.up, self.last = nn.ConvTranspose2d(2 * width, width, 2, stride=2), self._block(2 * width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        near = self.first(images)
        far = self.up(self.second(nn.functional.max_pool2d(near, 2)))
        outputs: Tensor = self.head(self.last(torch.cat([near, far], dim=1)))
        return outputs


def images(count: int = 200, size: int = 64, num_classes: int = 4) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small U-Net and its data."""
    data = {"inputs": torch.randn(count, 3, size, size), "targets": torch.randint(num_classes, (count, size, size))}
    return UNet(num_classes), data


def rows(count: int = 100_000, num_classes: int = 10, num_outputs: int | None = None) -> tuple[nn.Module, Any]:
    """A small network and its data: labels, or numbers if `num_classes` is 0."""
    net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, num_outputs or num_classes))
    if num_outputs == 1:
        net.append(nn.Flatten(0))
    targets = torch.randint(num_classes, (count,)) if num_classes else torch.randn(count)
    return net, {"inputs": torch.randn(count, 20), "targets": targets}


CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "mean IoU, 200 images": ("segmentation.MeanIoU", {"num_classes": 4, "input_format": "mixed"}, images),
    "Jaccard index, 200 images": ("classification.MulticlassJaccardIndex", {"num_classes": 4}, images),
    "macro F1, 100,000 rows": ("classification.MulticlassF1Score", {"num_classes": 10}, rows),
    "binary AUROC, 100,000 rows": ("classification.BinaryAUROC", {}, lambda: rows(num_classes=2, num_outputs=1)),
    "macro AUROC, 100,000 rows": ("classification.MulticlassAUROC", {"num_classes": 10}, rows),
    "average precision, 100,000 rows": (
        "classification.BinaryAveragePrecision",
        {},
        lambda: rows(num_classes=2, num_outputs=1),
    ),
    "RMSE, 100,000 rows": (
        "regression.MeanSquaredError",
        {"squared": False},
        lambda: rows(num_classes=0, num_outputs=1),
    ),
    "R2, 100,000 rows": ("regression.R2Score", {}, lambda: rows(num_classes=0, num_outputs=1)),
}


def training_of(model: nn.Module, data: dict[str, Tensor], metric: str, arguments: Any, number: int) -> Any:
    """A training that validates with `number` resamples."""
    settings = TrainingSettings.model_validate(
        {
            "metric": {"class_path": f"torchmetrics.{metric}", "init_args": arguments},
            "num_bootstrap_resamples": number,
            "batch_size": 256 if len(data["inputs"]) > 1000 else 20,
            "device": "cpu",
        }
    )
    return DefaultTraining(model, settings, None, data)


def seconds(training: DefaultTraining) -> float:
    """Processor time of one validation."""
    started = time.process_time()
    training.validate(training.model)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table("validation", "without s", "with s", "ratio", "kind", box=None)
    for name, (metric, arguments, make) in CASES.items():
        model, data = make()
        without, with_error = (training_of(model, data, metric, arguments, number) for number in (0, 100))
        evaluation = with_error.validate(model)
        seconds(without)
        times = [(seconds(without), seconds(with_error)) for _ in range(pairs)]
        ratio = statistics.median(after / before for before, after in times)
        medians = [f"{statistics.median(column):.3f}" for column in zip(*times, strict=True)]
        kind = "linearized" if evaluation.is_linearized else "resampled" if evaluation.scores is None else "scores"
        table.add_row(name, *medians, f"{ratio:.2f}{' !' if ratio > LIMIT else ''}", kind)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

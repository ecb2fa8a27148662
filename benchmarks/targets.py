"""Compares a target's files with torch and ONNX Runtime: python -m benchmarks.targets executorch

Seven small models are trained on scikit-learn's 8x8 digits, in float32 and in int8, and written for ONNX and for the
target. The table gives the largest difference from the torch model as a share of its largest output, the accuracy on
359 images that were not trained on, the bytes, and the time of one run in turns with ONNX Runtime on one thread.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.nets import RowAttention
from benchmarks.tasks.images import DepthwiseCNN
from benchmarks.tasks.segmentation import UNet
from benchmarks.tasks.series import ResidualCNN1d
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.errors import ExportError
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.executorch_settings import ExecutorchSettings
from kedro_aat.export.targets.registry import TARGETS, TargetName, target_of
from kedro_aat.export.verify import verify_file
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.pipelines.digits.nodes import SplitSettings, split_digits

DIGITS = Path(__file__).parents[1] / "data/01_raw/digits.csv"
BATCH_SIZES = (1, 64)


class Rows(nn.Module):
    """A GRU over the 8 rows of an image: (B, 1, 8, 8) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(8, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.recurrent(images.squeeze(1))[0][:, -1])
        return logits


class Series(nn.Module):
    """Convolutions over the rows of an image, whose columns are the channels: (B, 1, 8, 8) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ResidualCNN1d(8, 10, (32, 48, 64), 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.squeeze(1))
        return logits


def perceptron() -> nn.Module:
    sizes = (64, 128, 128)
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(128, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "digits CNN": ResidualCNN,
    "depthwise CNN": DepthwiseCNN,
    "1-D CNN": Series,
    "GRU": Rows,
    "transformer": RowAttention,
    "U-Net": lambda: UNet(1, 2),
    "MLP": perceptron,
}
VARIANTS: dict[str, tuple[TargetName, ExportSettings]] = {
    **{name: (name, ExportSettings(batch_sizes=BATCH_SIZES)) for name in TARGETS if TARGETS[name].class_path},
    "executorch-portable": (
        "executorch",
        ExportSettings(batch_sizes=BATCH_SIZES, executorch=ExecutorchSettings(backend="portable")),
    ),
}


@dataclass(frozen=True)
class Data:
    inputs: Tensor
    targets: Tensor


def load(is_dense: bool) -> tuple[Data, Data]:
    """Images for training and validation, with their digits, or for each pixel whether it is ink."""
    splits = split_digits(pd.read_csv(DIGITS), SplitSettings())[:2]
    train, validation = (
        Data(split["inputs"], (split["inputs"][:, 0] > 0.5).long() if is_dense else split["targets"])
        for split in splits
    )
    return train, validation


def fit(model: nn.Module, data: Data, epochs: int, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.inputs)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(data.inputs[batch]), data.targets[batch]).backward()
            optimizer.step()
    model.eval()


def accuracy(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        return float((model(data.inputs).argmax(1) == data.targets).double().mean())


def trained(name: str) -> tuple[nn.Module, nn.Module, Data]:
    """A model in float32, the same trained in int8, and what they are judged on."""
    torch.manual_seed(0)
    train, validation = load(is_dense=name == "U-Net")
    model = MODELS[name]()
    fit(model, train, 5, 0.003)
    controller = QuantizationController(copy.deepcopy(model))
    controller.calibrate(train.inputs.split(64)[:4])
    fit(controller.model, train, 1, 0.0005)
    controller.disable_scheduler()
    return model, controller.strip().eval(), validation


def rows(name: str, variant: str, seconds: float) -> list[list[str]]:
    target, settings = VARIANTS[variant]
    made = []
    *models, validation = trained(name)
    for precision, model in zip(("float32", "int8"), models, strict=True):
        assert isinstance(model, nn.Module)
        inputs = validation.inputs
        onnx = to_onnx(model, inputs, settings)
        row = [name, precision]
        try:
            file = target_of(target).write(model, inputs, settings, onnx)
            loaded = target_of(target).read_back(file)
            agreement = verify_file(TARGETS[target].title, loaded, model, inputs, tolerance=float("inf"))
        except ExportError as error:
            made.append([*row, f"not written: {error}"])
            continue
        latencies = measure_latency(
            [onnx, file], inputs, batch_sizes=BATCH_SIZES, num_threads=settings.num_threads, seconds=seconds
        )
        row += [
            f"{agreement.difference:.1g}",
            f"{accuracy(model, validation):.4f}",
            f"{accuracy(loaded, validation):.4f}",
        ]
        row += [f"{len(onnx.SerializeToString()):,}", f"{file.num_bytes:,}"]
        for size in BATCH_SIZES:
            row += [f"{found[size].fastest:.3f}" if size in found else "" for found in latencies]
        arena = file.details.arena_bytes
        made.append([*row, "" if arena is None else f"{arena:,}", str(len(file.details.operators))])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=VARIANTS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=3.0, help="time to measure each batch size of a model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {cpu()}; torch {torch.__version__}\n")
    columns = ["model", "precision", "difference", "accuracy, torch", "file", "bytes, ONNX", "file"]
    columns += [part for size in BATCH_SIZES for part in (f"ms at {size}, ONNX", "file")] + ["arena", "operators"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name in arguments.models:
        for row in rows(name, arguments.target, arguments.seconds):
            print("| " + " | ".join(row) + " |", flush=True)


def cpu() -> str:
    """What Linux calls the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()

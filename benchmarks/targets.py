"""Compares the files of all targets with the torch model: python -m benchmarks.targets [onnx litert ...]

Seven small models are trained on scikit-learn's 8x8 digits, in float32 and then in int8, and each is written for every
target; so all tables are about the same models. A table gives the largest difference from the torch model as a share of
its largest output; the accuracy on 359 images that were not trained on, with the standard error of torch's, and whether
the file's is within it; the bytes; and the time of one run on one thread, in turns with all other files of the model.
`litert-micro` runs LiteRT's file in LiteRT for Microcontrollers (package `tflite-micro`), for its memory and numbers.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.nets import RowAttention
from benchmarks.target_runtimes import BATCH_SIZES, RUNTIMES, Exported, Written, fastest
from benchmarks.tasks.images import DepthwiseCNN
from benchmarks.tasks.segmentation import UNet
from benchmarks.tasks.series import ResidualCNN1d
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.errors import ExportError
from kedro_aat.export.difference import largest_difference
from kedro_aat.export.measure import arrays_of
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.pipelines.digits.nodes import SplitSettings, split_digits

DIGITS = Path(__file__).parents[1] / "data/01_raw/digits.csv"


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
# What a file is compared with in bytes and time.
REFERENCES = {"onnx": "torch", "pt2": "torch"}


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


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> tuple[float, float]:
    """The accuracy, and its standard error: that of a mean over images, whose pixels are not independent."""
    hits = (model(data.inputs).argmax(1) == data.targets).double()
    of_images = hits.flatten(1).mean(1) if hits.ndim > 1 else hits
    return float(of_images.mean()), float(of_images.std() / len(of_images) ** 0.5)


def trained(name: str) -> tuple[nn.Module, nn.Module, Data]:
    """A model in float32, the same trained in int8, and what they are judged on."""
    torch.manual_seed(0)
    train, validation = load(is_dense=name == "U-Net")
    model = MODELS[name]()
    fit(model, train, 5, 0.003)
    controller = QuantizationController(copy.deepcopy(model))
    controller.calibrate(train.inputs.split(64)[:4])
    controller.disable_scheduler()
    fit(controller.model, train, 1, 0.0005)
    return model, controller.strip().eval(), validation


def rows(name: str, runtimes: Sequence[str], seconds: float) -> dict[str, list[list[str]]]:
    """The rows of a model in the table of each runtime."""
    made: dict[str, list[list[str]]] = {runtime: [] for runtime in runtimes}
    *models, validation = trained(name)
    for precision, model in zip(("float32", "int8"), models, strict=True):
        assert isinstance(model, nn.Module)
        exported = Exported(model, validation.inputs)
        written = {"torch": exported.for_torch(), "onnx": RUNTIMES["onnx"](exported)}
        for runtime in runtimes:
            try:
                written[runtime] = RUNTIMES[runtime](exported)
                measured = _agreement(written[runtime], model, validation)
            except (ExportError, RuntimeError) as error:
                written.pop(runtime, None)
                made[runtime].append([name, precision, f"no file: {error}"])
            else:
                made[runtime].append([name, precision, *measured])
        times = _times(written, validation.inputs, seconds)
        for runtime in runtimes:
            if runtime in written:
                made[runtime][-1] += _costs(runtime, written, times)
    return made


def _agreement(file: Written, model: nn.Module, validation: Data) -> list[str]:
    with torch.no_grad():
        expected, found = model(validation.inputs), file.loaded(validation.inputs)
    difference = largest_difference({"output": found}, {"output": expected})
    of_model, error = accuracy(model, validation)
    of_file, _ = accuracy(file.loaded, validation)
    is_within = abs(of_file - of_model) <= error
    return [f"{difference:.1g}", f"{of_model:.4f}", f"{of_file:.4f}", f"{error:.4f}", "yes" if is_within else "no"]


def _times(written: dict[str, Written], inputs: Tensor, seconds: float) -> dict[int, dict[str, float]]:
    found = {}
    for size in BATCH_SIZES:
        binds = {
            name: file.bind
            for name, file in written.items()
            if file.bind is not None and file.batch_size in (None, size)
        }
        found[size] = fastest(binds, arrays_of(inputs, size), seconds * len(binds))
    return found


def _costs(runtime: str, written: dict[str, Written], times: dict[int, dict[str, float]]) -> list[str]:
    """Bytes, and milliseconds, of the file and of what it is compared with."""
    file, reference = written[runtime], REFERENCES.get(runtime, "onnx")
    costs = [] if reference == "torch" else [f"{written[reference].num_bytes:,}"]
    costs.append(f"{file.num_bytes:,}")
    if file.bind is not None:
        for size in BATCH_SIZES:
            of_file = times[size].get(runtime)
            costs += [f"{times[size][reference]:.3f}", "takes 1" if of_file is None else f"{of_file:.3f}"]
    return [*costs, *("" if number is None else f"{number:,}" for number in _sizes(runtime, file))]


def _sizes(runtime: str, file: Written) -> list[int | None]:
    return [file.arena_bytes, *([file.expected_bytes] if runtime == "litert-micro" else []), file.operators]


def columns(runtime: str) -> list[str]:
    """Heads of the table of a runtime."""
    reference = "torch" if REFERENCES.get(runtime) else "ONNX"
    found = ["model", "precision", "difference", "accuracy, torch", "file", "standard error", "within"]
    found += ["bytes"] if reference == "torch" else ["bytes, ONNX", "file"]
    if runtime != "litert-micro":
        found += [part for size in BATCH_SIZES for part in (f"ms at {size}, {reference}", "file")]
    return [*found, "arena", *(["at most"] if runtime == "litert-micro" else []), "operators"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(RUNTIMES)}; all of them by default")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=1.0, help="time to measure each file at each batch size")
    arguments = parser.parse_args()
    asked = arguments.targets or list(RUNTIMES)
    if unknown := [name for name in asked if name not in RUNTIMES]:
        parser.error(f"no target {', '.join(unknown)}: choose from {', '.join(RUNTIMES)}")
    torch.set_num_threads(1)
    tables: dict[str, list[list[str]]] = {name: [] for name in asked}
    for name in arguments.models:
        for runtime, made in rows(name, asked, arguments.seconds).items():
            tables[runtime] += made
            for row in made:
                print(runtime, *row, sep=" | ", file=sys.stderr, flush=True)
    print(f"{platform.machine()}, {cpu()}; torch {torch.__version__}")
    for runtime, made in tables.items():
        heads = columns(runtime)
        print(f"\n## {runtime}\n\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
        for row in made:
            print(f"| {' | '.join(row)} |")


def cpu() -> str:
    """What Linux calls the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()

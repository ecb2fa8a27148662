"""Small models, data and functions, each with one fault that a run would meet. Settings name some by import path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 4
HERE = "tests.rehearsal.faulty"


def labeled(num_examples: int = 70) -> dict[str, Tensor]:
    """Images of 8 x 8 pixels with random labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_examples, 1, 8, 8, generator=generator)
    return {"inputs": images, "targets": torch.randint(NUM_CLASSES, (num_examples,), generator=generator)}


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Plain(nn.Module):
    """Two blocks and a classifier, without a fault: (B, 1, 8, 8) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = _block(1, 8), _block(8, 12), nn.Linear(12, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return out


class Gated(Plain):
    """A GLU: half of the channels gate the others."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(12, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.glu(self.gate(self.body(self.stem(x))), 1).mean((2, 3)))
        return out


class RandomDepth(Plain):
    """Its second block is skipped at random in training."""

    def __init__(self) -> None:
        super().__init__()
        self.more = _block(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        if not self.training:
            x = x + self.more(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Auxiliary(Plain):
    """A second classifier, whose outputs are returned in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Any:
        early = self.stem(x)
        out = self.head(self.body(early).mean((2, 3)))
        return (out, self.auxiliary(early.mean((2, 3)))) if self.training else out


class TwoOutputs(Plain):
    """Returns its features, too."""

    def forward(self, x: Tensor) -> Any:
        features = self.body(self.stem(x)).mean((2, 3))
        return self.head(features), features


class Decoder(nn.Module):
    """Transposed convolutions alone, which int8 may leave in full precision: (B, 1, 8, 8) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 8, 2, stride=2)
        self.head = nn.ConvTranspose2d(8, NUM_CLASSES, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.up(x).relu()).mean((2, 3))
        return out


class Bessel(Plain):
    """An operator that ONNX has no counterpart of."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.special.bessel_j0(x))


class Recurrent(nn.Module):
    """A GRU that reads an image row by row: (B, 1, 8, 8) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x[:, 0])
        out: Tensor = self.head(states[:, -1])
        return out


class Noisy(Plain):
    """Draws random numbers in evaluation mode, so that no file computes what the model computed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


class Squeezing(Plain):
    """Returns (4,) for a batch of one, which the last batch of a split may be."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(0)


class Unpaired(torch.utils.data.Dataset[Any]):
    """Examples without a target."""

    def __len__(self) -> int:
        return 70

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(1, 8, 8)


class Ragged(torch.utils.data.Dataset[Any]):
    """Inputs of different lengths, which nothing pads."""

    def __len__(self) -> int:
        return 70

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(1, 8, 8 + index), index % NUM_CLASSES


def validate_badly(model: nn.Module) -> float:
    """Raises an error of its own."""
    raise LookupError("no such table")


def validate_inside(model: Any, data: Any) -> float:
    """Calls a part of the model, which a file does not have."""
    model.eval()
    right = [model.head(model.body(model.stem(x)).mean((2, 3))).argmax(1) == y for x, y in data]
    return float(torch.cat(right).double().mean())


def train_badly(controller: Any, model: nn.Module, *, epoch: int, optimizer: Any, lr_scheduler: Any) -> float:
    """Raises an error of its own."""
    raise LookupError("no such schedule")


@dataclass(frozen=True)
class Case:
    """A model, data and settings with one fault.

    Attributes:
        model: Makes the model.
        settings: What differs from the usual settings of the pipeline.
        data: Makes both splits.
        words: What the error must say; empty if later versions may support it.
    """

    model: Callable[[], nn.Module] = Plain
    settings: dict[str, Any] = field(default_factory=dict)
    data: Callable[[], Any] = labeled
    words: tuple[str, ...] = ()


_FILTERS = {"compression": {"algorithm": "filter_pruning"}}
_FILTERS_ALONE = _FILTERS | {"second_stage": None}

CASES: dict[str, Case] = {
    "no fault": Case(),
    "GLU": Case(Gated),
    "blocks skipped at random in training": Case(RandomDepth),
    "auxiliary head": Case(Auxiliary),
    "decoder with nothing to quantize": Case(Decoder),
    "two outputs": Case(TwoOutputs),
    "DataParallel": Case(lambda: nn.DataParallel(Plain())),
    "GRU": Case(Recurrent),
    "operator without ONNX": Case(Bessel, words=("the baseline, export as ONNX file", "bessel", "no stage can")),
    "random numbers in evaluation": Case(Noisy, words=("the baseline, ONNX file, read back", "random numbers")),
    "loss that misses the targets": Case(
        settings={
            "training": {
                "loss": {"class_path": "torch.nn.NLLLoss", "init_args": {"weight": None}},
                "baseline_check": "warn",  # else it is told as targets that are misread
            }
        },
        data=lambda: {**labeled(), "targets": torch.full((70,), 9)},
        words=("loss in training mode", "(32, 1, 8, 8)", "outputs of (32, 4)", "9 is out of bounds", "training.loss"),
    ),
    "metric that misses the targets": Case(
        settings={
            "training": {
                "metric": {
                    "class_path": "torchmetrics.classification.MulticlassAccuracy",
                    "init_args": {"num_classes": 3},
                }
            }
        },
        words=("metric in evaluation mode", "outputs of (32, 4)", "training.metric"),
    ),
    "batch that is no pair": Case(data=Unpaired, words=("validation split is a Tensor of (8, 1, 8, 8)", "a pair")),
    "collate function that fails": Case(
        data=Ragged, words=("(1, 8, 8), (1, 8, 9)", "training.loader.collate_fn", "stack expects each tensor")
    ),
    "validation function that raises": Case(
        settings={"training": {"validate": f"{HERE}.validate_badly", "metric": None, "higher_is_better": True}},
        words=("training.validate", "validate_badly", "LookupError: no such table"),
    ),
    "validation function that no file supports": Case(
        settings={"training": {"validate": f"{HERE}.validate_inside", "metric": None, "higher_is_better": True}},
        words=("validation of the ONNX file", "'OnnxModel' object has no attribute", "forward pass alone"),
    ),
    "training function that raises": Case(
        settings={"training": {"train_epoch": f"{HERE}.train_badly"}},
        words=("training.train_epoch", "train_badly", "LookupError: no such schedule"),
    ),
}


def settings_of(case: Case) -> dict[str, Any]:
    """The settings of the pipeline for a case, as plain data."""
    training = {
        "batch_size": 32,
        "loss": "torch.nn.CrossEntropyLoss",
        "metric": {
            "class_path": "torchmetrics.classification.MulticlassAccuracy",
            "init_args": {"num_classes": NUM_CLASSES, "average": "micro"},
        },
        "num_threads": 1,
        "device": "cpu",
    }
    usual: dict[str, Any] = {
        "budget": {"max_drop": 0.05},
        "second_stage": {"compression": {"algorithm": "quantization"}},
        "export": {"dynamic_axes": {}},  # the search for others takes half of a rehearsal
        **_FILTERS,
    }
    return {**usual, **case.settings, "training": {**training, **case.settings.get("training", {})}}

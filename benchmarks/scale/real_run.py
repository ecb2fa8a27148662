"""A whole run of the pipeline in a process of its own: its peak memory, its bytes on disk and its processor time."""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pluggy
import torch
import yaml
from kedro.framework.hooks import _create_hook_manager, hook_impl
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner
from torch import Tensor, nn

from benchmarks.nets import Attention, ResNet18
from benchmarks.scale.meter import clear_peak, resident
from kedro_aat.adoption.templates import template
from kedro_aat.config import AatSettings
from kedro_aat.datasets.trust import share_trust
from kedro_aat.pipelines.aat import create_pipeline
from kedro_aat.training.records import EpochRecord

NUM_CLASSES = 10
_EPOCHS: list[float] = []  # processor time at the end of each


def note_epoch(record: EpochRecord) -> None:
    """Notes when an epoch has ended; the settings name it."""
    _EPOCHS.append(time.process_time())


class Perceptron(nn.Sequential):
    """Five hidden layers of one width; 64 inputs."""

    def __init__(self, width: int) -> None:
        sizes = [64, *[width] * 5]
        layers = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
        super().__init__(*layers, nn.Linear(width, NUM_CLASSES))


class Tokens(nn.Module):
    """Attention blocks over 16 tokens of 16 numbers, like a small vision transformer."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(16, width), nn.Linear(width, NUM_CLASSES)
        self.blocks = nn.Sequential(*(Attention(width, 4) for _ in range(depth)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens (B, 16, 16) to logits (B, 10)."""
        logits: Tensor = self.head(self.blocks(self.embed(tokens)).mean(1))
        return logits


NETS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "mlp": (Perceptron, (64,)),
    "cnn": (ResNet18, (3, 32, 32)),
    "vit": (Tokens, (16, 16)),
}


@dataclass(frozen=True)
class Case:
    """One job.

    Attributes:
        net: Name of a network.
        arguments: Arguments of its class.
        settings: What differs from the common settings, by section.
        num_train: Number of training examples.
        num_validation: Number of validation examples, and of test examples.
    """

    net: str
    arguments: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    num_train: int = 512
    num_validation: int = 512

    def split(self, number: int, seed: int) -> dict[str, Tensor]:
        """Examples whose class raises one of their numbers."""
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(number, *NETS[self.net][1], generator=generator)
        targets = torch.arange(number) % NUM_CLASSES
        inputs.view(number, -1)[torch.arange(number), targets] += 4
        return {"inputs": inputs, "targets": targets}

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters `aat`."""
        metric = {"class_path": "torchmetrics.classification.MulticlassAccuracy"}
        training = {
            "batch_size": 32,
            "device": "cpu",
            "num_threads": 1,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
            "metric": metric | {"init_args": {"num_classes": NUM_CLASSES, "average": "micro"}},
            # The model is hardly trained, and that is not what is measured.
            "baseline_check": "off",
            "on_epoch": f"{__name__}.{note_epoch.__name__}",
        }
        common: dict[str, Any] = {
            "budget": {"max_drop": 0.3},
            "search": {"kind": "frontier", "maximal_total_epochs": 4},
            "rehearsal": False,
            "export": {"latency_seconds": 0.2},
        }
        return {**common, **self.settings, "training": training | self.settings.get("training", {})}

    @property
    def aat(self) -> AatSettings:
        """The same, checked."""
        return AatSettings.model_validate(self.parameters)

    def model(self) -> nn.Module:
        """The network, which is trained for a moment."""
        torch.manual_seed(0)
        model = NETS[self.net][0](**self.arguments)
        data = self.split(256, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for start in range(0, 256, 32):
            optimizer.zero_grad()
            outputs = model(data["inputs"][start : start + 32])
            nn.functional.cross_entropy(outputs, data["targets"][start : start + 32]).backward()
            optimizer.step()
        optimizer.zero_grad()
        return model.eval()


@dataclass
class Measured:
    """What a run took.

    Attributes:
        peaks: Node -> highest resident memory while it ran, in bytes.
        seconds: Node -> processor seconds.
        epoch: Processor seconds of an epoch of the first stage, the median.
        checkpoints: Bytes of all checkpoints at the end.
        newest: Bytes of the newest checkpoint.
        disk: Bytes of everything at the end.
    """

    peaks: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    epoch: float = 0.0
    checkpoints: int = 0
    newest: int = 0
    disk: int = 0


class _Meter:
    def __init__(self, measured: Measured) -> None:
        self._measured, self._started = measured, 0.0

    @hook_impl
    def before_node_run(self) -> None:
        gc.collect()
        clear_peak()
        self._started = time.process_time()

    @hook_impl
    def after_dataset_saved(self, node: Node) -> None:
        self._see(node)

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        self._see(node)

    def _see(self, node: Node) -> None:
        measured, name = self._measured, node.name
        measured.peaks[name] = max(measured.peaks.get(name, 0), resident("VmHWM:"))
        measured.seconds[name] = time.process_time() - self._started


def run(case: Case, folder: Path) -> Measured:
    """Runs the pipeline with everything on disk that a project has there.

    Args:
        case: The job.
        folder: An empty folder.
    """
    torch.set_num_threads(1)
    pipeline, measured = create_pipeline(), Measured()
    catalog = prepared(case, folder)
    inputs = _size_of(folder)
    catalog["params:aat"] = MemoryDataset(case.aat)
    hooks: pluggy.PluginManager = _create_hook_manager()
    hooks.register(_Meter(measured))
    SequentialRunner().run(pipeline, catalog, hooks)
    trajectory = catalog["search_trajectory"].load()
    measured.epoch = statistics.median(b - a for a, b in itertools.pairwise(_EPOCHS[: len(trajectory)]))
    checkpoints = sorted((folder / "data/06_models/checkpoints").glob("*/checkpoint-*"))
    measured.checkpoints = sum(map(_size_of, checkpoints))
    measured.newest = _size_of(checkpoints[-1])
    measured.disk = _size_of(folder) - inputs
    return measured


def prepared(case: Case, folder: Path) -> DataCatalog:
    """The catalog of a case, with its model and data on disk.

    Args:
        case: The job.
        folder: An empty folder.
    """
    catalog = _catalog(case, folder)
    catalog["baseline_model"].save(case.model())
    for number, name in enumerate(("train_data", "validation_data", "test_data")):
        catalog[name].save(case.split(case.num_validation if number else case.num_train, number))
    return catalog


def _catalog(case: Case, folder: Path) -> DataCatalog:
    entries = yaml.safe_load(template("catalog_aat.yml"))
    kind = NETS[case.net][0]
    recipe = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": case.arguments}
    entries["baseline_model"] = {
        "type": "kedro_aat.datasets.model.ModelDataset",
        "filepath": "data/06_models/baseline_model",
        "recipe": recipe,
    }
    for entry in entries.values():
        entry["filepath"] = str(folder / entry["filepath"])
    return DataCatalog.from_config(share_trust(entries))


def _size_of(folder: Path) -> int:
    paths = (Path(root, file) for root, _, files in os.walk(folder) for file in files)
    return sum(path.stat().st_size for path in paths)

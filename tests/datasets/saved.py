"""Modules and controllers to save, and what tests compare after loading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.settings import (
    Composite,
    FilterPruning,
    MagnitudeSparsity,
    Quantization,
)
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.datasets.recipe import build_module
from kedro_aat.imports import Imported
from kedro_aat.testing.training import BATCH, sgd, train

INPUTS = BATCH["inputs"]


def built(class_path: str = "tests.nets.SmallNet", seed: int = 0, **init_args: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_module(Imported(class_path=class_path, init_args=init_args))


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(INPUTS)
    return logits


def listed(folder: Path) -> list[str]:
    """All files below a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def filter_pruning_controller(
    rate: float, class_path: str = "tests.nets.SmallNet", batch: Tensor = INPUTS
) -> FilterPruningController:
    made = FilterPruningController(built(class_path), FilterPruning(), example_input=batch)
    made.disable_scheduler()
    made.compression_rate = rate
    return made


def quantization_controller() -> QuantizationController:
    made = QuantizationController(built(num_classes=3))
    made.disable_scheduler()
    train(made.model, sgd(made.model), batch={**BATCH, "targets": BATCH["targets"].clamp_max(2)})
    return made


def sparsity_controller(rate: float, **settings: Any) -> MagnitudeSparsityController:
    made = MagnitudeSparsityController(built(num_classes=3), MagnitudeSparsity(**settings))
    made.disable_scheduler()
    made.compression_rate = rate
    return made


def composite_controller(*others: Any) -> CompositeController:
    settings = Composite(algorithms=(FilterPruning(), Quantization(), *others))
    made = CompositeController(built("tests.nets.SmallNet"), settings, example_input=INPUTS)
    made.disable_scheduler()
    made.compression_rate = 0.5
    train(made.model, sgd(made.model))
    return made

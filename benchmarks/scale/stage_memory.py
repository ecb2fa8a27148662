"""Peak memory of a whole search stage with 100 million weights, against bare training with AdamW.

python -m benchmarks.scale stage_memory [--size 1]
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.scale.bars import Row
from benchmarks.scale.meter import cost_of
from kedro_aat.compression.build import build_controller
from kedro_aat.config import AatSettings
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.stage import SearchStage

_EPOCHS = 3


class _NoWriter:
    """Takes the place of a TensorBoard writer."""

    def __getattr__(self, name: str) -> _NoWriter:
        return self

    def __call__(self, *args: object, **kwargs: object) -> _NoWriter:
        return self


def rows(size: float) -> Iterator[Row]:
    """Measures a perceptron with five layers, batches of 4, each case in a process of its own.

    Args:
        size: In 100 million weights.
    """
    context = multiprocessing.get_context("spawn")
    for what, function, bar in (
        ("bare training", _bare_training, None),
        ("stage of sparsity, distilled", _stage, 10),
    ):
        with context.Pool(1) as pool:
            yield Row(f"{what}: peak above the start", pool.apply(function, (size,)), "x weights", bar)


def _network(size: float) -> tuple[nn.Sequential, int, int]:
    """A perceptron, its width, and the bytes of its weights."""
    torch.set_num_threads(1)
    width = round((size * 1e8 / 5) ** 0.5)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(5)))
    return model, width, sum(weight.nbytes for weight in model.parameters())


def _split(width: int) -> dict[str, Tensor]:
    return {"inputs": torch.randn(16, width), "targets": torch.arange(16) % 10}


def _bare_training(size: float) -> float:
    model, width, weights = _network(size)
    data = _split(width)

    def train() -> None:
        optimizer = torch.optim.AdamW(model.parameters())
        for start in range(0, 16, 4):
            optimizer.zero_grad(set_to_none=True)
            outputs = model(data["inputs"][start : start + 4])
            nn.functional.cross_entropy(outputs, data["targets"][start : start + 4]).backward()
            optimizer.step()

    _, peak = cost_of(train)
    return 1 + peak / weights  # with the model itself


def _stage(size: float) -> float:
    model, width, weights = _network(size)
    metric = {
        "class_path": "torchmetrics.classification.MulticlassAccuracy",
        "init_args": {"num_classes": width, "average": "micro"},
    }
    values: dict[str, Any] = {
        "compression": {"algorithm": "magnitude_sparsity"},
        "search": {"kind": "frontier", "maximal_total_epochs": _EPOCHS},
        "budget": {"max_drop": 0.5},
        "training": {
            "batch_size": 4,
            "device": "cpu",
            "optimizer": {"class_path": "torch.optim.AdamW"},
            "metric": metric,
        },
    }
    settings = AatSettings.model_validate(values)
    stage = SearchStage(
        policy=settings.search,
        training=settings.training,
        minimal_rate=settings.minimal_rate,
        maximal_rate=settings.maximal_rate,
        seed=0,
        time_limit=None,
        identity={},
        ingredients={},
    )
    with tempfile.TemporaryDirectory() as folder:

        def run() -> None:
            # The copy that the pipeline makes: the model stays as the baseline, and teaches.
            compressed = _network(size)[0]
            compressed.load_state_dict(model.state_dict())
            stage.run(
                build_controller(compressed, settings.compression),
                model,
                _split(width),
                _split(width),
                Evaluation(0.5),
                settings.budget.budget(0.5, higher_is_better=True),
                CheckpointStore(Path(folder)),
                lambda run, next_epoch: _NoWriter(),
            )

        _, peak = cost_of(run)
    return 1 + peak / weights

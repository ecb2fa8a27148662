"""A search of a few epochs on a small network, on one or several ranks, in this process or as a command of its own.

As a command, it prints the trajectory: `python -m tests.training.ranks.shared_search FOLDER --devices 2`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.own_buffers import mask_hash
from kedro_aat.config import AatSettings
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.random_state import seed_everything
from kedro_aat.training.records import FineTuned
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.stage import SearchStage

METRIC = {
    "class_path": "torchmetrics.classification.MulticlassAccuracy",
    "init_args": {"num_classes": 3, "average": "micro"},
}
TRAINING: dict[str, Any] = {"batch_size": 30, "device": "cpu", "distillation": None, "metric": METRIC}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "sparsity": {"algorithm": "magnitude_sparsity"},
    "filters": {"algorithm": "filter_pruning"},
    "taylor": {"algorithm": "filter_pruning", "importance": "taylor"},
    "l2": {"algorithm": "filter_pruning"},
    "batch_norm_scale": {"algorithm": "filter_pruning", "importance": "batch_norm_scale", "ranking": "global"},
    "geometric_median": {"algorithm": "filter_pruning", "importance": "geometric_median"},
    "int8": {"algorithm": "quantization"},
}


class SilentWriter:
    """Takes the place of a TensorBoard writer; made anew in each process."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return SilentWriter()

    def __call__(self, *args: Any, **kwargs: Any) -> SilentWriter:
        return self


def silent_writer(run: str, next_epoch: int) -> SilentWriter:
    return SilentWriter()


def split(num_examples: int, seed: int) -> dict[str, Tensor]:
    """Images of three classes, which overlap a little."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (num_examples,), generator=generator)
    patterns = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(num_examples, 2, 6, 6, generator=generator)
    return {"inputs": patterns[targets] + 1.5 * noise, "targets": targets}


def network(norm: str = "batch") -> nn.Module:
    """A convolutional network, in training for a few epochs already."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(8) if norm == "batch" else nn.GroupNorm(2, 8) for _ in range(2)]
    net = nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), norms[0], nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), norms[1], nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)),
    )
    data, optimizer = split(300, 5), torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data["inputs"]), data["targets"]).backward()
        optimizer.step()
    return net.eval()


@dataclass
class Ended:
    """How a search ended: its result, the hash of its masks, and the tensors of the model."""

    result: FineTuned
    masks: str
    model: dict[str, Tensor]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What each epoch found, without its time."""
        return [
            {name: value for name, value in row.plain().items() if name != "seconds"} for row in self.result.history
        ]


def search(
    root: Path,
    *,
    compression: str = "sparsity",
    norm: str = "batch",
    epochs: int = 6,
    policy: str = "frontier",
    num_train: int = 134,
    writer_of: Any = silent_writer,
    train: Any = None,
    **training: Any,
) -> Ended:
    """Runs the search, or continues it."""
    seed_everything(0)
    settings = AatSettings.model_validate(
        {
            "budget": {"max_drop": 0.1},
            "maximal_rate": 0.9,  # beyond, outputs are so small that rounding decides about a few examples
            "search": {"kind": policy, "maximal_total_epochs": epochs},
            "training": TRAINING | training,
            "compression": ALGORITHMS[compression],
        }
    )
    net, train, validation = network(norm), train or split(num_train, 1), split(101, 2)
    stage = SearchStage(
        policy=settings.search,
        training=settings.training,
        minimal_rate=settings.minimal_rate,
        maximal_rate=settings.maximal_rate,
        seed=settings.seed,
        time_limit=None,
        identity=settings.identity(settings.SEARCHED),
        ingredients=settings.identity(settings.SEARCHED, defaults=True),
    )
    judged = TRAINING | {"device": "cpu"}
    evaluation: Evaluation = DefaultTraining(net, settings.training.model_validate(judged), None, validation).validate(
        net
    )
    controller = build_controller(network(norm), settings.compression, example_input=train_input(train))
    if hasattr(controller, "calibrate"):
        controller.calibrate([train_input(train)])
    ended = stage.run(
        controller,
        net,
        train,
        validation,
        evaluation,
        settings.budget.budget(evaluation.metric, higher_is_better=True),
        CheckpointStore(root),
        writer_of,
    )
    model = {name: tensor.clone() for name, tensor in controller.model.state_dict().items()}
    return Ended(ended.fine_tuned, mask_hash(controller.model), model)


def train_input(train: Any) -> Tensor:
    return train["inputs"][:2] if isinstance(train, dict) else torch.zeros(2, 2, 6, 6)


def print_search(folder: Path, **options: Any) -> None:
    """Runs the search, and prints what it found as JSON."""
    ended = search(folder, **options)
    print(json.dumps({"rows": ended.rows, "masks": ended.masks, "rate": ended.result.achieved_rate}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--compression", default="sparsity")
    parser.add_argument("--norm", default="batch")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--sharding", default="none")
    options = vars(parser.parse_args())
    print_search(options.pop("folder"), **options)


if __name__ == "__main__":
    main()

"""A search of a few epochs on a small network, through `SearchStage`; the runs in `tests/saved_by` are of this search.

Weights and data are computed without random numbers, so that they are the same bits on every machine.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.config import AatSettings
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.records import FineTuned
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.stage import SearchStage

SETTINGS: dict[str, Any] = {
    "search": {"kind": "frontier", "maximal_total_epochs": 8},
    "training": {
        "batch_size": 8,
        "device": "cpu",
        "distillation": None,
        "metric": {
            "class_path": "torchmetrics.classification.MulticlassAccuracy",
            "init_args": {"num_classes": 3, "average": "micro"},
        },
    },
}
BASELINE = 0.9
# A policy whose state is that of version 0.1.0.
STEPPING = {
    "kind": "uniform_decrease",
    "initial_training_phase_epochs": 1,
    "patience_epochs": 1,
    "minimal_compression_rate_step": 0.001,
    "maximal_total_epochs": 8,
}


def spread(*shape: int) -> Tensor:
    """Numbers between -1 and 1 that look random, in steps of 1/64."""
    count = torch.arange(int(torch.tensor(shape).prod()))
    return ((count * 7919 % 127).float() / 64 - 1).reshape(shape)


def split(num_examples: int) -> dict[str, Tensor]:
    targets = torch.arange(num_examples) % 3
    return {"inputs": spread(num_examples, 4) + 2 * torch.eye(4)[targets], "targets": targets}


def network() -> nn.Module:
    """A network that classifies the data well."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    weights = {name: spread(*tensor.shape) / 4 for name, tensor in net.state_dict().items()}
    weights["0.weight"] += torch.eye(8, 4)
    weights["2.weight"] += torch.eye(3, 8)
    net.load_state_dict(weights)
    return net


class NoWriter:
    """Takes the place of a TensorBoard writer."""

    def __getattr__(self, name: str) -> Any:
        return NoWriter()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self


@dataclass
class Ended:
    """How a search ended: its result, folder, tensors of the model, epochs that it trained this time, and seconds."""

    result: FineTuned
    folder: Path
    model: dict[str, Tensor]
    trained: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def trajectory(self) -> list[dict[str, Any]]:
        """The history without the times."""
        return [vars(row) | {"seconds": 0.0} for row in self.result.history]


def search(
    root: Path,
    *,
    stop_after: int | None = None,
    fail_after: int | None = None,
    is_later: bool = False,
    max_drop: float = 0.25,
    polish_share: float = 0.4,
    policy: dict[str, Any] | None = None,
    trains: bool = True,
    epochs: int = 8,
    time_limit: float | None = None,
    compression: dict[str, Any] | None = None,
    learning_rate_factor: float = 1.0,
    net: nn.Module | None = None,
    train: Any = None,
    baseline: float = BASELINE,
    **training: Any,
) -> Ended:
    """Runs the search, or continues it.

    Args:
        root: Folder of the store.
        stop_after: Number of epochs after which the run is interrupted; None for never.
        fail_after: Number of epochs after which something fails that is not of the user's; None for never.
        is_later: Whether it counts as the search of a later stage.
        max_drop: The budget.
        polish_share: Share of the epochs that settle on a rate; with 0 an early epoch is the best.
        policy: Settings of another search policy; None for `frontier`.
        trains: Whether the search goes on, or ends with the best so far.
        epochs: Limit of epochs of `frontier`.
        time_limit: Seconds for the search; None for no limit.
        compression: Settings of the algorithm; None for the default.
        learning_rate_factor: Factor on the learning rate.
        net: Another network; it stays as it is.
        train: Another training split.
        baseline: Metric of the uncompressed model.
        **training: Settings of the training that differ from `SETTINGS`.
    """
    changes = {
        "budget": {"max_drop": max_drop},
        "search": policy or SETTINGS["search"] | {"polish_share": polish_share, "maximal_total_epochs": epochs},
        "training": SETTINGS["training"] | training,
    } | ({} if compression is None else {"compression": compression})
    settings = AatSettings.model_validate(SETTINGS | changes)
    stage = SearchStage(
        policy=settings.search,
        training=settings.training,
        minimal_rate=settings.minimal_rate,
        maximal_rate=settings.maximal_rate,
        seed=settings.seed,
        time_limit=time_limit,
        identity=settings.identity(settings.SEARCHED),
        ingredients=settings.identity(settings.SEARCHED, defaults=True),
        learning_rate_factor=learning_rate_factor,
        is_later=is_later,
    )
    net = network() if net is None else net
    controller: ModelController = build_controller(
        copy.deepcopy(net), settings.compression, example_input=split(2)["inputs"]
    )
    trained: list[int] = []

    class Writer(NoWriter):
        def add_scalar(self, name: str, value: float, epoch: int) -> None:
            if name == "metric/validation":
                trained.append(epoch)
            if stop_after is not None and epoch >= stop_after:
                raise KeyboardInterrupt
            if fail_after is not None and epoch >= fail_after and name == "metric/validation":
                raise RuntimeError("stack")

    ended = stage.run(
        controller,
        net,
        split(48) if train is None else train,
        split(24),
        Evaluation(baseline),
        settings.budget.budget(baseline, higher_is_better=True),
        CheckpointStore(root),
        lambda run, next_epoch: Writer(),
        trains=trains,
    )
    model = {name: tensor.clone() for name, tensor in controller.model.state_dict().items()}
    return Ended(ended.fine_tuned, root / ended.run, model, trained, ended.seconds)

"""A search on a task with a rare class, which dies long before the accuracy shows it; through `SearchStage`."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.budget import Budget
from kedro_aat.compression.build import build_controller
from kedro_aat.config import AatSettings
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.random_state import seed_everything
from kedro_aat.training.records import FineTuned
from kedro_aat.training.runner import Evaluation, evaluate
from kedro_aat.training.stage import SearchStage
from tests.training.checkpoints.small_search import NoWriter

RECALL = {
    "class_path": "torchmetrics.classification.MulticlassRecall",
    "init_args": {"num_classes": 3, "average": "none"},
}
PER_CLASS = {"metric": RECALL, "max_drop": 0.1}
RARE = "MulticlassRecall, class 2"
SETTINGS: dict[str, Any] = {
    "search": {"kind": "frontier", "maximal_total_epochs": 12},
    "maximal_rate": 0.98,
    "training": {
        "batch_size": 32,
        "device": "cpu",
        "distillation": None,
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02, "momentum": 0.9}},
        "metric": {
            "class_path": "torchmetrics.classification.MulticlassAccuracy",
            "init_args": {"num_classes": 3, "average": "micro"},
        },
    },
}


def split(num_examples: int, seed: int) -> dict[str, Tensor]:
    """Two classes that one input tells apart, and a rare third one that needs four others."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, 8, generator=generator)
    targets = (inputs[:, 0] > 0).long()
    rare = torch.arange(num_examples) % 25 == 0  # 4%
    signs = torch.randint(0, 2, (num_examples, 4), generator=generator) * 2.0 - 1
    signs[:, 3] = signs[:, :3].prod(1) * torch.where(rare, 1, -1)
    inputs[:, 1:5] = 1.5 * signs + 0.3 * inputs[:, 1:5]
    inputs[:, 1:5] *= torch.where(rare, 1.0, 0.4)[:, None]
    targets[rare] = 2
    return {"inputs": inputs, "targets": targets}


TRAIN, VALIDATION = split(1000, 0), split(1000, 1)


@functools.cache
def network() -> nn.Module:
    """The baseline, trained for some epochs."""
    seed_everything(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(TRAIN["inputs"]), TRAIN["targets"]).backward()
        optimizer.step()
    return net


@dataclass
class Searched:
    """How a search ended, and the budget that it kept."""

    result: FineTuned
    budget: Budget
    model: nn.Module

    @property
    def trajectory(self) -> list[dict[str, Any]]:
        """The history without the times."""
        return [vars(row) | {"seconds": 0.0} for row in self.result.history]

    def recall_of_rare_class(self) -> float:
        """Counted by hand, on the returned model."""
        rare = VALIDATION["targets"] == 2
        with torch.no_grad():
            return float((self.model(VALIDATION["inputs"][rare]).argmax(1) == 2).double().mean())


def search(root: Path, *also: dict[str, Any], max_drop: float = 0.06, **changes: Any) -> Searched:
    """Runs the search, or continues it.

    Args:
        root: Folder of the store.
        *also: The guards.
        max_drop: The budget.
        **changes: Settings that differ from `SETTINGS`.
    """
    changes = {"training": SETTINGS["training"] | changes.pop("training", {}), **changes}
    budget_settings = {"max_drop": max_drop} | ({"also": list(also)} if also else {})
    settings = AatSettings.model_validate(SETTINGS | changes | {"budget": budget_settings})
    settings.check()
    stage = SearchStage(
        policy=settings.search,
        training=settings.training,
        minimal_rate=settings.minimal_rate,
        maximal_rate=settings.maximal_rate,
        seed=settings.seed,
        time_limit=None,
        identity=settings.searched(),
        ingredients=settings.searched(defaults=True),
        guards=settings.budget.also,
    )
    model = copy.deepcopy(network())
    judge = DefaultTraining(model, settings.training, None, VALIDATION, guards=settings.budget.also)
    baseline = evaluate(model, judge.callables().validate)
    budget = settings.budget.budget(baseline.metric, higher_is_better=True, also=baseline.also)
    controller = build_controller(model, settings.compression, example_input=VALIDATION["inputs"][:2])
    ended = stage.run(
        controller,
        network(),
        TRAIN,
        VALIDATION,
        baseline,
        budget,
        CheckpointStore(root),
        lambda *args, **kwargs: NoWriter(),
    )
    return Searched(ended.fine_tuned, ended.budget, controller.strip())


class Constant(nn.Module):
    """A metric that is the same for all models."""

    higher_is_better = True

    def reset(self) -> None:
        """Begins a validation."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds nothing."""

    def compute(self) -> Tensor:
        """Half of everything."""
        return torch.tensor(0.5)


def validate(model: nn.Module) -> Evaluation:
    """A user's validation function, which returns a guard of its own."""
    model.eval()
    outputs = model(VALIDATION["inputs"]).argmax(1)
    is_right = outputs == VALIDATION["targets"]
    return Evaluation(
        float(is_right.double().mean()), is_right, also={"rare": is_right[VALIDATION["targets"] == 2].double().mean()}
    )


def validate_without_guards(model: nn.Module) -> Evaluation:
    """One that forgets it."""
    return Evaluation(validate(model).metric)


def validate_undefined_under_compression(model: nn.Module) -> Evaluation:
    """One whose guard is NaN where the model is compressed far."""
    evaluation = validate(model)
    zeros = max(float((weight == 0).double().mean()) for weight in model.parameters())
    return replace(evaluation, also={"rare": float("nan") if zeros > 0.9 else evaluation.also["rare"]})

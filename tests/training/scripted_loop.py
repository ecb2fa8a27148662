"""A loop over the scripted model, for tests of how loops begin, end and continue."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat import (
    BaseEarlyExitCompressionTrainingLoop,
    TrainingRunner,
    create_accuracy_aware_training_loop,
)
from kedro_aat.training.records import EpochRecord
from tests.scripted import ScriptedController, ScriptedModel

INITIAL_RATE = 0.1
BASELINE = 0.95
FORMULA: dict[str, Any] = {
    **{"base": BASELINE, "a": 0.2, "k": 3.0, "recovery": 0.05, "tau": 1.5, "drift": 0.0, "noise": 0.0},
    **{"clip": True, "cap": 1.0},
}
PARAMS: dict[str, Any] = {
    "maximal_absolute_accuracy_degradation": 0.01,
    "initial_training_phase_epochs": 1,
    "patience_epochs": 2,
    "maximal_total_epochs": 8,
}
# The search stays at each rate for long and turns twice, so the learning rate is scaled between optimizer steps.
PATIENT = PARAMS | {"patience_epochs": 4, "maximal_total_epochs": 16, "lr_reduction_factor": 0.3}


class ScriptedLoop:
    """A scripted model, its controller and a loop, with functions that record how they are called.

    Args:
        mode: Mode of accuracy-aware training.
        baseline: Metric of the uncompressed model.
        is_partial_until_search: Whether the controller counts as partially compressed until the search begins.
        increment: Change of the rate per epoch by the controller's own scheduler.
        params: Parameters of the mode; None for `PARAMS`.
        **loop_args: Further arguments of the loop.
    """

    def __init__(
        self,
        *,
        mode: str = "adaptive_compression_level",
        baseline: float = BASELINE,
        is_partial_until_search: bool = False,
        increment: float = 0.0,
        params: dict[str, Any] | None = None,
        **loop_args: Any,
    ) -> None:
        self.model = ScriptedModel(INITIAL_RATE)
        self.controller = ScriptedController(
            self.model, increment=increment, is_partial_until_search=is_partial_until_search
        )
        config = {"accuracy_aware_training": {"mode": mode, "params": PARAMS if params is None else params}}
        controller: Any = self.controller
        self.loop: BaseEarlyExitCompressionTrainingLoop = create_accuracy_aware_training_loop(
            config, controller, baseline, **{"verbose": False, **loop_args}
        )
        self.learning_rates: list[list[float]] = []
        self.num_configured = 0

    def train(
        self, controller: ScriptedController, model: ScriptedModel, epoch: int, optimizer: Any, lr_scheduler: Any
    ) -> float | None:
        """Counts an epoch, and takes a step in a random direction with every optimizer."""
        optimizers = [] if optimizer is None else optimizer if isinstance(optimizer, list) else [optimizer]
        self.learning_rates.append([each.param_groups[0]["lr"] for each in optimizers])
        model.state[1:] += 1
        for each in optimizers:
            model.weight.grad = torch.randn(1)
            each.step()
        return 1.0 / (epoch + 1)

    @staticmethod
    def validate(model: ScriptedModel, epoch: int) -> float:
        return model.accuracy(FORMULA)

    def sgd(self) -> tuple[Any, Any]:
        self.num_configured += 1
        return torch.optim.SGD(self.model.parameters(), lr=1.0, momentum=0.9), None

    def run(
        self,
        log_dir: str | Path | None,
        train: Callable[..., Any] | None = None,
        validate: Callable[..., Any] | None = None,
        configure: Callable[[], tuple[Any, Any]] | None = None,
        **run_args: Any,
    ) -> nn.Module:
        """Runs the loop and returns the model.

        Args:
            log_dir: Folder of logs and checkpoints.
            train: Training function; None for `self.train`.
            validate: Validation function; None for `self.validate`.
            configure: Makes the optimizers; None for `self.sgd`.
            **run_args: Further arguments of the loop's `run`.
        """
        returned: nn.Module = self.loop.run(
            self.model,
            train or self.train,
            validate or self.validate,
            configure or self.sgd,
            log_dir=log_dir,
            **run_args,
        )
        assert returned is self.model
        return returned

    @property
    def num_trained(self) -> int:
        return len(self.learning_rates)

    @property
    def trained(self) -> list[EpochRecord]:
        """The epochs of the history that trained, without those that only validated."""
        return [record for record in self.loop.history if record.trained]

    @property
    def trajectory(self) -> list[EpochRecord]:
        """The history without the times."""
        return [replace(record, seconds=0.0) for record in self.loop.history]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)


def dump_state(model: Any, controller: Any, runner: TrainingRunner, save_dir: str) -> str:
    """Writes the scripted state in a format of the user's own."""
    path = Path(save_dir) / "own.json"
    path.write_text(json.dumps([*model.state.tolist(), model.weight.item()]))
    return str(path)

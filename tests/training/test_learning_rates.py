"""A factor on the learning rate holds for every optimizer and scheduler, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kedro_aat.errors import ConfigurationError
from kedro_aat.pipelines.digits.baseline import Uncompressed
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.learning_rates import listed
from kedro_aat.training.runner import TrainingRunner
from tests.nets import SmallNet
from tests.training.checkpoints.small_search import search
from tests.training.training_run import HALVING, SGD, TRAIN, VALIDATION, settings, user_function

ONE_CYCLE = {
    "class_path": "torch.optim.lr_scheduler.OneCycleLR",
    "init_args": {"max_lr": 0.1, "total_steps": 8},
}
CYCLIC = {
    "class_path": "torch.optim.lr_scheduler.CyclicLR",
    "init_args": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2},
}
WARM_UP = {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"start_factor": 0.1, "total_iters": 3}}


def runner_of(factor: float, **changes: Any) -> TrainingRunner:
    model = SmallNet()
    training = DefaultTraining(model, settings(**changes), TRAIN, VALIDATION)
    return TrainingRunner(model, Uncompressed(model), training.callables(), learning_rate_factor=factor)


def rates_of(runner: TrainingRunner) -> list[float]:
    return [float(group["lr"]) for optimizer in listed(runner.optimizer) for group in optimizer.param_groups]


def step(runner: TrainingRunner) -> list[float]:
    """Steps optimizers and schedulers, and returns the learning rates of all groups."""
    for one in (*listed(runner.optimizer), *listed(runner.lr_scheduler)):
        one.step()
    return rates_of(runner)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": SGD},
        {"optimizer": "torch.optim.AdamW"},
        {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}},
        {"optimizer": {"class_path": "torch.optim.Adadelta", "init_args": {"rho": 0.5}}},
        {"scheduler": HALVING},
        {"scheduler": WARM_UP, "optimizer": "torch.optim.NAdam"},
        {"scheduler": ONE_CYCLE},
        {"scheduler": CYCLIC},
        {"configure_optimizers": user_function("configure_optimizers")},
        {"configure_optimizers": user_function("configure_two_optimizers")},
        {"configure_optimizers": user_function("configure_groups")},
    ],
    ids=lambda changes: "-".join(str(value).split(".")[-1][:24] for value in changes.values()),
)
@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_all_learning_rates_are_multiplied(changes: dict[str, Any], factor: float) -> None:
    alone, scaled = runner_of(1.0, **changes), runner_of(factor, **changes)
    for runner in (alone, scaled):
        runner.reset_training()
    for _ in range(5):
        assert rates_of(scaled) == pytest.approx([factor * rate for rate in rates_of(alone)])
        step(alone), step(scaled)
    scaled.scale_learning_rate(0.5)  # the factor of the search comes on top
    assert rates_of(scaled) == pytest.approx([0.5 * factor * rate for rate in rates_of(alone)])


@pytest.mark.parametrize("scheduler", [HALVING, ONE_CYCLE, CYCLIC])
def test_resumed_training_is_not_scaled_twice(scheduler: dict[str, Any]) -> None:
    first, second = (runner_of(0.25, scheduler=scheduler) for _ in range(2))
    first.reset_training()
    step(first)
    second.resume(first.checkpoint(0, {}))
    for _ in range(4):
        assert rates_of(second) == rates_of(first)
        assert step(second) == step(first)


def test_stage_trains_with_the_factor(tmp_path: Path) -> None:
    alone = search(tmp_path, optimizer="torch.optim.AdamW", learning_rate_factor=1.0).result.history[1]
    scaled = search(tmp_path / "scaled", optimizer="torch.optim.AdamW", learning_rate_factor=0.25).result.history[1]
    assert scaled.learning_rate == pytest.approx(0.25 * (alone.learning_rate or 0.0))


WITHOUT = user_function("WithoutLearningRate")


@pytest.mark.parametrize("arguments", [{}, {"rate": None}])
def test_optimizer_without_a_learning_rate_is_refused_before_training(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"optimizer: {WITHOUT} has no learning rate.*'lr'"):
        settings(optimizer={"class_path": WITHOUT, "init_args": arguments}).check()


def test_users_optimizer_without_a_learning_rate_is_refused_where_it_has_to_change() -> None:
    own = {"configure_optimizers": user_function("configure_without_learning_rate")}
    with pytest.raises(ConfigurationError, match=r"multiplied by 0\.25, but WithoutLearningRate has none"):
        runner_of(0.25, **own).reset_training()
    runner = runner_of(1.0, **own)
    runner.reset_training()
    assert runner.learning_rate is None
    with pytest.raises(ConfigurationError, match=r"multiplied by 0\.5"):
        runner.scale_learning_rate(0.5)


def test_learning_rate_may_be_a_tensor() -> None:
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": torch.tensor(0.5)}}
    runner = runner_of(0.25, optimizer=optimizer)
    runner.reset_training()
    assert runner.learning_rate == 0.125

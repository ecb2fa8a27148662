"""Optimizers are fused where torch can, and train as those that are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.testing.training import assert_same_bits
from tests.nets import Perceptron, vectors
from tests.training.training_run import TrainingRun, make_sparse, user_function


def optimizer_of(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"optimizer": {"class_path": class_path, "init_args": {"lr": 0.001, **init_args}}}


def is_fused(run: TrainingRun) -> bool:
    return any(group.get("fused") for group in run.runner.optimizer.param_groups)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_optimizers_of_torch_are_fused(name: str) -> None:
    assert is_fused(TrainingRun(**optimizer_of(f"torch.optim.{name}")))


@pytest.mark.parametrize(
    "changes",
    [
        optimizer_of("torch.optim.AdamW", fused=False),
        optimizer_of("torch.optim.AdamW", foreach=True),
        optimizer_of("torch.optim.AdamW", differentiable=True),
        optimizer_of("torch.optim.RMSprop"),
        optimizer_of(user_function("OwnAdam")),
    ],
    ids=["fused: false", "foreach", "differentiable", "not fused in torch", "own class"],
)
def test_what_the_user_chooses_wins(changes: dict[str, Any]) -> None:
    assert not is_fused(TrainingRun(**changes))


class Words(nn.Module):
    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(16, 8, sparse=sparse), nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(tokens).mean(1))
        return logits


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_gradients_are_not_for_fused_optimizers(sparse: bool) -> None:
    data = {"inputs": torch.randint(16, (32, 3)), "targets": torch.arange(32) % 4}
    run = TrainingRun(lambda: Words(sparse=sparse), train=data, validation=data, **optimizer_of("torch.optim.SGD"))
    assert run.train_epochs(1)
    assert is_fused(run) is not sparse


@pytest.mark.parametrize("clips", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_fused_optimizers_train_as_the_others(name: str, precision: str, clips: bool) -> None:
    """With loss scaling, a step whose gradients overflow is left out; with clipping, gradients are clipped unscaled."""
    more: dict[str, Any] = {"gradient_clip_norm": 0.05} if clips else {}
    more["loss"] = {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"reduction": "sum"}}  # overflows at first
    more |= {"train": vectors(96), "validation": vectors(32), "precision": precision}
    runs = [  # without BatchNorms, before which a bias has no gradient but rounding, and Adam would follow that
        TrainingRun(lambda: Perceptron([6, 16, 4]), **more, **optimizer_of(f"torch.optim.{name}", **fused))
        for fused in ({}, {"fused": False})
    ]
    for run in runs:
        run.runner.train_epoch()
    assert [is_fused(run) for run in runs] == [True, False]
    torch.testing.assert_close(runs[0].weights, runs[1].weights, rtol=1e-4, atol=1e-5)
    state = runs[0].training.state_dict()
    assert state == runs[1].training.state_dict()
    assert precision == "fp32" or state["scaler"]["scale"] < 2**16


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_resumed_run_goes_on_bit_for_bit(name: str) -> None:
    old, new = (TrainingRun(compress=make_sparse, **optimizer_of(f"torch.optim.{name}")) for _ in range(2))
    old.train_epochs(2)
    checkpoint = copy.deepcopy(old.runner.checkpoint(0, {}))
    new.runner.resume(checkpoint)
    assert new.train_epochs(2) == old.train_epochs(2)
    assert_same_bits(new.weights, old.weights)


def test_a_run_that_began_without_fused_steps_goes_on_as_it_began() -> None:
    old = TrainingRun(**optimizer_of("torch.optim.AdamW", fused=False))
    new = TrainingRun(**optimizer_of("torch.optim.AdamW"))
    old.train_epochs(1)
    new.runner.resume(copy.deepcopy(old.runner.checkpoint(0, {})))
    assert not is_fused(new)
    assert new.train_epochs(1) == old.train_epochs(1)
    assert_same_bits(new.weights, old.weights)

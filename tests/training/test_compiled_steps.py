"""Compiled steps: model, teacher and losses of large outputs train as eager ones."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from kedro_aat.training import compiling
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.random_state import seed_everything
from tests.nets import Pairs, SmallNet, images
from tests.training.training_run import TRAIN, settings


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Needs no C++ compiler, and counts the graphs."""
    counter = CompileCounterWithBackend("eager")
    compile_with = functools.partial(torch.compile, backend=counter)
    monkeypatch.setattr(torch, "compile", lambda model, mode=None: compile_with(model))
    return counter


def trained(data: Any, *, is_compiled: bool, **changes: Any) -> tuple[list[float], dict[str, Tensor]]:
    seed_everything(0)
    model, teacher = SmallNet(), SmallNet()
    training = DefaultTraining(model, settings(compile=is_compiled, **changes), data, images(16), teacher=teacher)
    optimizer, _ = training.configure_optimizers()
    losses = []
    for epoch in range(2):
        losses.append(training.train_epoch(Unscheduled(), model, epoch=epoch, optimizer=optimizer, lr_scheduler=None))
    return losses, model.state_dict()


class Unscheduled:
    """A controller that does nothing."""

    scheduler: Any

    def __init__(self) -> None:
        self.scheduler = self

    def step(self) -> None: ...

    def loss(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("kind", "is_large"),
    [
        ("softmax", True),
        pytest.param("softmax", False, marks=pytest.mark.slow),
        pytest.param("mse", True, marks=pytest.mark.slow),
    ],
)
def test_compiled_steps_learn_what_eager_ones_do(
    kind: str, is_large: bool, backend: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_large:
        monkeypatch.setattr(compiling, "LARGE", 1)
    data = Pairs(**TRAIN)  # may be augmented, so the teacher answers each step
    more: dict[str, Any] = {"distillation": {"kind": kind}, "precision": "bf16", "gradient_clip_norm": 1.0}
    compiled, eager = (trained(data, is_compiled=each, **more) for each in (True, False))
    assert backend.frame_count == (4 if is_large else 2)  # model, teacher, and both losses
    assert compiled[0] == pytest.approx(eager[0], abs=1e-6)
    torch.testing.assert_close(compiled[1], eager[1])


def test_a_teacher_of_data_that_stay_the_same_is_not_compiled(backend: CompileCounterWithBackend) -> None:
    """It answers once, in batches of another size."""
    trained(TRAIN, is_compiled=True)
    assert backend.frame_count == 1


@pytest.mark.slow
def test_weights_of_examples_and_losses_of_the_user(
    backend: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "LARGE", 1)
    data = {"inputs": TRAIN["inputs"], "targets": TRAIN["targets"], "w": torch.rand(len(TRAIN["targets"]))}
    weighted: dict[str, Any] = {"batch": {"inputs": "inputs", "targets": "targets", "weights": "w"}}
    own: dict[str, Any] = {"loss": "tests.training.test_compiled_steps.OwnLoss"}
    for each, split in ((weighted, data), (own, TRAIN)):
        torch._dynamo.reset()
        backend.frame_count = 0
        compiled, eager = (trained(split, is_compiled=flag, distillation=None, **each) for flag in (True, False))
        assert backend.frame_count == 1
        assert compiled[0] == pytest.approx(eager[0], abs=1e-6)


class OwnLoss(nn.CrossEntropyLoss):
    """May do anything, so it is not compiled."""


def test_outputs_outlive_the_next_run_of_a_cuda_graph() -> None:
    outputs = torch.ones(3)
    for mode, lasts in (("reduce-overhead", True), ("max-autotune", True), ("default", False), (None, False)):
        kept = compiling.lasting(outputs, mode)
        assert (kept.data_ptr() != outputs.data_ptr()) is lasts

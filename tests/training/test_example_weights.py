"""Examples that count by weights in the loss of the training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from kedro_aat.errors import ConfigurationError, DataError
from kedro_aat.training.task_loss import TaskLoss, Weighted
from tests.training.loading.cases import X, Y
from tests.training.loading.test_forms import Run

WEIGHTS = torch.rand(len(X), generator=torch.Generator().manual_seed(0)) * 2


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(X[0].numel(), int(Y.max()) + 1))


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (nn.CrossEntropyLoss(), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])),
        (nn.BCEWithLogitsLoss(), torch.randn(5), torch.tensor([0, 1, 1, 0, 1])),
        (nn.MSELoss(), torch.randn(5, 1), torch.randn(5)),
        (nn.CrossEntropyLoss(), torch.randn(5, 3, 4, 4), torch.randint(3, (5, 4, 4))),
        (lambda outputs, targets: F.l1_loss(outputs, targets, reduction="none"), torch.randn(5), torch.randn(5)),
    ],
)
@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_the_loss_of_each_example_is_multiplied(loss: Any, outputs: Tensor, targets: Tensor, shape: Any) -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0])
    task, before = TaskLoss(loss), getattr(loss, "reduction", None)
    alone = [task(outputs[i : i + 1], targets[i : i + 1]) for i in range(5)]
    expected = sum(float(weight) * each.mean() for weight, each in zip(weights, alone, strict=True)) / 5
    torch.testing.assert_close(task(outputs, Weighted(targets, weights.reshape(shape))), torch.as_tensor(expected))
    assert getattr(loss, "reduction", None) == before


@pytest.mark.parametrize(
    ("loss", "weights"),
    [
        (F.l1_loss, torch.ones(5)),
        (nn.L1Loss(), torch.ones(4)),
        (nn.L1Loss(), torch.ones(5, 2)),
    ],
)
def test_what_gives_no_loss_for_each_example_is_an_error(loss: Any, weights: Tensor) -> None:
    with pytest.raises(ConfigurationError, match=r"batch\.weights: the weights have the shape \("):
        TaskLoss(loss)(torch.randn(5), Weighted(torch.randn(5), weights))


def trained(weights: Tensor | None, *, halve: bool = False) -> tuple[float, dict[str, Tensor]]:
    """The loss and the state of a small model after an epoch on triples."""
    batch: dict[str, Any] = {"inputs": 0, "targets": 1} | ({} if weights is None else {"weights": 2})
    data = TensorDataset(X, Y, WEIGHTS if weights is None else weights)
    run = Run(net, data, batch=batch, distillation=None)
    if halve:
        run.training.halve_batch()
    loss = run.train(0)
    run.training.validate(run.model)  # which reads no weights
    return loss, copy.deepcopy(run.model.state_dict())


def test_weights_reach_the_training_through_the_settings() -> None:
    alike, without = trained(torch.ones(len(X))), trained(None)
    torch.testing.assert_close(alike, without)
    loss, weighted = trained(WEIGHTS)
    assert loss != pytest.approx(without[0], rel=1e-3)
    torch.testing.assert_close((loss, weighted), trained(WEIGHTS, halve=True))
    nothing, state = trained(torch.zeros(len(X)))
    assert nothing == 0.0
    torch.manual_seed(0)
    torch.testing.assert_close(state, net().state_dict())  # what does not count teaches nothing


def test_weights_that_a_batch_lacks_are_named() -> None:
    run = Run(net, TensorDataset(X, Y), batch={"inputs": 0, "targets": 1, "weights": 2}, distillation=None)
    with pytest.raises(DataError, match=r"has no part 2, which training\.batch names"):
        run.train(0)

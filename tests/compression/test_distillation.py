"""The distillation loss of a composite, and its teacher."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.controller import CompressionLoss
from kedro_aat.compression.settings import (
    KnowledgeDistillation,
)
from kedro_aat.errors import ModelError
from kedro_aat.testing.training import small_net
from tests.compression.composites import INPUTS, INT8, MSE, PRUNING, SOFTMAX, SPARSITY, at_rate, compose
from tests.compression.quantization.quantized import run, settled


def test_softmax_compares_softened_probabilities() -> None:
    model = settled(small_net(), INPUTS)
    teacher = copy.deepcopy(model)
    controller = at_rate(SPARSITY, KnowledgeDistillation(type="softmax", scale=2.0, temperature=4.0), model=model)
    model.train()
    outputs = model(INPUTS)
    expected, logits = (each / 4.0 for each in (run(teacher, INPUTS), outputs))
    divergence = (expected.softmax(1) * (expected.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(controller.loss(), 2.0 * 16.0 * divergence)
    torch.testing.assert_close(controller.loss.calculate(), controller.loss())


def test_mse_compares_outputs_and_can_be_minimized() -> None:
    model = settled(small_net(), INPUTS)
    expected = run(copy.deepcopy(model), INPUTS)
    controller = at_rate(SPARSITY, MSE, rate=0.6, model=model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        outputs = model(INPUTS)
        loss = controller.loss()
        torch.testing.assert_close(loss, 0.5 * F.mse_loss(outputs, expected))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(not parameter.requires_grad for parameter in controller.loss.parameters())


def test_loss_is_0_in_evaluation_mode() -> None:
    controller = at_rate(INT8, SOFTMAX)
    assert float(controller.loss()) == 0
    controller.model.train()
    controller.model(INPUTS)
    assert float(controller.loss().detach()) > 0
    run(controller.model, INPUTS)
    assert float(controller.loss()) == 0
    assert type(at_rate(PRUNING, INT8).loss) is CompressionLoss


def test_teacher_is_neither_trained_nor_part_of_the_stripped_model() -> None:
    controller = at_rate(PRUNING, SOFTMAX, INT8)
    names = [name for name, _ in controller.model.named_parameters()]
    assert names == [name for name, _ in small_net().named_parameters()]
    assert any("teacher" in name for name in controller.model.state_dict())
    assert not any("teacher" in name for name in controller.strip().state_dict())
    assert any("teacher" in name for name in controller.model.state_dict())


def test_controller_can_be_copied_between_a_forward_pass_and_its_loss() -> None:
    controller = at_rate(SPARSITY, MSE)
    controller.model.train()
    controller.model(INPUTS)
    twin = copy.deepcopy(controller)
    assert float(controller.loss().detach()) > 0
    assert float(twin.loss()) == 0
    twin.model(INPUTS)
    assert float(twin.loss().detach()) > 0
    with torch.no_grad():
        twin.model.get_parameter("classifier.bias").fill_(9)
    assert torch.equal(controller.loss(), controller.loss())


def test_rebuilt_model_has_the_same_teacher() -> None:
    old = at_rate(SPARSITY, MSE)
    new = at_rate(SPARSITY, MSE, model=settled(small_net(seed=4), INPUTS))
    new.model.load_state_dict(old.model.state_dict())
    new.load_state(json.loads(json.dumps(old.get_state())))
    for controller in (old, new):
        controller.model.train()
        controller.model(INPUTS)
    assert torch.equal(old.loss(), new.loss())
    new.model.load_state_dict({name: each for name, each in old.model.state_dict().items() if "teacher" not in name})


def test_softmax_of_outputs_without_classes_is_an_error() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x).sum(1)
            return out

    controller = compose(SPARSITY, SOFTMAX, model=Sum())
    controller.model.train()
    controller.model(INPUTS)
    with pytest.raises(ModelError, match=r"shape \(16,\): choose mse"):
        controller.loss()

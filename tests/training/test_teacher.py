"""The baseline teaches: what it adds to the loss, and when it is asked."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from kedro_aat.errors import ModelError
from kedro_aat.pipelines.digits.baseline import Uncompressed
from kedro_aat.testing.training import small_net
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.runner import TrainingRunner
from kedro_aat.training.settings import Distillation, TrainingSettings
from kedro_aat.training.teacher import Teacher
from tests.nets import images

LOGITS, TAUGHT = (torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
DATA = images(24)


def teacher(task_loss: Any, **settings: Any) -> Teacher:
    return Teacher(nn.Identity(), Distillation(**settings), task_loss, nullcontext)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_softmax_loss_is_the_divergence_times_the_squared_temperature(temperature: float, weight: float) -> None:
    task = nn.CrossEntropyLoss()
    soft = (TAUGHT / temperature).softmax(1)
    divergence = (soft * (soft.log() - (LOGITS / temperature).log_softmax(1))).sum(1).mean()
    expected = (1 - weight) * task(LOGITS, TARGETS) + weight * temperature**2 * divergence
    got = teacher(task, temperature=temperature, weight=weight).loss(LOGITS, TARGETS, TAUGHT)
    torch.testing.assert_close(got, expected)


def test_loss_is_least_at_the_teachers_own_answer() -> None:
    only = teacher(nn.CrossEntropyLoss(), weight=1.0)
    assert float(only.loss(TAUGHT, TARGETS, TAUGHT)) == pytest.approx(0, abs=1e-6)
    assert float(only.loss(LOGITS, TARGETS, TAUGHT)) > 0.1


def test_dense_predictions_count_each_pixel_once() -> None:
    wide, taught = (each[:, :, None, None].expand(6, 4, 5, 7) for each in (LOGITS, TAUGHT))
    targets = TARGETS[:, None, None].expand(6, 5, 7)
    task = nn.CrossEntropyLoss()
    torch.testing.assert_close(teacher(task).loss(wide, targets, taught), teacher(task).loss(LOGITS, TARGETS, TAUGHT))


def test_softmax_of_outputs_without_classes_is_refused() -> None:
    with pytest.raises(ModelError, match=r"shape \(6,\): choose mse"):
        teacher(nn.MSELoss(), kind="softmax").loss(LOGITS[:, 0], LOGITS[:, 0], TAUGHT[:, 0])


def test_other_losses_compare_outputs_themselves() -> None:
    outputs, taught, targets = torch.rand(5, 1), torch.rand(5, 1), torch.rand(5, 1)
    got = teacher(nn.L1Loss(), weight=0.5).loss(outputs, targets, taught)
    expected = 0.5 * F.l1_loss(outputs, targets) + 0.5 * F.mse_loss(outputs, taught)
    torch.testing.assert_close(got, expected)


# --- within the default training ---------------------------------------------------------------------------------


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return len(DATA["targets"])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return DATA["inputs"][index], DATA["targets"][index]


class Counting(nn.Module):
    """A teacher that counts how often it is asked, and for how many examples."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net(seed=3)
        self.asked: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.asked.append(len(inputs))
        answers: Tensor = self.net(inputs)
        return answers


def settings(**more: Any) -> TrainingSettings:
    return TrainingSettings.model_validate(
        {
            "batch_size": 8,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
            "metric": {"class_path": "torchmetrics.Accuracy", "init_args": {"task": "multiclass", "num_classes": 4}},
            **more,
        }
    )


def trained(data: Any, taught_by: nn.Module | None, num_epochs: int = 2, **more: Any) -> dict[str, Tensor]:
    model = small_net()
    training = DefaultTraining(model, settings(**more), data, DATA, teacher=taught_by)
    runner = TrainingRunner(model, Uncompressed(model), training.callables())
    runner.reset_training()
    for _ in range(num_epochs):
        runner.train_epoch()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_answers_to_examples_that_never_change_are_asked_once() -> None:
    asking = Counting()
    trained(DATA, asking, num_epochs=3)
    assert sum(asking.asked) == len(DATA["targets"]) + 1  # and once to see how large an answer is


def test_answers_to_a_dataset_are_asked_at_each_step() -> None:
    asking = Counting()
    trained(Pairs(), asking, num_epochs=3)
    assert asking.asked == [8] * 9


def test_both_ways_train_alike() -> None:
    ahead, each_time = trained(DATA, Counting()), trained(Pairs(), Counting())
    torch.testing.assert_close(ahead, each_time, rtol=1e-4, atol=1e-5)


def test_teacher_changes_what_is_learned_and_is_not_changed() -> None:
    asking = Counting()
    before = copy.deepcopy(asking.state_dict())
    taught, alone = trained(DATA, asking), trained(DATA, None)
    assert any(not torch.equal(taught[name], tensor) for name, tensor in alone.items())
    assert all(torch.equal(before[name], tensor) for name, tensor in asking.state_dict().items())


def test_no_distillation_asks_nothing() -> None:
    asking = Counting()
    taught, alone = trained(DATA, asking, distillation=None), trained(DATA, None)
    assert not asking.asked
    assert all(torch.equal(taught[name], tensor) for name, tensor in alone.items())


# --- BatchNorm adaptation ----------------------------------------------------------------------------------------


def test_batch_norms_take_their_statistics_anew() -> None:
    model = small_net()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        norm.running_mean.fill_(100.0)
    training = DefaultTraining(model, settings(batch_norm_adaptation_batches=2), DATA, DATA)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    runner = TrainingRunner(model, Uncompressed(model), training.callables())
    runner.adapt()
    assert all(norm.running_mean is not None and norm.running_mean.abs().max() < 10 for norm in norms)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_adaptation_can_be_left_out() -> None:
    training = DefaultTraining(small_net(), settings(batch_norm_adaptation_batches=0), DATA, DATA)
    assert training.callables().adapt is None

"""The baseline as teacher: its loss, and when it runs. And BatchNorm adaptation."""

from __future__ import annotations

import copy
import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.config import AatSettings
from kedro_aat.errors import ModelError
from kedro_aat.pipelines.aat.search import build_controller
from kedro_aat.pipelines.digits.baseline import Uncompressed
from kedro_aat.testing.training import assert_same_bits, small_net
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.runner import TrainingRunner
from kedro_aat.training.settings import Distillation, TrainingSettings
from kedro_aat.training.teacher import Answers, Teacher, as_teacher
from tests.nets import Pairs, images
from tests.training.checkpoints.small_search import search

LOGITS, TEACHER_LOGITS = (torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
DATA = images(24)


def make_teacher(task_loss: Any, **settings: Any) -> Teacher:
    return Teacher(nn.Identity(), Distillation(**settings), task_loss, nullcontext)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_softmax_loss_is_the_divergence_times_the_temperature_squared(temperature: float, weight: float) -> None:
    task = nn.CrossEntropyLoss()
    soft = (TEACHER_LOGITS / temperature).softmax(1)
    divergence = (soft * (soft.log() - (LOGITS / temperature).log_softmax(1))).sum(1).mean()
    expected = (1 - weight) * task(LOGITS, TARGETS) + weight * temperature**2 * divergence
    loss = make_teacher(task, temperature=temperature, weight=weight).loss(
        task(LOGITS, TARGETS), LOGITS, {"": TEACHER_LOGITS}
    )
    torch.testing.assert_close(loss, expected)


def test_loss_is_zero_at_the_teachers_own_outputs() -> None:
    teacher, task_loss = make_teacher(nn.CrossEntropyLoss(), weight=1.0), torch.tensor(1.0)
    assert float(teacher.loss(task_loss, TEACHER_LOGITS, {"": TEACHER_LOGITS})) == pytest.approx(0, abs=1e-6)
    assert float(teacher.loss(task_loss, LOGITS, {"": TEACHER_LOGITS})) > 0.1


def test_dense_predictions_count_each_pixel_once() -> None:
    outputs, teacher_outputs = (each[:, :, None, None].expand(6, 4, 5, 7) for each in (LOGITS, TEACHER_LOGITS))
    teacher, task_loss = make_teacher(nn.CrossEntropyLoss()), torch.tensor(1.0)
    dense = teacher.loss(task_loss, outputs, {"": teacher_outputs})
    torch.testing.assert_close(dense, teacher.loss(task_loss, LOGITS, {"": TEACHER_LOGITS}))


def test_softmax_of_outputs_without_classes_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"shape \(6,\): choose mse"):
        make_teacher(nn.MSELoss(), kind="softmax").loss(LOGITS.mean(), LOGITS[:, 0], {"": TEACHER_LOGITS[:, 0]})


def test_with_other_losses_the_outputs_are_compared() -> None:
    outputs, teacher_outputs, targets = torch.rand(3, 5, 1)
    teacher = make_teacher(nn.L1Loss(), weight=0.5)
    loss = teacher.loss(F.l1_loss(outputs, targets), outputs, {"": teacher_outputs})
    expected = 0.5 * F.l1_loss(outputs, targets) + 0.5 * F.mse_loss(outputs, teacher_outputs)
    torch.testing.assert_close(loss, expected)


class WithDice(nn.Module):
    """Loss of two parts, as for segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.of_pixels = nn.CrossEntropyLoss(ignore_index=255)


@pytest.mark.parametrize("task_loss", [F.cross_entropy, partial(F.cross_entropy, label_smoothing=0.1), WithDice()])
def test_cross_entropy_in_any_form_compares_probabilities(task_loss: Any) -> None:
    expected = make_teacher(nn.CrossEntropyLoss()).loss(LOGITS.mean(), LOGITS, {"": TEACHER_LOGITS})
    assert torch.equal(make_teacher(task_loss).loss(LOGITS.mean(), LOGITS, {"": TEACHER_LOGITS}), expected)


# --- within the default training ---------------------------------------------------------------------------------


class CountingTeacher(nn.Module):
    """Network that records the batch sizes of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net(seed=3)
        self.batch_sizes: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batch_sizes.append(len(inputs))
        outputs: Tensor = self.net(inputs)
        return outputs


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate(
        {
            "device": "cpu",
            "batch_size": 8,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
            "metric": {"class_path": "torchmetrics.Accuracy", "init_args": {"task": "multiclass", "num_classes": 4}},
            **changes,
        }
    )


def train(data: Any, teacher: nn.Module | None, num_epochs: int = 2, **changes: Any) -> dict[str, Tensor]:
    """Trains a small net, and returns its weights and buffers."""
    model = small_net()
    training = DefaultTraining(model, settings(**changes), data, DATA, teacher=teacher)
    runner = TrainingRunner(model, Uncompressed(model), training.callables())
    runner.reset_training()
    for _ in range(num_epochs):
        runner.train_epoch()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_teacher_sees_fixed_examples_once() -> None:
    teacher = CountingTeacher()
    train(DATA, teacher, num_epochs=3)
    assert sum(teacher.batch_sizes) == len(DATA["targets"]) + 1  # one more example shows the shape of the outputs


def test_teacher_sees_a_datasets_examples_at_every_step() -> None:
    teacher = CountingTeacher()
    train(Pairs(**DATA), teacher, num_epochs=3)
    assert teacher.batch_sizes == [8] * 9


class TwoHeads(nn.Module):
    """Returns two outputs, (B, 4) each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = small_net(), small_net(1)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"first": self.first(inputs), "second": self.second(inputs)}


@pytest.mark.parametrize("data", [DATA, Pairs(**DATA)], ids=["answered once", "answered at every step"])
def test_every_output_that_the_loss_reads_is_taught(data: Any) -> None:
    model, teacher = TwoHeads(), TwoHeads()
    with torch.no_grad():
        for head in (teacher.first, teacher.second):
            head.classifier.bias.add_(torch.tensor([3.0, 0.0, 0.0, -3.0]))
    changes = {
        "output": {"first": 1.0, "second": 0.5},
        "distillation": {"weight": 1.0},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}},
    }
    training = DefaultTraining(model, settings(**changes), data, DATA, teacher=teacher)
    inputs = DATA["inputs"]

    def distances() -> list[float]:
        with torch.no_grad():
            taught, learned = teacher.eval()(inputs), model.eval()(inputs)
        return [float((learned[name] - taught[name]).square().mean()) for name in ("first", "second")]

    before = distances()
    runner = TrainingRunner(model, Uncompressed(model), training.callables())
    runner.reset_training()
    for _ in range(5):
        runner.train_epoch()
    assert all(after < 0.7 * first for after, first in zip(distances(), before, strict=True))


def test_precomputed_outputs_train_like_fresh_ones() -> None:
    precomputed, fresh = train(DATA, CountingTeacher()), train(Pairs(**DATA), CountingTeacher())
    torch.testing.assert_close(precomputed, fresh, rtol=1e-4, atol=1e-5)


def test_teacher_changes_the_training_but_not_itself() -> None:
    teacher = CountingTeacher()
    before = copy.deepcopy(teacher.state_dict())
    distilled, alone = train(DATA, teacher), train(DATA, None)
    assert any(not torch.equal(distilled[name], tensor) for name, tensor in alone.items())
    assert_same_bits(teacher.state_dict(), before)


def test_teacher_never_runs_without_distillation() -> None:
    teacher = CountingTeacher()
    undistilled, alone = train(DATA, teacher, distillation=None), train(DATA, None)
    assert not teacher.batch_sizes
    assert_same_bits(undistilled, alone)


def test_one_teacher_answers_once_in_a_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Teacher] = []
    answered: list[int] = []
    make, answer = Teacher.__init__, Teacher.answer

    def init(self: Teacher, *args: Any) -> None:
        made.append(self)
        make(self, *args)

    def counted(self: Teacher, inputs: Tensor) -> Answers:
        answered.append(len(inputs))
        return answer(self, inputs)

    monkeypatch.setattr(Teacher, "__init__", init)
    monkeypatch.setattr(Teacher, "answer", counted)
    search(tmp_path, distillation={})
    assert len(made) == 1
    assert sum(answered) == 48 + 1  # the training examples, and one for the shape
    search(tmp_path, distillation={})
    assert sum(answered) == 48 + 1  # a finished search needs no answers
    made.clear()
    search(tmp_path, distillation={}, train_epoch="tests.training.user_functions.train_epoch")
    assert not made  # a training function of the user's has no use for it


# --- BatchNorm adaptation ----------------------------------------------------------------------------------------


def test_adaptation_recomputes_the_statistics_of_batch_norms() -> None:
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


def test_adaptation_can_be_switched_off() -> None:
    training = DefaultTraining(small_net(), settings(batch_norm_adaptation_batches=0), DATA, DATA)
    assert training.callables().adapt is None


def test_teacher_shares_the_weights_of_the_baseline_and_leaves_it_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    teacher = as_teacher(net)
    assert [weight.data_ptr() for weight in teacher.parameters()] == [weight.data_ptr() for weight in net.parameters()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    teacher.eval().requires_grad_(False)
    teacher.double()
    teacher.train()(torch.randn(3, 4).double())
    assert net.training
    assert all(weight.requires_grad for weight in net.parameters())
    assert_same_bits(net.state_dict(), before)


@pytest.mark.parametrize(
    ("training", "compression", "levels"),
    [
        ({"train_epoch": "tests.nets.images"}, {}, [logging.INFO]),
        ({"train_epoch": "tests.nets.images", "distillation": {}}, {}, [logging.WARNING]),
        ({"train_epoch": "tests.nets.images", "distillation": None}, {}, []),
        ({}, {}, []),
        ({"train_epoch": "tests.nets.images"}, {"algorithm": "knowledge_distillation", "type": "softmax"}, []),
    ],
)
def test_a_training_function_without_a_teacher_is_told_of(
    training: dict[str, Any], compression: dict[str, Any], levels: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Distillation is on unless it is switched off, and only our own training function computes its loss."""
    algorithms = [{"algorithm": "magnitude_sparsity"}, *([compression] if compression else [])]
    settings = AatSettings.model_validate(
        {
            "budget": {"max_drop": 0.1},
            "search": {"kind": "frontier", "maximal_total_epochs": 2},
            "compression": algorithms if compression else algorithms[0],
            "second_stage": None,
            "training": {"metric": "torchmetrics.MeanMetric", "loss": "torch.nn.CrossEntropyLoss", **training},
        }
    )
    caplog.set_level(logging.INFO, "kedro_aat")
    baseline: Any = None  # not read
    build_controller(small_net(), baseline, settings)
    told = [record for record in caplog.records if "The baseline does not teach" in record.getMessage()]
    assert [record.levelno for record in told] == levels
    assert all("training.train_epoch (tests.nets.images)" in record.getMessage() for record in told)

"""The default training: epochs, gradients, compression, learning rates, and the user's own functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from kedro_aat.compression.controller import CompressionReport, rates_of
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.pipelines.digits.baseline import Uncompressed
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.random_state import seed_everything
from tests.nets import Perceptron, SmallNet, images, vectors
from tests.training.training_run import (
    HALVING,
    METRIC,
    VALIDATION,
    TrainingRun,
    make_sparse,
    plain_sgd,
    user_function,
)
from tests.training.user_functions import Call

# --- training and validation ---------------------------------------------------------------------------------


def test_loss_falls_and_metric_rises() -> None:
    run = TrainingRun()
    before = run.runner.validate().metric
    losses = run.train_epochs(6)
    assert losses[-1] < 0.5 * losses[0]
    assert run.runner.validate().metric > max(before, 0.7)


def test_epoch_equals_a_loop_written_by_hand() -> None:
    """The same batches give the same mean loss and, bit for bit, the same weights."""
    run = TrainingRun()
    seed_everything(0)
    model = SmallNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    losses = []
    for inputs, targets in run.training.train_batches(0):
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert run.runner.train_epoch() == pytest.approx(sum(losses) / 6, rel=1e-6)
    assert_same_bits(run.weights, dict(model.state_dict()))


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_metric_equals_torchmetrics_on_the_whole_split(average: Any) -> None:
    run = TrainingRun(metric=METRIC | {"init_args": {"num_classes": 4, "average": average}})
    run.train_epochs(2)
    run.model.eval()
    with torch.no_grad():
        outputs = run.model(VALIDATION["inputs"])
    by_hand = torchmetrics.functional.accuracy(
        outputs, VALIDATION["targets"], task="multiclass", num_classes=4, average=average
    )
    for _ in range(2):  # a second validation does not add to the first
        assert run.runner.validate().metric == pytest.approx(float(by_hand), abs=1e-7)


def test_regression_with_a_metric_that_should_be_low() -> None:
    inputs = vectors(64)["inputs"]
    data = {"inputs": inputs, "targets": inputs[:, :1] - inputs[:, 1:2]}
    metric = "torchmetrics.MeanSquaredError"
    run = TrainingRun(lambda: Perceptron([6, 1]), train=data, validation=data, loss="torch.nn.MSELoss", metric=metric)
    losses = run.train_epochs(5)
    assert run.training.settings.direction() is False
    with torch.no_grad():
        by_hand = float(F.mse_loss(run.model(inputs), data["targets"]))
    assert run.runner.validate().metric == pytest.approx(by_hand, rel=1e-5)
    assert by_hand < losses[0]


def test_loss_that_holds_a_tensor() -> None:
    weights = [1.0, 0.0, 0.5, 0.0]
    loss = {"class_path": user_function("WeightedLoss"), "init_args": {"weights": weights}}
    run = TrainingRun(loss=loss, train=images(16), optimizer=plain_sgd(0.0))
    ((inputs, targets),) = run.training.train_batches(0)
    by_hand = F.cross_entropy(run.model.train()(inputs), targets, torch.tensor(weights))
    assert run.runner.train_epoch() == pytest.approx(float(by_hand.detach()), rel=1e-6)


def test_model_is_in_training_mode_only_while_it_trains() -> None:
    run, modes = TrainingRun(), list[bool]()
    run.model.register_forward_hook(lambda module, args, out: modes.append(module.training))
    run.train_epochs(2)
    assert modes == ([True] * 6 + [False] * 3) * 2


# --- gradient clipping ---------------------------------------------------------------------------------------


def norm_of_one_step(run: TrainingRun) -> float:
    before = run.weights
    run.runner.train_epoch()
    parameters = dict(run.model.named_parameters())
    return float(torch.cat([(after.detach() - before[name]).flatten() for name, after in parameters.items()]).norm())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_norm_of_the_gradients_is_limited(precision: str) -> None:
    """A step of plain SGD with learning rate 1 is the gradient, so its norm is the gradient's."""
    one_batch: dict[str, Any] = {"train": images(16), "optimizer": plain_sgd(), "precision": precision}
    unlimited = norm_of_one_step(TrainingRun(**one_batch))
    assert unlimited > 0.1
    assert norm_of_one_step(TrainingRun(**one_batch, gradient_clip_norm=0.05)) == pytest.approx(0.05, rel=1e-3)
    assert norm_of_one_step(TrainingRun(**one_batch, gradient_clip_norm=100.0)) == pytest.approx(unlimited, rel=1e-3)


def test_norm_covers_the_gradients_of_both_optimizers() -> None:
    run = TrainingRun(
        train=images(16),
        configure_optimizers="tests.training.user_functions.configure_two_optimizers",
        gradient_clip_norm=0.05,
    )
    assert norm_of_one_step(run) == pytest.approx(0.05, rel=1e-3)


# --- compression while training ------------------------------------------------------------------------------


class CountingController(Uncompressed):
    """Counts its steps, and adds 10 to the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.steps = 0
        self.loss = lambda: torch.tensor(10.0)  # type: ignore[assignment]

    def step(self, next_step: int | None = None) -> None:
        self.steps += 1


def test_controller_is_stepped_and_its_loss_added() -> None:
    run, plain = TrainingRun(compress=CountingController), TrainingRun()
    assert run.train_epochs(1)[0] == pytest.approx(plain.train_epochs(1)[0] + 10.0, rel=1e-5)
    assert isinstance(run.controller, CountingController)
    assert run.controller.steps == 6


@pytest.mark.parametrize("changes", [{}, {"channels_last": True}, {"precision": "bf16"}, {"precision": "fp16"}])
def test_masks_stay_exact(changes: dict[str, Any]) -> None:
    run = TrainingRun(compress=make_sparse, **changes)
    for rate in (0.6, 0.9, 0.3):
        run.controller.compression_rate = rate
        run.train_epochs(1)
        assert run.controller.compression_rate == round(rate * 680) / 680


@pytest.mark.parametrize(
    ("steps_per_epoch", "expected"),
    [
        (6, [0.2, 0.2, 0.4, 0.4, 0.6, 0.6]),
        (12, [0.2, 0.2, 0.2, 0.2, 0.4, 0.4]),  # the epoch has only half of the expected steps
        (3, [0.2, 0.4, 0.6, 0.6, 0.6, 0.6]),
        (None, [0.6] * 6),
    ],
)
def test_rates_follow_their_path_and_stay_at_its_end(steps_per_epoch: int | None, expected: list[float]) -> None:
    def compress(model: nn.Module) -> MagnitudeSparsityController:
        return MagnitudeSparsityController(model, steps_per_epoch=steps_per_epoch)

    run, rates = TrainingRun(compress=compress), list[float]()
    run.model.register_forward_hook(lambda *_: rates.append(rates_of(run.controller).requested_rate))
    run.runner.set_rate((0.2, 0.4, 0.6))
    run.runner.train_epoch()
    run.runner.finish_rate_path(0.6)
    assert rates == expected
    assert rates_of(run.controller) == CompressionReport(0.6, 408 / 680)
    rates.clear()
    run.runner.train_epoch()  # the search set no path for this epoch
    assert rates == [0.6] * 6


# --- learning rates ------------------------------------------------------------------------------------------


def test_scheduler_steps_after_each_epoch() -> None:
    run = TrainingRun(scheduler=HALVING, optimizer=plain_sgd(0.1))
    rates = [run.runner.learning_rate for _ in range(3) if run.train_epoch() is not None]
    assert rates == pytest.approx([0.05, 0.025, 0.0125])


def test_scheduler_steps_after_each_optimizer_step() -> None:
    run = TrainingRun(scheduler=HALVING, scheduler_interval="step", optimizer=plain_sgd(0.1))
    run.train_epoch()
    assert run.runner.learning_rate == pytest.approx(0.1 / 2**6)
    run.train_epoch()
    assert run.runner.learning_rate == pytest.approx(0.1 / 2**12)


def test_plateau_scheduler_receives_the_metric() -> None:
    plateau = {
        "class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "init_args": {"mode": "max", "patience": 0, "factor": 0.1},
    }
    run = TrainingRun(scheduler=plateau, optimizer=plain_sgd(0.1), validate=user_function("validate"))
    run.train_epoch()
    assert run.runner.lr_scheduler.best == 0.75  # what the validation function always returns
    assert run.runner.learning_rate == 0.1
    run.train_epoch()
    assert run.runner.learning_rate == pytest.approx(0.01)


def test_learning_rate_is_constant_without_a_scheduler() -> None:
    run = TrainingRun(optimizer=plain_sgd(0.1))
    run.train_epochs(2)
    assert run.runner.learning_rate == 0.1


def test_each_phase_has_a_new_optimizer() -> None:
    run = TrainingRun(scheduler=HALVING)
    first = run.runner.optimizer
    run.train_epochs(1)
    run.runner.reset_training()
    assert run.runner.optimizer is not first
    assert run.runner.learning_rate == 0.03


# --- the user's own functions -------------------------------------------------------------------------------


def test_users_training_function_receives_the_batches(calls: list[Call]) -> None:
    run, plain = TrainingRun(train_epoch=user_function("train_epoch")), TrainingRun()
    assert [run.runner.train_epoch() for _ in range(2)] == [0.25, 0.25]
    assert [(name, arguments["epoch"]) for name, arguments in calls] == [("train_epoch", 0), ("train_epoch", 1)]
    for epoch, (_, arguments) in enumerate(calls):
        assert isinstance(arguments["optimizer"], Optimizer)
        expected_batches = run.training.train_batches(epoch)
        for (inputs, targets), expected in zip(arguments["data"], expected_batches, strict=True):
            assert torch.equal(inputs, expected[0])
            assert torch.equal(targets, expected[1])
    plain.train_epochs(2)
    torch.testing.assert_close(run.model.get_parameter("conv.weight"), plain.model.get_parameter("conv.weight"))


def test_users_training_function_may_take_no_data(calls: list[Call]) -> None:
    run = TrainingRun(train_epoch=user_function("train_without_data"))
    assert run.runner.train_epoch() is None
    assert {"epoch", "optimizer", "lr_scheduler"} <= calls[0][1].keys()


def test_users_validation_function_receives_the_batches(calls: list[Call]) -> None:
    run = TrainingRun(validate=user_function("validate"))
    run.train_epoch()
    for _ in range(2):  # the batches can be read repeatedly
        assert run.runner.validate().metric == 0.75
    assert [arguments["epoch"] for _, arguments in calls] == [1, 1, 1]
    for _, arguments in calls:
        assert torch.equal(torch.cat(arguments["data"]), VALIDATION["targets"])
    assert run.training.settings.direction() is True


def test_users_validation_function_may_take_the_model_alone() -> None:
    run = TrainingRun(validate=user_function("validate_without_data"))
    assert run.runner.validate().metric == 0.5


def test_users_optimizers(calls: list[Call]) -> None:
    run = TrainingRun(configure_optimizers=user_function("configure_optimizers"))
    assert run.runner.learning_rate == 0.125
    assert calls[0][1]["model"] is run.model
    losses = run.train_epochs(4)
    assert losses[-1] < losses[0]


def test_users_early_stopping_and_learning_rates(calls: list[Call]) -> None:
    run = TrainingRun(
        early_stopping=user_function("early_stopping"),
        update_learning_rate=user_function("update_learning_rate"),
        scheduler=HALVING,
        optimizer=plain_sgd(0.1),
    )
    assert run.runner.stops_early(0.6)
    assert not run.runner.stops_early(0.4)
    loss = run.train_epoch()
    assert run.runner.learning_rate == 0.1
    ((name, arguments),) = calls
    assert name == "update_learning_rate"
    assert (arguments["epoch"], arguments["loss"]) == (1, loss)
    assert arguments["metric"] == run.runner.current_val_metric_value

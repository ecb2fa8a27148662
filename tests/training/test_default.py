"""None"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from kedro_aat.compression.controller import CompressionReport, rates_of
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.pipelines.digits.baseline import Uncompressed
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.random_state import seed_everything
from tests.nets import Pairs, Perceptron, Probe, SmallNet, images, vectors
from tests.training import user_functions
from tests.training.training_run import (
    HALVING,
    METRIC,
    VALIDATION,
    TrainingRun,
    masked,
    named,
    plain_sgd,
    probed,
)


@pytest.fixture(autouse=True)
def calls() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What the functions in `user_functions` were called with."""
    user_functions.CALLS.clear()
    yield user_functions.CALLS
    user_functions.CALLS.clear()


# --- training and validation -----------------------------------------------------------------------------------


def test_loss_falls_and_metric_rises() -> None:
    run = TrainingRun()
    before = run.runner.validate().metric
    losses = run.epochs(6)
    assert losses[-1] < 0.5 * losses[0]
    assert run.runner.validate().metric > max(before, 0.7)


def test_epoch_is_what_a_plain_loop_does() -> None:
    """Same batches, written out by hand: same mean loss, and the same weights bit for bit."""
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
def test_metric_is_that_of_torchmetrics_over_the_whole_split(average: Any) -> None:
    run = TrainingRun(metric=METRIC | {"init_args": {"num_classes": 4, "average": average}})
    run.epochs(2)
    run.model.eval()
    with torch.no_grad():
        outputs = run.model(VALIDATION["inputs"])
    by_hand = torchmetrics.functional.accuracy(
        outputs, VALIDATION["targets"], task="multiclass", num_classes=4, average=average
    )
    for _ in range(2):  # a second validation does not add to the first
        assert run.runner.validate().metric == pytest.approx(float(by_hand), abs=1e-7)


def test_regression_with_a_metric_of_which_less_is_better() -> None:
    inputs = torch.randn(64, 6)
    data = {"inputs": inputs, "targets": inputs[:, :1] - inputs[:, 1:2]}
    metric = "torchmetrics.MeanSquaredError"
    run = TrainingRun(lambda: Perceptron([6, 1]), train=data, validation=data, loss="torch.nn.MSELoss", metric=metric)
    losses = run.epochs(5)
    assert run.training.settings.direction() is False
    with torch.no_grad():
        by_hand = float(F.mse_loss(run.model(inputs), data["targets"]))
    assert run.runner.validate().metric == pytest.approx(by_hand, rel=1e-5)
    assert by_hand < losses[0]


def test_loss_with_tensors_of_its_own() -> None:
    weights = [1.0, 0.0, 0.5, 0.0]
    loss = {"class_path": named("WeightedLoss"), "init_args": {"weights": weights}}
    run = TrainingRun(loss=loss, train=images(16), optimizer=plain_sgd(0.0))
    ((inputs, targets),) = run.training.train_batches(0)
    by_hand = F.cross_entropy(run.model.train()(inputs), targets, torch.tensor(weights))
    assert run.runner.train_epoch() == pytest.approx(float(by_hand.detach()), rel=1e-6)


def test_validation_judges_in_evaluation_mode_and_training_trains_in_training_mode() -> None:
    run, modes = TrainingRun(), list[bool]()
    run.model.register_forward_hook(lambda module, args, out: modes.append(module.training))
    run.epochs(2)
    assert modes == ([True] * 6 + [False] * 3) * 2


# --- precision, memory format, clipping, compilation -----------------------------------------------------------


def output_types(model: nn.Module) -> set[torch.dtype]:
    assert isinstance(model, Probe)
    return {out.dtype for out in model.outputs}


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision(precision: str, dtype: torch.dtype) -> None:
    run = TrainingRun(probed, precision=precision)
    losses = run.epochs(6)
    assert output_types(run.model) == {dtype}
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    assert losses[-1] < 0.5 * losses[0]
    assert 0.7 < run.runner.validate().metric <= 1


def test_full_precision_has_no_autocast() -> None:
    run = TrainingRun(probed)
    run.epochs(1)
    assert output_types(run.model) == {torch.float32}


def test_scaled_loss_gives_the_gradients_of_the_loss() -> None:
    """A step with plain SGD is the gradient itself: in fp16 it is scaled up and down again."""
    steps = {}
    for precision in ("fp32", "fp16"):
        run = TrainingRun(precision=precision, train=images(16), optimizer=plain_sgd(1e-3))
        before = run.weights
        run.runner.train_epoch()
        steps[precision] = run.weights["conv.weight"] - before["conv.weight"]
    torch.testing.assert_close(steps["fp16"], steps["fp32"], rtol=0.05, atol=1e-6)


def test_state_of_the_loss_scaler_is_in_the_checkpoint() -> None:
    old, new = TrainingRun(precision="fp16"), TrainingRun(precision="fp16")
    for _ in range(2):
        old.epoch()
    checkpoint = copy.deepcopy(old.runner.checkpoint(0, {}))
    scaler = checkpoint.training["callables"]["scaler"]
    assert scaler["_growth_tracker"] > 0  # it has counted good steps
    new.runner.resume(checkpoint)
    assert new.training.state_dict() == old.training.state_dict()
    assert new.epoch() == old.epoch()
    assert_same_bits(new.weights, old.weights)


def test_new_phase_has_a_new_loss_scaler() -> None:
    run = TrainingRun(precision="fp16")
    at_first = run.training.state_dict()
    run.epochs(1)
    assert run.training.state_dict() != at_first
    run.runner.reset_training()
    assert run.training.state_dict() == at_first


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_metric_is_given_outputs_in_full_precision(precision: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    run = TrainingRun(precision=precision, metric=named("Types"))
    assert run.runner.validate().metric == 1.0
    assert {given["outputs"] for _, given in calls} == {torch.float32}


def test_channels_last() -> None:
    def make() -> nn.Module:
        return Probe(SmallNet(in_channels=3))

    train, validation = images(96, num_channels=3), images(40, num_channels=3, seed=1)
    run, plain = (TrainingRun(make, train=train, validation=validation, channels_last=last) for last in (True, False))
    assert run.epochs(1) == pytest.approx(plain.epochs(1), rel=1e-4)
    assert batch_formats(run.model) == {torch.channels_last}
    assert batch_formats(plain.model) == {torch.contiguous_format}
    assert not run.model.get_parameter("inner.conv.weight").is_contiguous()
    assert run.runner.validate().metric == plain.runner.validate().metric


def batch_formats(model: nn.Module) -> set[torch.memory_format]:
    assert isinstance(model, Probe)
    formats = (torch.contiguous_format, torch.channels_last)
    return {each for batch in model.batches for each in formats if batch.is_contiguous(memory_format=each)}


def test_channels_last_leaves_other_inputs_alone() -> None:
    run = TrainingRun(lambda: Perceptron([6, 4]), train=vectors(32), validation=vectors(32), channels_last=True)
    assert run.epochs(1)


def norm_of_one_step(run: TrainingRun) -> float:
    before = run.weights
    run.runner.train_epoch()
    parameters = dict(run.model.named_parameters())
    return float(torch.cat([(now.detach() - before[name]).flatten() for name, now in parameters.items()]).norm())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_norm_of_the_gradients_is_limited(precision: str) -> None:
    """A step of plain SGD with learning rate 1 is as long as the gradient."""
    one_batch: dict[str, Any] = {"train": images(16), "optimizer": plain_sgd(), "precision": precision}
    free = norm_of_one_step(TrainingRun(**one_batch))
    assert free > 0.1
    assert norm_of_one_step(TrainingRun(**one_batch, gradient_clip_norm=0.05)) == pytest.approx(0.05, rel=1e-3)
    assert norm_of_one_step(TrainingRun(**one_batch, gradient_clip_norm=100.0)) == pytest.approx(free, rel=1e-3)


def test_norm_is_that_of_all_gradients_together_with_two_optimizers() -> None:
    run = TrainingRun(
        train=images(16),
        configure_optimizers="tests.training.user_functions.configure_two_optimizers",
        gradient_clip_norm=0.05,
    )
    assert norm_of_one_step(run) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_model_trains_as_the_model_does() -> None:
    torch._dynamo.reset()
    runs = [TrainingRun(compress=masked, compile=compiled) for compiled in (True, False)]
    losses = []
    for run in runs:
        losses.append(run.epochs(2))
        run.controller.compression_rate = 0.8
        losses[-1] += run.epochs(1)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert runs[0].controller.compression_rate == runs[1].controller.compression_rate == 544 / 680
    assert list(runs[0].model.state_dict()) == list(runs[1].model.state_dict())


# --- compression while training --------------------------------------------------------------------------------


class Counting(Uncompressed):
    """Notes the calls of a training function, and adds a loss of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.steps = 0
        self.loss = lambda: torch.tensor(10.0)  # type: ignore[assignment]

    def step(self, next_step: int | None = None) -> None:
        self.steps += 1


def test_controller_is_stepped_and_its_loss_added() -> None:
    run, plain = TrainingRun(compress=Counting), TrainingRun()
    assert run.epochs(1)[0] == pytest.approx(plain.epochs(1)[0] + 10.0, rel=1e-5)
    assert isinstance(run.controller, Counting)
    assert run.controller.steps == 6


@pytest.mark.parametrize("more", [{}, {"channels_last": True}, {"precision": "bf16"}, {"precision": "fp16"}])
def test_masks_stay_exact(more: dict[str, Any]) -> None:
    run = TrainingRun(compress=masked, **more)
    for rate in (0.6, 0.9, 0.3):
        run.controller.compression_rate = rate
        run.epochs(1)
        assert run.controller.compression_rate == round(rate * 680) / 680


@pytest.mark.parametrize(
    ("steps_per_epoch", "expected"),
    [
        (6, [0.2, 0.2, 0.4, 0.4, 0.6, 0.6]),
        (12, [0.2, 0.2, 0.2, 0.2, 0.4, 0.4]),  # the epoch is shorter than was thought
        (3, [0.2, 0.4, 0.6, 0.6, 0.6, 0.6]),
        (None, [0.6] * 6),
    ],
)
def test_path_of_rates_is_followed_and_ends_at_its_last(steps_per_epoch: int | None, expected: list[float]) -> None:
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
    run.runner.train_epoch()  # of which the search asked for no other rate
    assert rates == [0.6] * 6


# --- learning rates --------------------------------------------------------------------------------------------


def test_scheduler_steps_after_each_epoch() -> None:
    run = TrainingRun(scheduler=HALVING, optimizer=plain_sgd(0.1))
    rates = [run.runner.learning_rate for _ in range(3) if run.epoch() is not None]
    assert rates == pytest.approx([0.05, 0.025, 0.0125])


def test_scheduler_steps_after_each_optimizer_step() -> None:
    run = TrainingRun(scheduler=HALVING, scheduler_interval="step", optimizer=plain_sgd(0.1))
    run.epoch()
    assert run.runner.learning_rate == pytest.approx(0.1 / 2**6)
    run.epoch()
    assert run.runner.learning_rate == pytest.approx(0.1 / 2**12)


def test_scheduler_that_waits_for_a_plateau_is_told_the_metric() -> None:
    plateau = {
        "class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "init_args": {"mode": "max", "patience": 0, "factor": 0.1},
    }
    run = TrainingRun(scheduler=plateau, optimizer=plain_sgd(0.0))  # nothing is learnt, so the metric never rises
    run.epochs(2)
    assert run.runner.lr_scheduler.best == run.runner.validate().metric
    assert run.runner.learning_rate == 0.0


def test_without_a_scheduler_the_learning_rate_stays() -> None:
    run = TrainingRun(optimizer=plain_sgd(0.1))
    run.epochs(2)
    assert run.runner.learning_rate == 0.1


def test_optimizer_is_configured_anew_for_each_phase() -> None:
    run = TrainingRun(scheduler=HALVING)
    first = run.runner.optimizer
    run.epochs(1)
    run.runner.reset_training()
    assert run.runner.optimizer is not first
    assert run.runner.learning_rate == 0.03


# --- functions of the user's own -------------------------------------------------------------------------------


def test_training_function_of_the_users_own_is_given_the_batches(calls: list[tuple[str, dict[str, Any]]]) -> None:
    run, plain = TrainingRun(train_epoch=named("train_epoch")), TrainingRun()
    assert [run.runner.train_epoch() for _ in range(2)] == [0.25, 0.25]
    assert [(name, given["epoch"]) for name, given in calls] == [("train_epoch", 0), ("train_epoch", 1)]
    for epoch, (_, given) in enumerate(calls):
        assert isinstance(given["optimizer"], Optimizer)
        for (inputs, targets), (mine, my) in zip(given["data"], run.training.train_batches(epoch), strict=True):
            assert torch.equal(inputs, mine)
            assert torch.equal(targets, my)
    plain.epochs(2)
    torch.testing.assert_close(run.model.get_parameter("conv.weight"), plain.model.get_parameter("conv.weight"))


def test_training_function_that_takes_no_data(calls: list[tuple[str, dict[str, Any]]]) -> None:
    run = TrainingRun(train_epoch=named("train_without_data"))
    assert run.runner.train_epoch() is None
    assert {"epoch", "optimizer", "lr_scheduler"} <= calls[0][1].keys()


def test_validation_function_of_the_users_own(calls: list[tuple[str, dict[str, Any]]]) -> None:
    run = TrainingRun(validate=named("validate"))
    run.epoch()
    for _ in range(2):  # the batches can be gone through again
        assert run.runner.validate().metric == 0.75
    assert [given["epoch"] for _, given in calls] == [1, 1, 1]
    for _, given in calls:
        assert torch.equal(torch.cat(given["data"]), VALIDATION["targets"])
    assert run.training.settings.direction() is True


def test_validation_function_that_takes_the_model_alone() -> None:
    run = TrainingRun(validate=named("validate_the_model_alone"))
    assert run.runner.validate().metric == 0.5


def test_optimizers_of_the_users_own(calls: list[tuple[str, dict[str, Any]]]) -> None:
    run = TrainingRun(configure_optimizers=named("configure_optimizers"))
    assert run.runner.learning_rate == 0.125
    assert calls[0][1]["model"] is run.model
    losses = run.epochs(4)
    assert losses[-1] < losses[0]


def test_early_stopping_and_learning_rates_of_the_users_own(calls: list[tuple[str, dict[str, Any]]]) -> None:
    run = TrainingRun(
        early_stopping=named("early_stopping"),
        update_learning_rate=named("update_learning_rate"),
        scheduler=HALVING,
        optimizer=plain_sgd(0.1),
    )
    assert run.runner.stops_early(0.6)
    assert not run.runner.stops_early(0.4)
    loss = run.epoch()
    assert run.runner.learning_rate == 0.1
    ((name, given),) = calls
    assert name == "update_learning_rate"
    assert (given["epoch"], given["loss"]) == (1, loss)
    assert given["metric"] == run.runner.current_val_metric_value


# --- no waiting for the device ---------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a tensor's value (`item()`, `float()`, `if tensor`)."""

    WAITING = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.WAITING
        return func(*args, **(kwargs or {}))


def reads(run: TrainingRun, *, training: bool) -> int:
    with Reads() as counted:
        _ = run.runner.train_epoch() if training else run.runner.validate()
    return int(counted.count)


def test_reads_are_counted() -> None:
    tensor = torch.ones(3)
    with Reads() as counted:
        float(tensor.sum())
        tensor[0].item()
        bool(tensor.any())
        tensor.nonzero()
    assert counted.count == 4


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("as_dictionary", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"precision": "bf16", "gradient_clip_norm": 1.0},
        {"scheduler": HALVING, "scheduler_interval": "step"},
        {"channels_last": True},
    ],
    ids=["plain", "bf16 and clipping", "scheduler", "channels last"],
)
def test_host_reads_once_an_epoch_however_many_the_steps(
    more: dict[str, Any], as_dictionary: bool, compressed: bool
) -> None:
    counts = []
    for num_steps in (2, 12):
        data: Any = images(16 * num_steps)
        data = data if as_dictionary else Pairs(**data)
        compress = masked if compressed else Uncompressed
        run = TrainingRun(compress=compress, train=data, validation=data, **more)
        counts.append([reads(run, training=training) for training in (True, False)])
    assert counts[0] == counts[1]
    # The loss, or the metric and what is checked of it; and the loader, which draws a number on the host.
    assert max(counts[0]) <= 4

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from kedro_aat import TrainingRunner
from kedro_aat.compression.controller import CompressionController, CompressionReport, Uncompressed, report
from kedro_aat.compression.magnitude import MagnitudeSparsityController
from kedro_aat.errors import ConfigurationError, DataError
from kedro_aat.training.epoch import (
    DefaultTraining,
    as_dataset,
    data_fingerprint,
    example_input,
    pick_device,
    seed_everything,
)
from kedro_aat.training.settings import TrainingSettings
from tests.compression.training import assert_same_bits
from tests.nets import Pairs, Perceptron, Probe, SmallNet, images, vectors
from tests.training import callables

METRIC = {
    "class_path": "torchmetrics.classification.MulticlassAccuracy",
    "init_args": {"num_classes": 4, "average": "micro", "validate_args": False},
}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.03, "momentum": 0.9}}
TRAIN, VALIDATION = images(96), images(40, seed=1)


@pytest.fixture(autouse=True)
def calls() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What the functions in `callables` were called with."""
    callables.CALLS.clear()
    yield callables.CALLS
    callables.CALLS.clear()


def settings(**more: Any) -> TrainingSettings:
    given: dict[str, Any] = {"batch_size": 16, "optimizer": SGD, "metric": METRIC, "device": "cpu"}
    return TrainingSettings.model_validate(given | more)


class Run:
    """A model in training, driven as the loops drive it."""

    def __init__(
        self,
        make: Callable[[], nn.Module] = SmallNet,
        *,
        seed: int = 0,
        train: Any = TRAIN,
        validation: Any = VALIDATION,
        compress: Callable[[nn.Module], CompressionController] = Uncompressed,
        **more: Any,
    ) -> None:
        seed_everything(seed)
        self.model = make()
        self.controller = compress(self.model)
        self.training = DefaultTraining(self.model, settings(**more), train, validation, seed=seed)
        self.runner = TrainingRunner(self.model, self.controller, self.training.callables())
        self.runner.reset_training()

    def epoch(self) -> float | None:
        loss = self.runner.train_epoch()
        metric = self.runner.validate().metric
        self.runner.update_learning_rate(metric, loss)
        return loss

    def epochs(self, number: int) -> list[float]:
        losses = [self.epoch() for _ in range(number)]
        return [loss for loss in losses if loss is not None]

    @property
    def weights(self) -> dict[str, Tensor]:
        """A copy of them as they are now."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def masked(model: nn.Module) -> MagnitudeSparsityController:
    controller = MagnitudeSparsityController(model)
    controller.disable_scheduler()
    controller.compression_rate = 0.6
    return controller


def named(function: str) -> str:
    return f"tests.training.callables.{function}"


def plain_sgd(learning_rate: float = 1.0) -> dict[str, Any]:
    return {"class_path": "torch.optim.SGD", "init_args": {"lr": learning_rate}}


# --- training and validation -----------------------------------------------------------------------------------


def test_loss_falls_and_metric_rises() -> None:
    run = Run()
    before = run.runner.validate().metric
    losses = run.epochs(6)
    assert losses[-1] < 0.5 * losses[0]
    assert run.runner.validate().metric > max(before, 0.7)


def test_epoch_is_what_a_plain_loop_does() -> None:
    """Same batches, written out by hand: same mean loss, and the same weights bit for bit."""
    run = Run()
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
    run = Run(metric=METRIC | {"init_args": {"num_classes": 4, "average": average}})
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
    run = Run(lambda: Perceptron([6, 1]), train=data, validation=data, loss="torch.nn.MSELoss", metric=metric)
    losses = run.epochs(5)
    assert run.training.settings.direction() is False
    with torch.no_grad():
        by_hand = float(F.mse_loss(run.model(inputs), data["targets"]))
    assert run.runner.validate().metric == pytest.approx(by_hand, rel=1e-5)
    assert by_hand < losses[0]


def test_loss_with_tensors_of_its_own() -> None:
    weights = [1.0, 0.0, 0.5, 0.0]
    loss = {"class_path": named("WeightedLoss"), "init_args": {"weights": weights}}
    run = Run(loss=loss, train=images(16), optimizer=plain_sgd(0.0))
    ((inputs, targets),) = run.training.train_batches(0)
    by_hand = F.cross_entropy(run.model.train()(inputs), targets, torch.tensor(weights))
    assert run.runner.train_epoch() == pytest.approx(float(by_hand.detach()), rel=1e-6)


def test_validation_judges_in_evaluation_mode_and_training_trains_in_training_mode() -> None:
    run, modes = Run(), list[bool]()
    run.model.register_forward_hook(lambda module, args, out: modes.append(module.training))
    run.epochs(2)
    assert modes == ([True] * 6 + [False] * 3) * 2


# --- batches ---------------------------------------------------------------------------------------------------


def probed() -> Probe:
    return Probe(SmallNet())


def sizes(model: nn.Module) -> list[int]:
    assert isinstance(model, Probe)
    taken = [len(batch) for batch in model.batches]
    model.batches.clear()
    return taken


@pytest.mark.parametrize("as_dictionary", [True, False])
@pytest.mark.parametrize(
    ("num_examples", "training", "validation"),
    [(40, [16, 16], [16, 16, 8]), (32, [16, 16], [16, 16]), (17, [16], [16, 1]), (16, [16], [16]), (5, [5], [5])],
)
def test_smaller_last_batch_is_left_out_in_training_alone(
    num_examples: int, training: list[int], validation: list[int], as_dictionary: bool
) -> None:
    data: Any = images(num_examples)
    data = data if as_dictionary else Pairs(**data)
    run = Run(probed, train=data, validation=data)
    run.runner.train_epoch()
    assert sizes(run.model) == training
    assert run.training.steps_per_epoch == len(training)
    run.runner.validate()
    assert sizes(run.model) == validation


def order(seed: int, epoch: int) -> list[int]:
    data = {"inputs": torch.arange(64.0).view(64, 1), "targets": torch.arange(64)}
    training = DefaultTraining(Perceptron([1, 4]), settings(), data, data, seed=seed)
    return torch.cat([targets for _, targets in training.train_batches(epoch)]).tolist()


def test_order_is_shuffled_anew_each_epoch_and_known_from_seed_and_epoch_alone() -> None:
    orders = [order(seed=0, epoch=epoch) for epoch in range(5)]
    assert all(sorted(each) == list(range(64)) for each in orders)
    assert len(set(map(tuple, orders))) == 5
    torch.manual_seed(99)  # what else is random plays no part
    assert order(seed=0, epoch=3) == orders[3]


def test_runs_of_neighbouring_seeds_share_no_order() -> None:
    orders = [tuple(order(seed, epoch)) for seed, epoch in itertools.product(range(3), range(4))]
    assert len(set(orders)) == 12


def test_validation_keeps_its_order() -> None:
    run = Run()
    batches = [targets for _, targets in run.training.validation_batches()]
    assert torch.equal(torch.cat(batches), VALIDATION["targets"])


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Dropout(0.2), SmallNet())

    first, again, other = (Run(make, seed=seed) for seed in (0, 0, 1))
    start = first.weights
    losses = []
    for seed, run in ((0, first), (0, again), (1, other)):
        run.model.load_state_dict(start)
        seed_everything(seed)
        losses.append(run.epochs(2))
    assert losses[0] == losses[1] != losses[2]
    assert_same_bits(first.weights, again.weights)
    assert not torch.equal(first.weights["1.conv.weight"], other.weights["1.conv.weight"])


def test_dataset_of_pairs_trains_as_a_dictionary_of_tensors_does() -> None:
    tensors, pairs = Run(), Run(train=Pairs(**TRAIN), validation=Pairs(**VALIDATION))
    assert tensors.epochs(2) == pairs.epochs(2)
    assert_same_bits(tensors.weights, pairs.weights)
    assert tensors.runner.validate().metric == pairs.runner.validate().metric


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_process_that_loads_data_changes_nothing(as_dictionary: bool) -> None:
    train, validation = (data if as_dictionary else Pairs(**data) for data in (TRAIN, VALIDATION))
    here, there = (Run(train=train, validation=validation, num_workers=number) for number in (0, 1))
    assert here.epochs(1) == there.epochs(1)
    assert_same_bits(here.weights, there.weights)


# --- precision, memory format, clipping, compilation -----------------------------------------------------------


def output_types(model: nn.Module) -> set[torch.dtype]:
    assert isinstance(model, Probe)
    return {out.dtype for out in model.outputs}


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision(precision: str, dtype: torch.dtype) -> None:
    run = Run(probed, precision=precision)
    losses = run.epochs(6)
    assert output_types(run.model) == {dtype}
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    assert losses[-1] < 0.5 * losses[0]
    assert 0.7 < run.runner.validate().metric <= 1


def test_full_precision_has_no_autocast() -> None:
    run = Run(probed)
    run.epochs(1)
    assert output_types(run.model) == {torch.float32}


def test_scaled_loss_gives_the_gradients_of_the_loss() -> None:
    """A step with plain SGD is the gradient itself: in fp16 it is scaled up and down again."""
    steps = {}
    for precision in ("fp32", "fp16"):
        run = Run(precision=precision, train=images(16), optimizer=plain_sgd(1e-3))
        before = run.weights
        run.runner.train_epoch()
        steps[precision] = run.weights["conv.weight"] - before["conv.weight"]
    torch.testing.assert_close(steps["fp16"], steps["fp32"], rtol=0.05, atol=1e-6)


def test_state_of_the_loss_scaler_is_in_the_checkpoint() -> None:
    old, new = Run(precision="fp16"), Run(precision="fp16")
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
    run = Run(precision="fp16")
    at_first = run.training.state_dict()
    run.epochs(1)
    assert run.training.state_dict() != at_first
    run.runner.reset_training()
    assert run.training.state_dict() == at_first


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_metric_is_given_outputs_in_full_precision(precision: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    run = Run(precision=precision, metric=named("Types"))
    assert run.runner.validate().metric == 1.0
    assert {given["outputs"] for _, given in calls} == {torch.float32}


def test_channels_last() -> None:
    def make() -> nn.Module:
        return Probe(SmallNet(in_channels=3))

    train, validation = images(96, num_channels=3), images(40, num_channels=3, seed=1)
    run, plain = (Run(make, train=train, validation=validation, channels_last=last) for last in (True, False))
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
    run = Run(lambda: Perceptron([6, 4]), train=vectors(32), validation=vectors(32), channels_last=True)
    assert run.epochs(1)


def norm_of_one_step(run: Run) -> float:
    before = run.weights
    run.runner.train_epoch()
    parameters = dict(run.model.named_parameters())
    return float(torch.cat([(now.detach() - before[name]).flatten() for name, now in parameters.items()]).norm())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_norm_of_the_gradients_is_limited(precision: str) -> None:
    """A step of plain SGD with learning rate 1 is as long as the gradient."""
    one_batch: dict[str, Any] = {"train": images(16), "optimizer": plain_sgd(), "precision": precision}
    free = norm_of_one_step(Run(**one_batch))
    assert free > 0.1
    assert norm_of_one_step(Run(**one_batch, gradient_clip_norm=0.05)) == pytest.approx(0.05, rel=1e-3)
    assert norm_of_one_step(Run(**one_batch, gradient_clip_norm=100.0)) == pytest.approx(free, rel=1e-3)


def test_norm_is_that_of_all_gradients_together_with_two_optimizers() -> None:
    run = Run(
        train=images(16),
        configure_optimizers="tests.training.callables.configure_two_optimizers",
        gradient_clip_norm=0.05,
    )
    assert norm_of_one_step(run) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_model_trains_as_the_model_does() -> None:
    torch._dynamo.reset()
    runs = [Run(compress=masked, compile=compiled) for compiled in (True, False)]
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
    run, plain = Run(compress=Counting), Run()
    assert run.epochs(1)[0] == pytest.approx(plain.epochs(1)[0] + 10.0, rel=1e-5)
    assert isinstance(run.controller, Counting)
    assert run.controller.steps == 6


@pytest.mark.parametrize("more", [{}, {"channels_last": True}, {"precision": "bf16"}, {"precision": "fp16"}])
def test_masks_stay_exact(more: dict[str, Any]) -> None:
    run = Run(compress=masked, **more)
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

    run, rates = Run(compress=compress), list[float]()
    run.model.register_forward_hook(lambda *_: rates.append(report(run.controller).requested_rate))
    run.runner.set_rate((0.2, 0.4, 0.6))
    run.runner.train_epoch()
    run.runner.finish_rate_path(0.6)
    assert rates == expected
    assert report(run.controller) == CompressionReport(0.6, 408 / 680)
    rates.clear()
    run.runner.train_epoch()  # of which the search asked for no other rate
    assert rates == [0.6] * 6


# --- learning rates --------------------------------------------------------------------------------------------

HALVING = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}


def test_scheduler_steps_after_each_epoch() -> None:
    run = Run(scheduler=HALVING, optimizer=plain_sgd(0.1))
    rates = [run.runner.learning_rate for _ in range(3) if run.epoch() is not None]
    assert rates == pytest.approx([0.05, 0.025, 0.0125])


def test_scheduler_steps_after_each_optimizer_step() -> None:
    run = Run(scheduler=HALVING, scheduler_interval="step", optimizer=plain_sgd(0.1))
    run.epoch()
    assert run.runner.learning_rate == pytest.approx(0.1 / 2**6)
    run.epoch()
    assert run.runner.learning_rate == pytest.approx(0.1 / 2**12)


def test_scheduler_that_waits_for_a_plateau_is_told_the_metric() -> None:
    plateau = {
        "class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "init_args": {"mode": "max", "patience": 0, "factor": 0.1},
    }
    run = Run(scheduler=plateau, optimizer=plain_sgd(0.0))  # nothing is learnt, so the metric never rises
    run.epochs(2)
    assert run.runner.lr_scheduler.best == run.runner.validate().metric
    assert run.runner.learning_rate == 0.0


def test_without_a_scheduler_the_learning_rate_stays() -> None:
    run = Run(optimizer=plain_sgd(0.1))
    run.epochs(2)
    assert run.runner.learning_rate == 0.1


def test_optimizer_is_configured_anew_for_each_phase() -> None:
    run = Run(scheduler=HALVING)
    first = run.runner.optimizer
    run.epochs(1)
    run.runner.reset_training()
    assert run.runner.optimizer is not first
    assert run.runner.learning_rate == 0.03


# --- functions of the user's own -------------------------------------------------------------------------------


def test_training_function_of_the_users_own_is_given_the_batches(calls: list[tuple[str, dict[str, Any]]]) -> None:
    run, plain = Run(train_epoch=named("train_epoch")), Run()
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
    run = Run(train_epoch=named("train_without_data"))
    assert run.runner.train_epoch() is None
    assert {"epoch", "optimizer", "lr_scheduler"} <= calls[0][1].keys()


def test_validation_function_of_the_users_own(calls: list[tuple[str, dict[str, Any]]]) -> None:
    run = Run(validate=named("validate"))
    run.epoch()
    for _ in range(2):  # the batches can be gone through again
        assert run.runner.validate().metric == 0.75
    assert [given["epoch"] for _, given in calls] == [1, 1, 1]
    for _, given in calls:
        assert torch.equal(torch.cat(given["data"]), VALIDATION["targets"])
    assert run.training.settings.direction() is True


def test_validation_function_that_takes_the_model_alone() -> None:
    run = Run(validate=named("validate_the_model_alone"))
    assert run.runner.validate().metric == 0.5


def test_optimizers_of_the_users_own(calls: list[tuple[str, dict[str, Any]]]) -> None:
    run = Run(configure_optimizers=named("configure_optimizers"))
    assert run.runner.learning_rate == 0.125
    assert calls[0][1]["model"] is run.model
    losses = run.epochs(4)
    assert losses[-1] < losses[0]


def test_early_stopping_and_learning_rates_of_the_users_own(calls: list[tuple[str, dict[str, Any]]]) -> None:
    run = Run(
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


# --- mistakes in the settings ----------------------------------------------------------------------------------


def test_all_mistakes_are_listed_in_one_error() -> None:
    mistaken = settings(
        optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentun": 0.9}},
        scheduler="torch.optim.lr_scheduler.CosineAnealingLR",
        loss="torch.n.CrossEntropyLoss",
        metric="MulticlassAccuracy",
        train_epoch="tests.training.callables.train_epok",
        validate="no_such_module.validate",
    )
    with pytest.raises(ConfigurationError) as caught:
        mistaken.check()
    mistakes = "\n".join(caught.value.mistakes)
    assert len(caught.value.mistakes) == 6
    for expected in (
        "optimizer.init_args.momentun: torch.optim.SGD takes no such argument. Did you mean 'momentum'?",
        "scheduler.class_path: 'torch.optim.lr_scheduler' has no 'CosineAnealingLR'. Did you mean 'CosineAnnealingLR'?",
        "loss.class_path: 'torch.n.CrossEntropyLoss' cannot be imported",
        "metric.class_path: must be a dotted import path",
        "train_epoch.class_path: 'tests.training.callables' has no 'train_epok'. Did you mean 'train_epoch'?",
        "validate.class_path: 'no_such_module.validate' cannot be imported",
    ):
        assert expected in mistakes


def test_good_settings_have_no_mistakes() -> None:
    settings(scheduler=HALVING, train_epoch=named("train_epoch"), validate=named("validate")).check()


@pytest.mark.parametrize(
    ("mistaken", "named_in_error"),
    [
        ({"metric": METRIC | {"init_args": {"num_clases": 4}}}, ["metric", "num_clases"]),
        ({"metric": "torchmetrics.classification.MulticlassAccuracy"}, ["metric", "num_classes"]),
        ({"scheduler": "torch.optim.lr_scheduler.StepLR"}, ["scheduler", "step_size"]),
        ({"metric": METRIC, "loss": "tests.training.callables.WeightedLoss"}, ["loss", "weights"]),
        ({"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": -1.0}}}, ["optimizer", "-1.0"]),
    ],
)
def test_arguments_that_are_missing_or_refused_are_found_before_training(
    mistaken: dict[str, Any], named_in_error: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(**mistaken).check()
    for part in named_in_error:
        assert part in str(caught.value)


@pytest.mark.parametrize("metric", ["torchmetrics.MeanMetric", "torchmetrics.classification.BinaryConfusionMatrix"])
def test_metric_without_a_direction_is_an_error_unless_it_is_said(metric: str) -> None:
    with pytest.raises(ConfigurationError, match=f"higher_is_better: {metric} does not say"):
        settings(metric=metric).check()
    settings(metric=metric, higher_is_better=False).check()
    assert settings(metric=metric, higher_is_better=False).direction() is False


@pytest.mark.parametrize(
    ("mistaken", "message"),
    [
        ({"batch_size": 0}, "batch_size: .*greater than or equal to 1, but got 0"),
        ({"precision": "fp8"}, "precision: must be one of fp32, bf16, fp16, but got 'fp8'"),
        ({"device": "gpu"}, "device: must be auto, cpu, cuda, cuda:1 ..., but got 'gpu'"),
        ({"gradient_clip_norm": 0}, "gradient_clip_norm: .*greater than 0, but got 0"),
        ({"optimiser": SGD}, "optimiser: unknown key .*Did you mean 'optimizer'"),
        ({"optimizer": {"class_path": "torch.optim.SGD", "args": {}}}, r"optimizer\.args: unknown key"),
        ({"scheduler_interval": "batch"}, "scheduler_interval: must be one of epoch, step"),
        ({"num_workers": -1}, "num_workers: .*but got -1"),
    ],
)
def test_value_that_cannot_be_is_an_error(mistaken: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings(**mistaken)


# --- mistakes in the data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (images(0), VALIDATION, "The training split is empty"),
        (TRAIN, images(0), "The validation split is empty"),
        (Pairs(**images(0)), VALIDATION, "The training split is empty"),
        (TRAIN | {"targets": TRAIN["targets"][:-1]}, VALIDATION, "The training split has 96 inputs, but 95 targets"),
        (TRAIN, {"inputs": VALIDATION["inputs"]}, "The validation split needs targets; it has inputs"),
        (TRAIN, {}, "The validation split needs inputs and targets; it has nothing"),
    ],
)
def test_data_that_cannot_be_used_are_an_error(train: Any, validation: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DefaultTraining(SmallNet(), settings(), train, validation)


def test_data_may_hold_more_than_is_needed() -> None:
    assert Run(train=TRAIN | {"weights": torch.ones(3)}).epochs(1)


def test_fingerprint_tells_splits_apart() -> None:
    same = {name: tensor.clone() for name, tensor in TRAIN.items()}
    assert data_fingerprint(same) == data_fingerprint(TRAIN)
    other = same | {"targets": same["targets"].flip(0)}
    assert data_fingerprint(other) != data_fingerprint(TRAIN)
    assert data_fingerprint(Pairs(**TRAIN)) == data_fingerprint(Pairs(**same))
    assert data_fingerprint(Pairs(**TRAIN)) != data_fingerprint(Pairs(**images(95)))


def test_example_input_is_the_beginning_of_a_split() -> None:
    for data in (TRAIN, Pairs(**TRAIN)):
        assert torch.equal(example_input(data), TRAIN["inputs"][:2])
        assert torch.equal(example_input(data, 1000), TRAIN["inputs"])


def test_dataset_is_taken_as_it_is() -> None:
    pairs = Pairs(**TRAIN)
    assert as_dataset(pairs, "training") is pairs


def test_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


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


def reads(run: Run, *, training: bool) -> int:
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
        run = Run(compress=compress, train=data, validation=data, **more)
        counts.append([reads(run, training=training) for training in (True, False)])
    assert counts[0] == counts[1]
    # The loss, or the metric and what is checked of it; and the loader, which draws a number on the host.
    assert max(counts[0]) <= 4

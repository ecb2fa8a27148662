"""How the loops begin, end and go on, on the scripted model: metrics, optimizers, checkpoints, interruptions."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers
from torch.utils.tensorboard import SummaryWriter

from kedro_aat import (
    BaseEarlyExitCompressionTrainingLoop,
    Evaluation,
    NNCFConfig,
    Outcome,
    TrainingRunner,
    create_accuracy_aware_training_loop,
    create_compressed_model,
)
from kedro_aat.errors import ConfigurationError, MetricError
from kedro_aat.training.records import EpochRecord
from tests.scripted import ScriptedController, ScriptedModel

INITIAL_RATE = 0.1
BASELINE = 0.95
FORMULA: dict[str, Any] = {
    **{"base": BASELINE, "a": 0.2, "k": 3.0, "recovery": 0.05, "tau": 1.5, "drift": 0.0, "noise": 0.0},
    **{"clip": True, "cap": 1.0},
}
PARAMS: dict[str, Any] = {
    "maximal_absolute_accuracy_degradation": 0.01,
    "initial_training_phase_epochs": 1,
    "patience_epochs": 2,
    "maximal_total_epochs": 8,
}


class Subject:
    """A scripted model, its controller and a loop, with functions that note how they are called."""

    def __init__(
        self,
        *,
        mode: str = "adaptive_compression_level",
        baseline: float = BASELINE,
        is_partial_until_search: bool = False,
        increment: float = 0.0,
        params: dict[str, Any] | None = None,
        **loop_args: Any,
    ) -> None:
        self.model = ScriptedModel(INITIAL_RATE)
        self.controller = ScriptedController(
            self.model, increment=increment, is_partial_until_search=is_partial_until_search
        )
        config = {"accuracy_aware_training": {"mode": mode, "params": PARAMS if params is None else params}}
        controller: Any = self.controller
        self.loop: BaseEarlyExitCompressionTrainingLoop = create_accuracy_aware_training_loop(
            config, controller, baseline, **{"verbose": False, **loop_args}
        )
        self.learning_rates: list[list[float]] = []
        self.num_configured = 0

    def train(
        self, controller: ScriptedController, model: ScriptedModel, epoch: int, optimizer: Any, lr_scheduler: Any
    ) -> float | None:
        """Counts an epoch, and takes a step in a random direction with every optimizer."""
        optimizers = [] if optimizer is None else optimizer if isinstance(optimizer, list) else [optimizer]
        self.learning_rates.append([one.param_groups[0]["lr"] for one in optimizers])
        model.state[1:] += 1
        for one in optimizers:
            model.weight.grad = torch.randn(1)
            one.step()
        return 1.0 / (epoch + 1)

    @staticmethod
    def validate(model: ScriptedModel, epoch: int) -> float:
        return model.accuracy(FORMULA)

    def sgd(self) -> tuple[Any, Any]:
        self.num_configured += 1
        return torch.optim.SGD(self.model.parameters(), lr=1.0, momentum=0.9), None

    def run(
        self,
        log_dir: str | Path | None,
        train: Callable[..., Any] | None = None,
        validate: Callable[..., Any] | None = None,
        configure: Callable[[], tuple[Any, Any]] | None = None,
        **more: Any,
    ) -> nn.Module:
        returned: nn.Module = self.loop.run(
            self.model,
            train or self.train,
            validate or self.validate,
            configure or self.sgd,
            log_dir=log_dir,
            **more,
        )
        assert returned is self.model
        return returned

    @property
    def num_trained(self) -> int:
        return len(self.learning_rates)

    @property
    def trained(self) -> list[EpochRecord]:
        return [record for record in self.loop.history if record.trained]

    @property
    def trajectory(self) -> list[EpochRecord]:
        """The history without the times."""
        return [replace(record, seconds=0.0) for record in self.loop.history]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)


def test_the_scripted_run_turns_and_finds_a_rate(tmp_path: Path) -> None:
    # What the other tests rely on: several rates up, a turn, and epochs that go on at a rate.
    subject = Subject()
    subject.run(tmp_path)
    rates = [record.requested_rate for record in subject.trained]
    assert rates == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.5, 0.6, 0.6, 0.55], abs=1e-9)
    assert subject.loop.outcome is Outcome.WITHIN_BUDGET
    assert subject.loop.statistics.compression_rate == pytest.approx(0.5)


# --- metrics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baseline", "metric_of", "higher_is_better"),
    [
        (-BASELINE, lambda accuracy: -accuracy, False),
        (1 - BASELINE, lambda accuracy: 1 - accuracy, False),
        (BASELINE - 5, lambda accuracy: accuracy - 5, True),
        (BASELINE + 5, lambda accuracy: accuracy + 5, True),
    ],
    ids=["negative, lower is better", "an error", "negative, higher is better", "above 1"],
)
def test_metrics_of_either_direction_and_sign_give_the_same_search(
    baseline: float, metric_of: Callable[[float], float], higher_is_better: bool, tmp_path: Path
) -> None:
    usual = Subject()
    usual.run(tmp_path / "usual")
    other = Subject(baseline=baseline, params=PARAMS | {"higher_is_better": higher_is_better})
    best_seen: list[float | None] = []

    def dump(model: nn.Module, controller: Any, runner: TrainingRunner, save_dir: str) -> str:
        best_seen.append(runner.best_val_metric_value)
        return _dump(model, controller, runner, save_dir)

    other.run(
        tmp_path / "other",
        validate=lambda model: metric_of(model.accuracy(FORMULA)),
        dump_checkpoint_fn=dump,
    )
    assert len(other.loop.history) == len(usual.loop.history)
    for mine, expected in zip(other.loop.history, usual.loop.history, strict=True):
        assert mine.requested_rate == expected.requested_rate
        assert mine.metric == pytest.approx(metric_of(expected.metric), abs=1e-12)
        assert mine.margin == pytest.approx(expected.margin, abs=1e-12)
        assert mine.best_rate == expected.best_rate
    closing, usually = other.loop.statistics, usual.loop.statistics
    assert closing.compression_rate == usually.compression_rate
    assert closing.absolute_accuracy_degradation == pytest.approx(usually.absolute_accuracy_degradation)
    assert closing.accuracy_budget == pytest.approx(usually.accuracy_budget)
    # Two epochs at rate 0.5, the second of which is better than the first; the runner knows which is.
    first, second = (n for n, record in enumerate(usual.loop.history) if record.requested_rate == 0.5)
    assert best_seen[first] == pytest.approx(other.loop.history[first].metric)
    assert best_seen[second] == pytest.approx(other.loop.history[second].metric)


def test_relative_degradation_is_positive_where_a_negative_metric_got_worse(tmp_path: Path) -> None:
    subject = Subject(baseline=-1.0, params=PARAMS | {"higher_is_better": False})
    subject.run(tmp_path, validate=lambda model: -0.995)
    assert subject.loop.statistics.absolute_accuracy_degradation == pytest.approx(0.005)
    assert subject.loop.statistics.relative_accuracy_degradation == pytest.approx(0.5)


@pytest.mark.parametrize("mode", ["adaptive_compression_level", "early_exit"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad_epoch", [1, 2, 5])
def test_a_metric_that_is_not_finite_leaves_the_last_good_state(
    bad_epoch: int, bad: float, mode: str, tmp_path: Path
) -> None:
    subject = Subject(mode=mode, params=PARAMS | {"initial_training_phase_epochs": 2})
    good: dict[int, dict[str, Tensor]] = {}

    def validate(model: ScriptedModel, epoch: int) -> float:
        good[epoch] = state_of(model)
        if epoch == bad_epoch:
            return bad
        return subject.validate(model, epoch) if mode == "adaptive_compression_level" else 0.5

    with pytest.raises(MetricError, match=rf"the metric of epoch {bad_epoch} must be a finite number"):
        subject.run(tmp_path, validate=validate)
    assert_same_state(subject.model, good[bad_epoch - 1])
    assert subject.loop.outcome is None


@pytest.mark.parametrize("bad_epoch", [1, 4])
def test_a_loss_that_is_not_finite_leaves_the_last_good_state(bad_epoch: int, tmp_path: Path) -> None:
    subject = Subject()
    good: dict[int, dict[str, Tensor]] = {}

    def train(controller: Any, model: ScriptedModel, epoch: int, **more: Any) -> float:
        subject.train(controller, model, epoch, **more)
        return math.nan if epoch + 1 == bad_epoch else 0.1

    def validate(model: ScriptedModel, epoch: int) -> float:
        good[epoch] = state_of(model)
        return subject.validate(model, epoch)

    with pytest.raises(MetricError, match=rf"the loss of epoch {bad_epoch} must be a finite number"):
        subject.run(tmp_path, train=train, validate=validate)
    assert max(good) == bad_epoch - 1
    assert_same_state(subject.model, good[bad_epoch - 1])


@pytest.mark.parametrize("answer", [None, "0.95", "good", {"accuracy": 0.95}, math.nan], ids=repr)
def test_a_validation_function_that_returns_no_number_is_noticed_before_any_training(
    answer: Any, tmp_path: Path
) -> None:
    subject = Subject()
    as_given = state_of(subject.model)
    with pytest.raises(MetricError, match=r"the metric of epoch 0 must be a .*number"):
        subject.run(tmp_path, validate=lambda model, epoch: answer)
    assert subject.num_trained == 0
    assert_same_state(subject.model, as_given)


@pytest.mark.parametrize("form", [torch.tensor, lambda metric: Evaluation(metric, torch.ones(4)), Evaluation])
def test_forms_of_a_metric(form: Callable[[float], Any], tmp_path: Path) -> None:
    usual, other = Subject(), Subject()
    usual.run(tmp_path / "usual")
    other.run(tmp_path / "other", validate=lambda model, epoch: form(round(model.accuracy(FORMULA), 3)))
    rates = [[record.requested_rate for record in subject.trained] for subject in (usual, other)]
    assert rates[0] == rates[1]
    assert all(isinstance(record.metric, float) for record in other.loop.history)


class _Validator:
    def __call__(self, model: ScriptedModel) -> float:
        return model.accuracy(FORMULA)


def _validate_with_more(model: ScriptedModel, formula: dict[str, Any], **more: Any) -> float:
    assert "epoch" in more
    return model.accuracy(formula)


def _validate_at_some_length(model: ScriptedModel, length: int = 3) -> float:
    assert length == 3
    return model.accuracy(FORMULA)


@pytest.mark.parametrize(
    "validate",
    [
        lambda model: model.accuracy(FORMULA),
        _Validator(),
        functools.partial(_validate_with_more, formula=FORMULA),
        _validate_at_some_length,
    ],
    ids=["lambda", "object", "partial", "other defaults"],
)
def test_a_validation_function_may_do_without_the_epoch(validate: Callable[..., float], tmp_path: Path) -> None:
    usual, other = Subject(), Subject()
    for subject, function in ((usual, usual.validate), (other, validate)):
        torch.manual_seed(0)
        subject.run(tmp_path / str(subject is usual), validate=function)
    assert other.trajectory == usual.trajectory


def test_validation_counts_epochs_and_needs_no_gradients(tmp_path: Path) -> None:
    subject = Subject()
    epochs: list[int] = []

    def validate(model: ScriptedModel, epoch: int) -> float:
        assert not torch.is_grad_enabled()
        epochs.append(epoch)
        return subject.validate(model, epoch)

    subject.run(tmp_path, validate=validate)
    # As given, again before the search, then each epoch, and at last what is returned.
    assert epochs == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8]


# --- optimizers and learning rates -------------------------------------------------------------------------


def test_no_optimizer_is_needed(tmp_path: Path) -> None:
    subject = Subject()
    given: list[tuple[Any, Any]] = []

    def train(controller: Any, model: ScriptedModel, epoch: int, optimizer: Any, lr_scheduler: Any) -> None:
        given.append((optimizer, lr_scheduler))
        model.state[1:] += 1

    subject.loop.run(subject.model, train, subject.validate, log_dir=tmp_path)
    assert set(given) == {(None, None)}
    assert subject.loop.outcome is Outcome.WITHIN_BUDGET
    assert {record.learning_rate for record in subject.trained} == {None}
    assert {record.loss for record in subject.trained} == {None}


def test_optimizers_start_anew_at_every_change_of_rate(tmp_path: Path) -> None:
    subject = Subject()
    subject.run(tmp_path)
    num_rates = len({record.requested_rate for record in subject.trained})
    assert subject.num_configured == 2 + num_rates  # the beginning, and the beginning of the search


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda optimizer: schedulers.StepLR(optimizer, 1, gamma=0.5),
    "LambdaLR": lambda optimizer: schedulers.LambdaLR(optimizer, lambda epoch: 0.8**epoch),
    "MultiplicativeLR": lambda optimizer: schedulers.MultiplicativeLR(optimizer, lambda epoch: 0.8),
    "CosineAnnealingLR": lambda optimizer: schedulers.CosineAnnealingLR(optimizer, 10),
    "CosineAnnealingWarmRestarts": lambda optimizer: schedulers.CosineAnnealingWarmRestarts(optimizer, 3),
    "PolynomialLR": lambda optimizer: schedulers.PolynomialLR(optimizer, 10),
    "SequentialLR": lambda optimizer: schedulers.SequentialLR(
        optimizer,
        [schedulers.LinearLR(optimizer, 0.1, 1.0, 2), schedulers.ExponentialLR(optimizer, 0.9)],
        milestones=[2],
    ),
    "ChainedScheduler": lambda optimizer: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(optimizer, 0.5, 2), schedulers.ExponentialLR(optimizer, 0.9)]
    ),
    "OneCycleLR": lambda optimizer: schedulers.OneCycleLR(optimizer, max_lr=1.0, total_steps=12),
    "CyclicLR": lambda optimizer: schedulers.CyclicLR(optimizer, 0.1, 1.0, step_size_up=2, cycle_momentum=False),
}
# Long stays at a rate, and two turns: the learning rate is scaled and then stepped on.
PATIENT = PARAMS | {"patience_epochs": 4, "maximal_total_epochs": 16, "lr_reduction_factor": 0.3}


@pytest.mark.filterwarnings("ignore:.*deprecat.*:UserWarning", "ignore:.*lr_scheduler.step.*:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_learning_rate_is_the_schedulers_times_the_factor_of_the_search(name: str, tmp_path: Path) -> None:
    make = SCHEDULERS[name]
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = make(alone)
    expected: list[float] = []
    for _ in range(PATIENT["patience_epochs"]):
        expected.append(alone.param_groups[0]["lr"])
        alone.step()
        scheduler.step()

    subject = Subject(params=PATIENT)

    def configure() -> tuple[Any, Any]:
        optimizer, _ = subject.sgd()
        return optimizer, make(optimizer)

    subject.run(tmp_path, configure=configure)
    records = subject.trained
    assert len({record.lr_scale for record in records}) >= 3
    num_at_rate = 0
    for before, record, (rate,) in zip([None, *records], records, subject.learning_rates, strict=False):
        is_new_rate = before is None or record.requested_rate != before.requested_rate
        num_at_rate = 0 if is_new_rate else num_at_rate + 1
        assert rate == pytest.approx(expected[num_at_rate] * record.lr_scale)
        assert record.learning_rate == rate


def test_lists_of_optimizers_and_schedulers(tmp_path: Path) -> None:
    subject = Subject(params=PATIENT)

    def configure() -> tuple[Any, Any]:
        first = torch.optim.SGD([subject.model.weight], lr=1.0)
        second = torch.optim.SGD([subject.model.weight], lr=0.1)
        return [first, second], [schedulers.StepLR(first, 1, 0.5), schedulers.StepLR(second, 1, 0.1)]

    subject.run(tmp_path, configure=configure)
    assert subject.loop.outcome is Outcome.WITHIN_BUDGET
    num_at_rate = 0
    for before, record, rates in zip([None, *subject.trained], subject.trained, subject.learning_rates, strict=False):
        is_new_rate = before is None or record.requested_rate != before.requested_rate
        num_at_rate = 0 if is_new_rate else num_at_rate + 1
        expected = [0.5**num_at_rate * record.lr_scale, 0.1 * 0.1**num_at_rate * record.lr_scale]
        assert rates == pytest.approx(expected)
    assert max(record.lr_scale for record in subject.trained) > min(record.lr_scale for record in subject.trained)


def test_reduce_on_plateau_is_fed_the_current_metric(tmp_path: Path) -> None:
    fed: list[float] = []

    class Noting(schedulers.ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
            fed.append(float(metrics))
            super().step(metrics, epoch)

    subject = Subject(params=PATIENT | {"maximal_total_epochs": 9})
    # A metric that falls from epoch to epoch, so that the current one is never the best.
    metrics = iter(0.5 - 0.01 * n for n in range(100))

    def configure() -> tuple[Any, Any]:
        optimizer, _ = subject.sgd()
        return optimizer, Noting(optimizer, mode="max", factor=0.1, patience=1)

    subject.run(tmp_path, validate=lambda model: next(metrics), configure=configure)
    records = subject.trained
    assert fed == [record.metric for record in records]
    # The first epoch of a rate is the best; the third is the second in succession that is worse.
    (rate,) = {record.requested_rate for record in records[1:5]}
    at_rate = [record for record in records if record.requested_rate == rate]
    assert [record.learning_rate for record in at_rate] == pytest.approx([1.0, 1.0, 1.0, 0.1])


def test_the_users_own_update_of_the_learning_rate(tmp_path: Path) -> None:
    subject = Subject()
    calls: list[tuple[Any, int, float, float | None]] = []
    made: list[Any] = []

    def configure() -> tuple[Any, Any]:
        optimizer, _ = subject.sgd()
        made.append(schedulers.StepLR(optimizer, 1, 0.5))
        return optimizer, made[-1]

    def update(lr_scheduler: Any, epoch: int, metric: float, loss: float | None) -> None:
        assert lr_scheduler is made[-1]
        calls.append((lr_scheduler, epoch, metric, loss))

    subject.run(tmp_path, configure=configure, update_learning_rate_fn=update)
    # Epochs are counted from the last change of rate on.
    assert [epoch for _, epoch, _, _ in calls] == [1, 1, 1, 1, 2, 1, 2, 1]
    assert [metric for _, _, metric, _ in calls] == [record.metric for record in subject.trained]
    assert [loss for *_, loss in calls] == [1.0 / epoch for epoch in range(1, 9)]
    # Ours did not step the scheduler beside it.
    assert {rate for (rate,) in subject.learning_rates} == {record.lr_scale for record in subject.trained}


def test_learning_rates_are_left_alone_when_told_so(tmp_path: Path) -> None:
    subject = Subject(lr_updates_needed=False, params=PATIENT)
    calls: list[Any] = []

    def configure() -> tuple[Any, Any]:
        optimizer, _ = subject.sgd()
        return optimizer, schedulers.StepLR(optimizer, 1, 0.5)

    subject.run(tmp_path, configure=configure, update_learning_rate_fn=lambda *args: calls.append(args))
    assert not calls
    assert [rate for (rate,) in subject.learning_rates] == [record.lr_scale for record in subject.trained]


# --- the user's other functions ----------------------------------------------------------------------------


def _dump(model: Any, controller: Any, runner: TrainingRunner, save_dir: str) -> str:
    """Writes the scripted state in a format of its own."""
    path = Path(save_dir) / "own.json"
    path.write_text(json.dumps([*model.state.tolist(), model.weight.item()]))
    return str(path)


def _load(model: ScriptedModel, path: str) -> None:
    *state, weight = json.loads(Path(path).read_text())
    model.state.copy_(torch.tensor(state, dtype=torch.float64))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weight]))


def _absolute_dump(model: Any, controller: Any, runner: TrainingRunner, save_dir: str) -> Path:
    return Path(_dump(model, controller, runner, save_dir)).resolve()


@pytest.mark.parametrize("dump", [_dump, _absolute_dump], ids=["as given", "absolute"])
@pytest.mark.parametrize("log_dir", [None, "relative", "absolute"])
def test_the_users_own_checkpoints(
    log_dir: str | None, dump: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual, subject = Subject(), Subject()
    loaded: list[str] = []

    def load(model: ScriptedModel, path: str) -> None:
        loaded.append(Path(path).name)
        _load(model, path)

    torch.manual_seed(0)
    usual.run("usual")
    torch.manual_seed(0)
    where = str(tmp_path / "absolute") if log_dir == "absolute" else log_dir
    subject.run(where, dump_checkpoint_fn=dump, load_checkpoint_fn=load)
    assert subject.trajectory == usual.trajectory
    assert_same_state(subject.model, state_of(usual.model))
    assert set(loaded) == {"own.json"}


def test_a_dump_may_write_to_a_place_of_its_own(tmp_path: Path) -> None:
    subject = Subject()
    own = tmp_path / "own"
    own.mkdir()
    loaded: list[str] = []

    def dump(model: Any, controller: Any, runner: TrainingRunner, save_dir: str) -> str:
        assert (runner.model, runner.compression_controller) == (model, controller)
        path = own / f"{len(list(own.iterdir()))}.json"
        path.write_text(json.dumps([*model.state.tolist(), model.weight.item()]))
        return str(path)

    def load(model: ScriptedModel, path: str) -> None:
        loaded.append(path)
        _load(model, path)

    subject.run(tmp_path / "runs", dump_checkpoint_fn=dump, load_checkpoint_fn=load)
    assert len(list(own.iterdir())) == len(subject.loop.history)
    best = max(subject.loop.history, key=lambda record: record.best_rate or 0.0)
    assert loaded
    assert {Path(path).parent for path in loaded} == {own}
    assert loaded[-1] == str(own / f"{best.checkpoint}.json")


def test_a_loader_alone_gets_the_files_that_nncf_wrote(tmp_path: Path) -> None:
    usual, subject = Subject(), Subject()
    loaded: list[int] = []

    def load(model: ScriptedModel, path: str) -> None:
        contents = torch.load(path, weights_only=True)
        loaded.append(contents["epoch"])
        model.load_state_dict(contents["state_dict"])

    torch.manual_seed(0)
    usual.run(tmp_path / "usual")
    torch.manual_seed(0)
    subject.run(tmp_path / "other", load_checkpoint_fn=load)
    assert loaded
    assert subject.trajectory == usual.trajectory
    assert_same_state(subject.model, state_of(usual.model))


def test_a_dump_alone_does_not_need_a_loader(tmp_path: Path) -> None:
    usual, subject = Subject(), Subject()
    usual.run(tmp_path / "usual")
    subject.run(tmp_path / "other", dump_checkpoint_fn=_dump)
    assert list((tmp_path / "other").rglob("own.json"))
    assert subject.model.state.tolist() == usual.model.state.tolist()


def test_early_stopping_is_asked_only_when_fully_compressed(tmp_path: Path) -> None:
    params = PARAMS | {"initial_training_phase_epochs": 3, "maximal_total_epochs": 7, "patience_epochs": 4}
    subject = Subject(params=params, is_partial_until_search=True)
    asked: list[float] = []

    def stop(metric: float) -> bool:
        asked.append(metric)
        return True

    subject.run(tmp_path, validate=lambda model: 0.5, early_stopping_fn=stop)
    partial = [record for record in subject.trained if not record.fully_compressed]
    full = [record for record in subject.trained if record.fully_compressed]
    assert len(partial) == 3
    assert asked == [record.metric for record in full]
    # Each answer was yes, so that each rate had one epoch of its four.
    assert len({record.requested_rate for record in full}) == len(full)


def test_early_stopping_ends_an_early_exit_run(tmp_path: Path) -> None:
    subject = Subject(mode="early_exit", params=PARAMS | {"maximal_total_epochs": 20})
    subject.run(tmp_path, validate=lambda model: 0.5, early_stopping_fn=lambda metric: subject.num_trained == 3)
    assert subject.num_trained == 3
    assert subject.loop.outcome is Outcome.INFEASIBLE


def test_tensorboard_gets_the_scalars_of_each_epoch(tmp_path: Path) -> None:
    subject = Subject()
    with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
        subject.run(tmp_path / "runs", tensorboard_writer=writer)
    log: Any = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    expected: dict[str, Callable[[EpochRecord], Any]] = {
        "metric/validation": lambda record: record.metric,
        "metric/margin": lambda record: record.margin,
        "rate/requested": lambda record: record.requested_rate,
        "rate/achieved": lambda record: record.achieved_rate,
        "training/loss": lambda record: record.loss,
        "training/learning_rate": lambda record: record.learning_rate,
    }
    for tag, value in expected.items():
        scalars = log.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [record.epoch for record in subject.trained]
        values = [value(record) for record in subject.trained]
        assert [scalar.value for scalar in scalars] == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("name", ["train_epoch_fn", "validate_fn", "configure_optimizers_fn", "early_stopping_fn"])
def test_what_is_no_function_is_refused(name: str, tmp_path: Path) -> None:
    subject = Subject()
    functions: dict[str, Any] = {"train_epoch_fn": subject.train, "validate_fn": subject.validate}
    with pytest.raises(ConfigurationError, match=f"{name}: must be callable, but got 'x'"):
        subject.loop.run(subject.model, **{**functions, name: "x"}, log_dir=tmp_path)


# --- where checkpoints lie ---------------------------------------------------------------------------------


def test_checkpoints_lie_in_runs_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Subject().run(None)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert list((tmp_path / "runs").rglob("manifest.json"))


def test_checkpoints_lie_in_the_log_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Subject().run("elsewhere")
    Subject().run(tmp_path / "there")
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "there"}
    assert list((tmp_path / "there").rglob("manifest.json"))


@pytest.mark.parametrize("log_dir", [None, "elsewhere"])
def test_without_checkpoints_no_file_is_left(
    log_dir: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual, subject = Subject(), Subject(dump_checkpoints=False)
    torch.manual_seed(0)
    subject.run(log_dir)
    assert not list(tmp_path.rglob("*"))
    torch.manual_seed(0)
    usual.run(None)
    assert subject.trajectory == usual.trajectory
    assert_same_state(subject.model, state_of(usual.model))


def test_a_second_loop_after_the_first_has_its_own_folder(tmp_path: Path) -> None:
    first, second = Subject(), Subject()
    torch.manual_seed(0)
    first.run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    torch.manual_seed(0)
    second.run(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert second.num_trained == first.num_trained == 8
    assert second.trajectory == first.trajectory
    assert {path: path.read_bytes() for path in before} == before


def test_a_second_loop_within_the_first_has_its_own_folder(tmp_path: Path) -> None:
    alone, outer, inner = Subject(), Subject(), Subject()
    alone.run(tmp_path / "alone")

    def train(*args: Any, **kwargs: Any) -> float | None:
        if inner.loop.outcome is None:
            inner.run(tmp_path / "both")
        return outer.train(*args, **kwargs)

    outer.run(tmp_path / "both", train=train)
    assert len(list((tmp_path / "both").iterdir())) == 2
    assert outer.trajectory == inner.trajectory == alone.trajectory


# --- interruptions -----------------------------------------------------------------------------------------


def interrupting(
    subject: Subject, number: int | None = None, interrupt: Callable[[], None] | None = None
) -> Callable[..., float | None]:
    """The subject's training function, interrupted in the middle of its `number`-th call.

    A run is known by the source of its functions, so that one which is to go on needs this one too.
    """

    def train(controller: Any, model: ScriptedModel, epoch: int, **more: Any) -> float | None:
        loss = subject.train(controller, model, epoch, **more)
        if interrupt is not None and subject.num_trained == number:
            interrupt()
        return loss

    return train


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def scheduled(subject: Subject) -> Callable[[], tuple[Any, Any]]:
    def configure() -> tuple[Any, Any]:
        optimizer, _ = subject.sgd()
        first, second = schedulers.LinearLR(optimizer, 0.1, 1.0, 2), schedulers.ExponentialLR(optimizer, 0.9)
        return optimizer, schedulers.SequentialLR(optimizer, [first, second], milestones=[2])

    return configure


@pytest.mark.filterwarnings("ignore:.*deprecat.*:UserWarning")
@pytest.mark.parametrize("interrupt", [press_ctrl_c, terminate])
@pytest.mark.parametrize("number", [1, 2, 7, 12])
def test_an_interrupted_run_is_at_its_best_and_goes_on_as_if_it_had_not_been(
    number: int, interrupt: Callable[[], None], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    whole = Subject(params=PATIENT)
    best_after: dict[int, dict[str, Tensor]] = {}

    def validate(model: ScriptedModel, epoch: int) -> float:
        # The best so far is the last that was within budget, since its rate only ever rises.
        metric = whole.validate(model, epoch)
        best_after[epoch] = state_of(model) if metric >= BASELINE - 0.01 else best_after[epoch - 1]
        return metric

    whole.run(tmp_path / "whole", configure=scheduled(whole), validate=validate)

    torch.manual_seed(0)
    first = Subject(params=PATIENT)
    first.run(tmp_path / "parts", train=interrupting(first, number, interrupt), configure=scheduled(first))
    assert first.loop.outcome is Outcome.INTERRUPTED
    assert [record.epoch for record in first.trained] == list(range(1, number))
    assert_same_state(first.model, best_after[number - 1])
    assert first.loop.statistics.accuracy_budget >= 0

    torch.manual_seed(1)  # the random numbers go on with the run, whatever they are by now
    second = Subject(params=PATIENT)
    second.run(tmp_path / "parts", train=interrupting(second), configure=scheduled(second))
    assert second.num_trained == whole.num_trained - (number - 1)
    assert second.loop.outcome is whole.loop.outcome is Outcome.WITHIN_BUDGET
    assert second.trajectory == whole.trajectory
    assert_same_state(second.model, state_of(whole.model))
    assert second.learning_rates == whole.learning_rates[number - 1 :]
    assert len(list((tmp_path / "parts").iterdir())) == 1


def test_a_run_may_be_interrupted_again_and_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Subject()
    whole.run(tmp_path / "whole")
    torch.manual_seed(0)
    outcomes = []
    for _ in range(20):
        part = Subject()
        part.run(tmp_path / "parts", train=interrupting(part, 2, press_ctrl_c))
        outcomes.append(part.loop.outcome)
        if part.loop.outcome is not Outcome.INTERRUPTED:
            break
    assert outcomes.count(Outcome.INTERRUPTED) == 7
    assert part.trajectory == whole.trajectory
    assert_same_state(part.model, state_of(whole.model))


@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_early_exit_run_goes_on_too(number: int, tmp_path: Path) -> None:
    params = {"maximal_absolute_accuracy_degradation": 0.001, "maximal_total_epochs": 6}
    metrics = {epoch: 0.95 if epoch == 5 else 0.5 for epoch in range(7)}
    outcomes = []
    for folder, interrupted_at in (("whole", None), ("parts", number), ("parts", None)):
        torch.manual_seed(0)
        subject = Subject(mode="early_exit", params=params)
        train = interrupting(subject, interrupted_at, press_ctrl_c)
        subject.run(tmp_path / folder, train=train, validate=lambda model, epoch: metrics[epoch])
        outcomes.append((subject.loop.outcome, subject.trajectory, state_of(subject.model)))
    assert [outcome for outcome, *_ in outcomes] == [
        Outcome.WITHIN_BUDGET,
        Outcome.INTERRUPTED,
        Outcome.WITHIN_BUDGET,
    ]
    assert outcomes[2][1] == outcomes[0][1]
    torch.testing.assert_close(outcomes[2][2], outcomes[0][2], rtol=0, atol=0)


def test_an_interruption_with_nothing_within_budget_leaves_the_model_as_given(tmp_path: Path) -> None:
    subject = Subject()
    weight = subject.model.weight.item()
    train = interrupting(subject, 3, press_ctrl_c)
    subject.run(tmp_path, train=train, validate=lambda model: 0.5)
    assert subject.loop.outcome is Outcome.INTERRUPTED
    assert subject.model.state.tolist() == [0.0, 0.0, 0.0]
    assert subject.model.weight.item() == weight
    assert len(subject.trained) == 2


def test_an_interruption_before_the_first_validation_has_ended_is_passed_on(tmp_path: Path) -> None:
    subject = Subject()

    def validate(model: ScriptedModel) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        subject.run(tmp_path, validate=validate)
    assert subject.loop.outcome is None


# --- nothing within budget ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["adaptive_compression_level", "early_exit"])
def test_an_infeasible_run_returns_the_model_as_given_at_rate_0(mode: str, tmp_path: Path) -> None:
    subject = Subject(mode=mode)
    weight = subject.model.weight.item()
    subject.run(tmp_path, validate=lambda model: 0.5)
    assert subject.loop.outcome is Outcome.INFEASIBLE
    assert subject.num_trained > 0
    assert subject.model.state.tolist() == [0.0, 0.0, 0.0]
    assert subject.model.weight.item() == weight
    assert subject.loop.statistics.compression_rate == 0.0
    assert subject.controller.compression_rate == 0.0
    # What was tried is still told.
    assert len(subject.trained) == subject.num_trained
    assert {record.best_rate for record in subject.loop.history} == {None}


@pytest.mark.parametrize("sparsity_init", [0.0, 0.5])
def test_an_infeasible_run_gives_real_weights_back(sparsity_init: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    inputs = torch.randn(32, 8)
    as_given, outputs = state_of(model), model(inputs)
    config = NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, 8]},
            "accuracy_aware_training": {"mode": "adaptive_compression_level", "params": PARAMS},
            "compression": {"algorithm": "magnitude_sparsity", "sparsity_init": sparsity_init},
        }
    )
    controller, model = create_compressed_model(model, config)
    loop = create_accuracy_aware_training_loop(config, controller, BASELINE, verbose=False)
    assert controller.compression_rate == pytest.approx(sparsity_init, abs=0.01)

    def train(controller: Any, model: nn.Module, epoch: int, optimizer: Any, lr_scheduler: Any) -> float:
        for _ in range(3):
            controller.scheduler.step()
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            optimizer.step()
        return float(loss.item())

    loop.run(
        model,
        train,
        lambda model: 0.5,
        lambda: (torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), None),
        log_dir=tmp_path,
    )
    assert loop.outcome is Outcome.INFEASIBLE
    assert controller.compression_rate == 0.0
    assert loop.statistics.compression_rate == 0.0
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in as_given.items())
    assert torch.equal(model(inputs), outputs)


def test_there_is_no_outcome_before_the_run() -> None:
    loop = Subject().loop
    assert loop.outcome is None
    assert loop.history == []
    with pytest.raises(RuntimeError, match="no statistics before"):
        _ = loop.statistics

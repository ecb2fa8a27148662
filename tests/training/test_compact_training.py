"""The default training trains and runs a cut copy of a model whose filters are masked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.masks import MASK
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.errors import InterruptedRunError, UserFunctionError
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.default import DefaultTraining
from tests.nets import SmallNet, images
from tests.training.checkpoints.small_search import search
from tests.training.training_run import HALVING, TRAIN, TrainingRun, settings, user_function

ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}


def cut_by(rate: float, model: nn.Module, **options: Any) -> FilterPruningController:
    controller = FilterPruningController(model, FilterPruning(round_to=1, **options), example_input=TRAIN["inputs"][:2])
    controller.disable_scheduler()
    controller.compression_rate = rate
    return controller


def run_at(rate: float, make: Any = SmallNet, **changes: Any) -> TrainingRun:
    return TrainingRun(make, compress=lambda model: cut_by(rate, model), **changes)


def with_masks(run: TrainingRun) -> TrainingRun:
    """The same run without copies."""
    run.training._controller = None
    return run


def kept_weights(run: TrainingRun) -> dict[str, Tensor]:
    """The parameters, with zeros for what is masked."""
    buffers = dict(run.model.named_buffers())
    return {
        name: value.detach() * buffers.get(name + MASK, torch.ones(())) for name, value in run.model.named_parameters()
    }


class Counting(nn.Module):
    """Counts its own calls, and not those of its copies."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = SmallNet()
        self.identity = id(self)
        self.num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += id(self) == self.identity
        logits: Tensor = self.inner(x)
        return logits


# --- the same results --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"scheduler": HALVING, "gradient_clip_norm": 100.0}, {"channels_last": True}])
def test_an_epoch_learns_what_an_epoch_with_masks_does(changes: dict[str, Any]) -> None:
    changes = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.03}}} | changes
    compact, masked = run_at(0.6, **changes), with_masks(run_at(0.6, **changes))
    assert compact.train_epochs(2) == pytest.approx(masked.train_epochs(2), rel=1e-4)
    torch.testing.assert_close(kept_weights(compact), kept_weights(masked), rtol=1e-3, atol=1e-4)
    for name in ("stem.1.running_mean", "stem.1.running_var", "stem.1.num_batches_tracked"):
        kept = compact.model.get_buffer("stem.1.weight" + MASK) if "running" in name else 1
        torch.testing.assert_close(compact.weights[name] * kept, masked.weights[name] * kept, rtol=1e-3, atol=1e-4)
    assert compact.runner.validate().metric == masked.runner.validate().metric


def test_adaptation_reaches_the_statistics_of_the_masked_model() -> None:
    compact, masked = run_at(0.6), with_masks(run_at(0.6))
    means = []
    for run in (compact, masked):
        run.model.get_buffer("stem.1.running_mean").fill_(100.0)
        run.runner.adapt()
        means.append(run.model.get_buffer("stem.1.running_mean") * run.model.get_buffer("stem.1.weight" + MASK))
    assert means[0].abs().max() < 10
    torch.testing.assert_close(*means)


def test_validation_never_runs_an_old_state() -> None:
    run = run_at(0.6)
    states = []
    for rate in (0.6, 0.6, 0.3, 0.0):
        run.controller.compression_rate = rate
        run.train_epoch()
        states.append((copy.deepcopy(run.runner.checkpoint(0, {})), run.runner.validate()))
    for checkpoint, expected in [states[1], states[0], states[3], states[2], states[0]]:
        run.runner.restore_model(checkpoint)
        found = run.runner.validate()
        assert found.metric == expected.metric
        assert found.scores is not None
        assert expected.scores is not None
        assert torch.equal(found.scores, expected.scores)


# --- what runs ---------------------------------------------------------------------------------------------------


def num_calls(run: TrainingRun) -> int:
    """How often the whole model runs in an epoch, with its validation and its adaptation."""
    assert isinstance(run.model, Counting)
    before = run.model.num_calls
    run.train_epoch()
    run.runner.adapt()
    return run.model.num_calls - before


def test_the_whole_model_runs_at_rate_0_only() -> None:
    run = run_at(0.0, Counting)
    assert num_calls(run) > 0
    run.controller.compression_rate = 0.5
    assert num_calls(run) == 0
    run.runner.train_epoch()
    assert run.model.training


def test_the_users_own_training_function_gets_the_model() -> None:
    run = run_at(0.5, train_epoch=user_function("train_epoch"))
    before = run.weights
    run.runner.train_epoch()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in run.weights.items())


def test_other_optimizers_and_compiled_models_train_with_masks() -> None:
    run = run_at(0.5, Counting, optimizer={"class_path": "torch.optim.Adafactor", "init_args": {"lr": 0.01}})
    assert num_calls(run) == 6  # the batches of the epoch
    data, model = images(16), SmallNet()
    training = DefaultTraining(model, settings(compile=True), data, data, controller=cut_by(0.5, model))
    assert training._compact_model() is None


def test_a_model_that_has_no_copy_is_trained_with_masks_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> nn.Module:
        model = SmallNet()
        model.stem.register_forward_hook(lambda module, args, out: None)
        return model

    assert run_at(0.5, make).train_epochs(2)
    assert [record.message for record in caplog.records] == [
        "An epoch costs the same at every rate. No cut copy of SmallNet can be trained: it has hooks, which may refer "
        "to the model itself"
    ]


# --- continued runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": ADAM},
        {"optimizer": ADAM, "channels_last": True, "scheduler": HALVING},
        {"optimizer": {"class_path": "torch.optim.Adagrad", "init_args": {"lr": 0.01}}},
        {"precision": "fp16", "gradient_clip_norm": 0.1},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(changes: dict[str, Any]) -> None:
    """The rate changes within one phase of the optimizer, and between epochs of one rate."""

    def make() -> TrainingRun:
        return run_at(0.4, lambda: ResidualCNN((8, 16), num_classes=4), **changes)

    whole, parts = make(), make()
    for rate in (0.4, 0.4, 0.7, 0.7, 0.2):
        if parts.controller.report().requested_rate != rate:  # type: ignore[attr-defined]
            whole.controller.compression_rate = parts.controller.compression_rate = rate
        assert parts.train_epoch() == whole.train_epoch()
        assert_same_bits(parts.weights, whole.weights)
        checkpoint = copy.deepcopy(parts.runner.checkpoint(0, {}))
        parts = make()
        parts.runner.resume(checkpoint)
    assert_same_bits(parts.weights, whole.weights)


def test_a_failed_epoch_leaves_an_optimizer_of_the_whole_model() -> None:
    run = run_at(0.5, optimizer=ADAM)
    checkpoint = copy.deepcopy(run.runner.checkpoint(0, {}))
    loss_of = run.training._loss_of
    calls: list[int] = []

    def fail(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError
        return loss_of(*args)

    run.training._loss_of = fail  # type: ignore[method-assign,assignment]
    with pytest.raises(UserFunctionError):
        run.runner.train_epoch()
    parameters = {id(parameter) for parameter in run.model.parameters()}
    assert {id(each) for each in run.runner.optimizer.param_groups[0]["params"]} == parameters
    run.runner.roll_back(checkpoint)
    assert run.train_epochs(1)


def test_an_interrupted_search_of_filters_ends_as_it_would_have(tmp_path: Path) -> None:
    compression = {"algorithm": "filter_pruning", "round_to": 1}
    whole = search(tmp_path / "whole", compression=compression)
    for epoch in (2, 5):
        with pytest.raises(InterruptedRunError):
            search(tmp_path / "parts", stop_after=epoch, compression=compression)
    parts = search(tmp_path / "parts", compression=compression)
    assert whole.result.best is not None
    assert whole.result.best.achieved_rate > 0
    assert whole.result.metric == whole.result.best.metric  # validated again
    assert parts.trajectory == whole.trajectory
    assert_same_bits(parts.model, whole.model)

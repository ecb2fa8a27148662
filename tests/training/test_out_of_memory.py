"""An epoch that needs too much memory is named, or starts again with batches in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat import Outcome
from kedro_aat.budget import Budget
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import OutOfMemoryError
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Problem
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.loop import fine_tune
from kedro_aat.training.progress import LoopProgress
from kedro_aat.training.random_state import seed_everything
from kedro_aat.training.records import FineTuned
from kedro_aat.training.runner import TrainingRunner
from tests.nets import images
from tests.training.training_run import TrainingRun, plain_sgd, settings

HALVE: dict[str, Any] = {"on_out_of_memory": "halve_batch"}


class Hungry(nn.Module):
    """Needs more memory than there is, to train more than `limit` examples at once."""

    def __init__(self, limit: int = 16) -> None:
        super().__init__()
        self.limit = limit
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > self.limit:
            torch.empty(1 << 60)
        logits: Tensor = self.body(x)
        return logits


def test_error_names_batch_size_and_peak() -> None:
    run = TrainingRun(lambda: Hungry(4))
    with pytest.raises(
        OutOfMemoryError,
        match=r"^Epoch 1: train_epoch \(.*DefaultTraining.train_epoch\) ran out of memory with a batch size of 16; the "
        r"peak was \d+\.\d\d GiB.*training\.batch_size.*halve_batch",
    ) as caught:
        run.train_epochs(1)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_parts_of_a_batch_make_the_same_steps() -> None:
    whole, parts = TrainingRun(Hungry), TrainingRun(Hungry, **HALVE)
    assert parts.runner.halve_batch("train_epoch")
    assert parts.runner.halve_batch("train_epoch")
    parts.model.limit = 4  # type: ignore[assignment]
    assert parts.train_epochs(2) == pytest.approx(whole.train_epochs(2), rel=1e-5)
    torch.testing.assert_close(parts.weights, whole.weights)


def step_of(precision: str, num_halvings: int, clip: float | None) -> Tensor:
    """The change of all weights in one step on 64 examples, by plain SGD with learning rate 1: the gradient."""
    more: dict[str, Any] = {"precision": precision, "gradient_clip_norm": clip, "batch_size": 64, **HALVE}
    run = TrainingRun(lambda: Hungry(64), train=images(64), optimizer=plain_sgd(), **more)
    for _ in range(num_halvings):
        run.runner.halve_batch("train_epoch")
    before = run.weights
    run.train_epochs(1)
    return torch.cat([(after - before[name]).flatten() for name, after in run.weights.items()])


@pytest.mark.parametrize("num_halvings", [1, 3, 6])
@pytest.mark.parametrize("clip", [None, 0.05], ids=["", "clipped"])
def test_parts_in_bf16_make_the_step_of_the_large_batch(clip: float | None, num_halvings: int) -> None:
    """Their gradients are added up in float32, and clipped once, after that; bf16 rounds a number by 2^-8 at most."""
    exact, whole, parts = step_of("fp32", 0, clip), step_of("bf16", 0, clip), step_of("bf16", num_halvings, clip)
    assert 0 < float((whole - exact).norm()) < 2**-7 * float(exact.norm())
    assert float((parts - whole).norm()) < 2**-8 * float(exact.norm())
    if clip is not None:
        assert float(parts.norm()) == pytest.approx(clip, rel=1e-4)


def test_a_part_has_at_least_one_example() -> None:
    run = TrainingRun(Hungry, **HALVE)
    assert [run.runner.halve_batch("validate") for _ in range(5)] == [True] * 4 + [False]
    assert not TrainingRun(Hungry).runner.halve_batch("train_epoch")


def test_number_of_parts_is_remembered_and_never_falls() -> None:
    run = TrainingRun(Hungry, **HALVE)
    before = run.training.state_dict()
    run.runner.halve_batch("train_epoch")
    run.training.load_state_dict(before)
    assert run.training.state_dict()["num_parts"] == 2
    other = TrainingRun(Hungry, **HALVE)
    other.training.load_state_dict(run.training.state_dict())
    assert other.training.state_dict()["num_parts"] == 2
    old = {"scaler": before["scaler"]}  # as 0.1.0 wrote it
    other.training.load_state_dict(old)


def search(folder: Path, limit: int, epochs: int = 4, interrupted_at: int | None = None) -> tuple[FineTuned, nn.Module]:
    """Runs a search whose batches of 16 are too large from its second epoch on."""
    seed_everything(0)
    model = Hungry()
    controller = MagnitudeSparsityController(model)

    training = DefaultTraining(model, settings(**HALVE), images(48), images(16, seed=1))
    runner = TrainingRunner(model, controller, training.callables())
    train, calls = runner.train_epoch, []

    def train_hungrily() -> float | None:
        calls.append(runner.cumulative_epoch_count)
        model.limit = 16 if calls[-1] == 0 else limit
        loss = train()
        if calls[-1] == interrupted_at:
            raise KeyboardInterrupt
        return loss

    runner.train_epoch = train_hungrily  # type: ignore[method-assign]
    with CheckpointStore(folder).open({}) as checkpoints:
        policy = Frontier(maximal_total_epochs=epochs)
        progress = LoopProgress(verbose=False, total=None)
        result = fine_tune(runner, policy, Problem(), Budget(baseline=0.25, drop=0.2), checkpoints, progress)
    return result, model


def test_search_goes_on_in_parts_and_continues_as_it_would_have(tmp_path: Path) -> None:
    whole, model = search(tmp_path / "whole", limit=4)
    assert [row.epoch for row in whole.history] == [0, 1, 2, 3, 4]
    search(tmp_path / "parts", limit=4, interrupted_at=2)
    rest, resumed = search(tmp_path / "parts", limit=4)
    assert [vars(row) | {"seconds": 0} for row in rest.history] == [vars(row) | {"seconds": 0} for row in whole.history]
    assert rest.outcome is whole.outcome is Outcome.WITHIN_BUDGET
    state = resumed.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_search_that_does_not_fit_in_any_part_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match="Epoch 2: train_epoch") as caught:
        search(tmp_path, limit=0)
    assert "(training.batch_size). The error was" in str(caught.value)  # it was halved already


def test_function_of_the_users_is_not_halved() -> None:
    own = TrainingRun(Hungry, **HALVE, validate="tests.training.user_functions.validate_in_vain")
    assert own.runner.halve_batch("train_epoch")
    assert own.runner.halve_batch("sample_gradients")
    assert not own.runner.halve_batch("validate")
    for training in (HALVE, {}):
        own = TrainingRun(Hungry, **training, validate="tests.training.user_functions.validate_in_vain")
        with pytest.raises(OutOfMemoryError) as caught:
            own.runner.validate()
        assert "halve_batch" not in str(caught.value)

"""Faults of the user's functions are named, and nothing that was good is lost."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kedro_aat import AdaptiveCompressionTrainingLoop, create_compressed_model
from kedro_aat.errors import DataError, UserFunctionError
from kedro_aat.testing.training import SmallNet, images
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.guards.user_functions import calling, is_out_of_memory, name_of

DATA = images(16)
CONFIG: dict[str, Any] = {
    "compression": {"algorithm": "magnitude_sparsity"},
    "accuracy_aware_training": {
        "mode": "adaptive_compression_level",
        "params": {
            "maximal_absolute_accuracy_degradation": 0.5,
            "search": {"kind": "frontier", "maximal_total_epochs": 6},
        },
    },
}


class FaultError(Exception):
    """An error of the user's own."""


def fail(*args: Any, **more: Any) -> Any:
    raise FaultError("the user's own words")


def train(controller: Any, model: nn.Module, epoch: int, optimizer: Any, lr_scheduler: Any) -> float:
    model.train()
    controller.scheduler.step()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(DATA["inputs"]), DATA["targets"])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def validate(model: nn.Module, epoch: int) -> float:
    model.eval()
    return float((model(DATA["inputs"]).argmax(1) == DATA["targets"]).float().mean())


def dump(model: nn.Module, controller: Any, runner: Any, folder: str) -> str:
    torch.save(model.state_dict(), Path(folder, "mine.pth"))
    return str(Path(folder, "mine.pth"))


def load(model: nn.Module, path: str) -> None:
    model.load_state_dict(torch.load(path))


def from_epoch(number: int, usual: Callable[..., Any], fault: Callable[..., Any]) -> Callable[..., Any]:
    """`usual`, and `fault` from an epoch on."""

    def function(*args: Any, **more: Any) -> Any:
        return (fault if more["epoch"] >= number else usual)(*args, **more)

    return function


def run(folder: Path, **functions: Any) -> nn.Module:
    torch.manual_seed(0)
    controller, model = create_compressed_model(SmallNet(), CONFIG)
    loop = AdaptiveCompressionTrainingLoop(CONFIG, controller, 0.25, verbose=False)
    usual: dict[str, Any] = {
        "train_epoch_fn": train,
        "validate_fn": validate,
        "configure_optimizers_fn": lambda: (torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), None),
    }
    try:
        return loop.run(model, **(usual | functions), log_dir=folder)
    finally:
        run.model = model  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("functions", "begins"),
    [
        ({"train_epoch_fn": from_epoch(2, train, fail)}, r"Epoch 3: train_epoch \(tests.training"),
        ({"validate_fn": from_epoch(2, validate, fail)}, r"Epoch 2: validate \(tests.training"),
        ({"configure_optimizers_fn": fail}, r"Epoch 0: configure_optimizers \("),
        ({"early_stopping_fn": fail}, r"Epoch 1: early_stopping \("),
        ({"update_learning_rate_fn": fail}, r"Epoch 1: update_learning_rate \("),
        ({"dump_checkpoint_fn": fail}, r"Epoch 0: dump_checkpoint \("),
        ({"dump_checkpoint_fn": dump, "load_checkpoint_fn": fail}, r"Epoch \d+: load_checkpoint \("),
    ],
    ids=lambda value: value.partition(" \\(")[0] if isinstance(value, str) else "",
)
def test_error_begins_with_the_epoch_the_function_and_its_own_traceback(
    functions: dict[str, Any], begins: str, tmp_path: Path
) -> None:
    with pytest.raises(UserFunctionError) as caught:
        run(tmp_path, **functions)
    first, second, third, *_ = str(caught.value).splitlines()
    assert re.match(begins, first)  # the search decides when a checkpoint is loaded
    assert first.endswith("failed.")
    assert second == "Traceback (most recent call last):"
    assert __file__ in third
    assert "FaultError: the user's own words" in str(caught.value)
    assert isinstance(caught.value.__cause__, FaultError)
    (folder,) = tmp_path.iterdir()
    assert str(folder) in str(caught.value)
    number = int(first.split(":", maxsplit=1)[0].removeprefix("Epoch "))
    if "train" in begins or "validate" in begins:  # the epochs before are kept, and the model is in their state
        checkpoint = CheckpointStore(tmp_path).load(folder.name, number - 1)
        state = run.model.state_dict()  # type: ignore[attr-defined]
        assert all(torch.equal(state[name], tensor) for name, tensor in checkpoint.model.items())


def test_our_own_errors_stay_as_they_are() -> None:
    with pytest.raises(DataError, match="no data"), calling(fail, "validate", "epoch 1"):
        raise DataError("no data")


def test_exit_of_a_function_is_an_error_too() -> None:
    with pytest.raises(UserFunctionError, match="Epoch 1: validate"), calling(fail, "validate", "epoch 1"):
        raise SystemExit(0)


def flip_signs(model: nn.Module, epoch: int) -> float:
    for parameter in model.parameters():
        parameter.data.neg_()
    return 0.9


def shrink(model: nn.Module, epoch: int) -> float:
    for parameter in model.parameters():
        parameter.data.mul_(0.97)
    return 0.9


def in_training_mode(model: nn.Module, epoch: int) -> float:
    model.train()
    model(DATA["inputs"])
    return 0.9


@pytest.mark.parametrize(
    ("fault", "epoch", "tensor"),
    [(shrink, 0, "stem.0.weight"), (flip_signs, 0, "stem.0.weight"), (in_training_mode, 1, "stem.1.running_mean")],
)
def test_validation_that_changes_the_model_is_an_error(
    fault: Callable[..., Any], epoch: int, tensor: str, tmp_path: Path
) -> None:
    with pytest.raises(
        UserFunctionError, match=rf"Epoch {epoch}: validate \({__name__}\.{fault.__name__}\) changed"
    ) as caught:
        run(tmp_path, validate_fn=fault)
    assert tensor in str(caught.value)
    assert "model.eval()" in str(caught.value)


def test_names_that_change_during_the_run_are_an_error(tmp_path: Path) -> None:
    def grow(controller: Any, model: nn.Module, **more: Any) -> float:
        model.register_buffer("extra", torch.zeros(1))
        return train(controller, model, **more)

    with pytest.raises(
        UserFunctionError, match="Epoch 3: the names in the model's state_dict changed: extra was added"
    ):
        run(tmp_path, train_epoch_fn=from_epoch(2, train, grow))
    (folder,) = tmp_path.iterdir()
    assert CheckpointStore(tmp_path).numbers_of(folder.name)[-1] == 2


@pytest.mark.parametrize("calls_train", [True, False])
def test_training_in_evaluation_mode_is_named_once(
    calls_train: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train_as_found(controller: Any, model: nn.Module, **more: Any) -> float:
        mode = model.training or calls_train
        loss = train(controller, model, **more)
        model.train(mode)
        return loss

    with caplog.at_level(logging.WARNING):
        run(tmp_path, train_epoch_fn=train_as_found)
    told = [record.getMessage() for record in caplog.records if "evaluation mode" in record.getMessage()]
    assert len(told) == (0 if calls_train else 1)
    assert not told or told[0].startswith(f"Epoch 1: train_epoch ({__name__}.")


def test_errors_of_memory_are_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_names_of_functions() -> None:
    class Scorer:
        def __call__(self) -> None: ...

    assert name_of(fail) == f"{__name__}.fail"
    assert name_of(nn.Linear(1, 1)) == "torch.nn.modules.linear.Linear"
    assert name_of(Scorer()).endswith("Scorer")

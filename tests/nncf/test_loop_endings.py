"""How the loops end and resume, on the scripted model: interruptions, and searches without a rate within budget."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers

from kedro_aat import (
    NNCFConfig,
    Outcome,
    create_accuracy_aware_training_loop,
    create_compressed_model,
)
from tests.scripted import ScriptedModel
from tests.training.scripted_loop import (
    BASELINE,
    PARAMS,
    PATIENT,
    ScriptedLoop,
    assert_same_state,
    state_of,
)


def test_the_scripted_run_changes_direction_and_finds_a_rate(tmp_path: Path) -> None:
    # The other tests rely on this: several rates upward, a change of direction, and several epochs at one rate.
    subject = ScriptedLoop()
    subject.run(tmp_path)
    rates = [record.requested_rate for record in subject.trained]
    assert rates == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.5, 0.6, 0.6, 0.55], abs=1e-9)
    assert subject.loop.outcome is Outcome.WITHIN_BUDGET
    assert subject.loop.statistics.compression_rate == pytest.approx(0.5)


# --- interruptions -----------------------------------------------------------------------------------------


@dataclass
class Interrupting:
    """The subject's training function, interrupted in the middle of its `number`-th call.

    A run is identified by the source of its functions, so the resumed run must use this class, too; the attributes of
    an object, which may change while it runs, do not count.
    """

    subject: ScriptedLoop
    number: int | None = None
    interrupt: Callable[[], None] | None = None

    def __call__(self, controller: Any, model: ScriptedModel, epoch: int, **more: Any) -> float | None:
        loss = self.subject.train(controller, model, epoch, **more)
        if self.interrupt is not None and self.subject.num_trained == self.number:
            self.interrupt()
        return loss


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def scheduled(subject: ScriptedLoop) -> Callable[[], tuple[Any, Any]]:
    def configure() -> tuple[Any, Any]:
        optimizer, _ = subject.sgd()
        first, second = schedulers.LinearLR(optimizer, 0.1, 1.0, 2), schedulers.ExponentialLR(optimizer, 0.9)
        return optimizer, schedulers.SequentialLR(optimizer, [first, second], milestones=[2])

    return configure


@pytest.mark.filterwarnings("ignore:.*deprecat.*:UserWarning")
@pytest.mark.parametrize("interrupt", [press_ctrl_c, terminate])
@pytest.mark.parametrize("number", [1, 2, 7, 12])
def test_an_interrupted_run_returns_its_best_model_and_resumes_as_if_uninterrupted(
    number: int, interrupt: Callable[[], None], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    whole = ScriptedLoop(params=PATIENT)
    best_after: dict[int, dict[str, Tensor]] = {}

    def validate(model: ScriptedModel, epoch: int) -> float:
        # The best model so far is the last one within budget, since the rates within budget only increase.
        metric = whole.validate(model, epoch)
        best_after[epoch] = state_of(model) if metric >= BASELINE - 0.01 else best_after[epoch - 1]
        return metric

    whole.run(tmp_path / "whole", configure=scheduled(whole), validate=validate)

    torch.manual_seed(0)
    first = ScriptedLoop(params=PATIENT)
    first.run(tmp_path / "parts", train=Interrupting(first, number, interrupt), configure=scheduled(first))
    assert first.loop.outcome is Outcome.INTERRUPTED
    assert [record.epoch for record in first.trained] == list(range(1, number))
    assert_same_state(first.model, best_after[number - 1])
    assert first.loop.statistics.accuracy_budget >= 0

    torch.manual_seed(1)  # the resumed run restores its own random state
    second = ScriptedLoop(params=PATIENT)
    second.run(tmp_path / "parts", train=Interrupting(second), configure=scheduled(second))
    assert second.num_trained == whole.num_trained - (number - 1)
    assert second.loop.outcome is whole.loop.outcome is Outcome.WITHIN_BUDGET
    assert second.trajectory == whole.trajectory
    assert_same_state(second.model, state_of(whole.model))
    assert second.learning_rates == whole.learning_rates[number - 1 :]
    assert len(list((tmp_path / "parts").iterdir())) == 1


def test_another_learning_rate_or_baseline_is_another_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def interrupted(lr: float, baseline: float = BASELINE) -> str:
        subject = ScriptedLoop(params=PATIENT, baseline=baseline)

        def configure() -> tuple[Any, Any]:
            return torch.optim.SGD(subject.model.parameters(), lr=lr), None

        caplog.clear()
        subject.run(tmp_path, train=Interrupting(subject, 2, press_ctrl_c), configure=configure)
        return "".join(record.message for record in caplog.records if "New run" in record.message)

    assert not interrupted(0.1)
    assert not interrupted(0.1)
    assert "the values that " in (line := interrupted(0.2))
    assert "configure is given changed since run" in line
    assert "the baseline's metric" in interrupted(0.2, BASELINE + 0.001)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_run_may_be_interrupted_repeatedly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = ScriptedLoop()
    whole.run(tmp_path / "whole")
    torch.manual_seed(0)
    outcomes = []
    for _ in range(20):
        part = ScriptedLoop()
        part.run(tmp_path / "parts", train=Interrupting(part, 2, press_ctrl_c))
        outcomes.append(part.loop.outcome)
        if part.loop.outcome is not Outcome.INTERRUPTED:
            break
    assert outcomes.count(Outcome.INTERRUPTED) == 7
    assert part.trajectory == whole.trajectory
    assert_same_state(part.model, state_of(whole.model))


@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_early_exit_run_resumes_too(number: int, tmp_path: Path) -> None:
    params = {"maximal_absolute_accuracy_degradation": 0.001, "maximal_total_epochs": 6}
    metrics = {epoch: 0.95 if epoch == 5 else 0.5 for epoch in range(7)}
    outcomes = []
    for folder, interrupted_at in (("whole", None), ("parts", number), ("parts", None)):
        torch.manual_seed(0)
        subject = ScriptedLoop(mode="early_exit", params=params)
        train = Interrupting(subject, interrupted_at, press_ctrl_c)
        subject.run(tmp_path / folder, train=train, validate=lambda model, epoch: metrics[epoch])
        outcomes.append((subject.loop.outcome, subject.trajectory, state_of(subject.model)))
    assert [outcome for outcome, *_ in outcomes] == [
        Outcome.WITHIN_BUDGET,
        Outcome.INTERRUPTED,
        Outcome.WITHIN_BUDGET,
    ]
    assert outcomes[2][1] == outcomes[0][1]
    torch.testing.assert_close(outcomes[2][2], outcomes[0][2], rtol=0, atol=0)


def test_an_interruption_with_nothing_within_budget_restores_the_original_model(tmp_path: Path) -> None:
    subject = ScriptedLoop()
    weight = subject.model.weight.item()
    train = Interrupting(subject, 3, press_ctrl_c)
    subject.run(tmp_path, train=train, validate=lambda model: 0.5)
    assert subject.loop.outcome is Outcome.INTERRUPTED
    assert subject.model.state.tolist() == [0.0, 0.0, 0.0]
    assert subject.model.weight.item() == weight
    assert len(subject.trained) == 2


def test_an_interruption_during_the_first_validation_is_raised(tmp_path: Path) -> None:
    subject = ScriptedLoop()

    def validate(model: ScriptedModel) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        subject.run(tmp_path, validate=validate)
    assert subject.loop.outcome is None


# --- nothing within budget ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["adaptive_compression_level", "early_exit"])
def test_an_infeasible_run_returns_the_original_model_at_rate_0(mode: str, tmp_path: Path) -> None:
    subject = ScriptedLoop(mode=mode)
    weight = subject.model.weight.item()
    subject.run(tmp_path, validate=lambda model: 0.5)
    assert subject.loop.outcome is Outcome.INFEASIBLE
    assert subject.num_trained > 0
    assert subject.model.state.tolist() == [0.0, 0.0, 0.0]
    assert subject.model.weight.item() == weight
    assert subject.loop.statistics.compression_rate == 0.0
    assert subject.controller.compression_rate == 0.0
    # The history still has all epochs.
    assert len(subject.trained) == subject.num_trained
    assert {record.best_rate for record in subject.loop.history} == {None}


@pytest.mark.parametrize("sparsity_init", [0.0, 0.5])
def test_an_infeasible_run_restores_the_weights_of_a_real_model(sparsity_init: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    inputs = torch.randn(32, 8)
    original, outputs = state_of(model), model(inputs)
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
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in original.items())
    assert torch.equal(model(inputs), outputs)


def test_there_is_no_outcome_before_the_run() -> None:
    loop = ScriptedLoop().loop
    assert loop.outcome is None
    assert loop.history == []
    with pytest.raises(RuntimeError, match="no statistics before"):
        _ = loop.statistics

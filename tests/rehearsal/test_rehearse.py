"""A rehearsal does little, leaves everything as it was, and is not repeated."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kedro_aat.config import AatSettings
from kedro_aat.delivery.rehearsal_result import RehearsalResult
from kedro_aat.errors import ExportError, RehearsalError
from kedro_aat.export.targets.openvino import OpenvinoTarget
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.pipelines.aat.nodes import rehearse as node
from kedro_aat.rehearsal import rehearse as module
from kedro_aat.rehearsal.limited import few_calls
from kedro_aat.rehearsal.rehearse import rehearse
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.validated import parse
from tests.rehearsal.faulty import Case, Plain, Squeezing, labeled, settings_of
from tests.rehearsal.test_faults import SPARSE

CALLS: list[str] = []


def settings(**changes: Any) -> AatSettings:
    return parse(AatSettings, settings_of(Case(settings={**SPARSE, **changes})))


@pytest.fixture
def plain() -> Plain:
    torch.manual_seed(0)
    return Plain()


def test_what_has_passed_is_not_repeated(
    plain: Plain, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    data, store = labeled(), CheckpointStore(tmp_path)
    first = rehearse(plain, data, data, settings(), store)
    assert first.outcome == "passed"
    assert f"Rehearsal passed in {first.seconds:.1f} s" in caplog.text
    assert {part.name for part in first.parts} >= {"training", "checkpoint", "first stage (magnitude_sparsity)"}
    assert [path.name for path in tmp_path.iterdir()] == ["rehearsals"]

    def fail(*_: Any) -> None:
        raise AssertionError("repeated")

    monkeypatch.setattr(module, "_Parts", fail)
    caplog.clear()
    assert not first.passed_before
    kept = first.model_copy(update={"passed_before": True})
    assert rehearse(plain, data, data, settings(), store) == kept
    assert f"Rehearsal passed before, in {first.seconds:.1f} s" in caplog.text
    # What a rehearsal does not depend on may change.
    assert rehearse(plain, data, data, settings(certificate=None, search={"kind": "early_exit"}), store) == kept
    for other in (settings(seed=3), settings(training={"batch_size": 16}), settings(export={"tolerance": 1e-3})):
        with pytest.raises(AssertionError, match="repeated"):
            rehearse(plain, data, data, other, store)
    with torch.no_grad():
        plain.head.bias.add_(1)
    with pytest.raises(AssertionError, match="repeated"):
        rehearse(plain, data, data, settings(), store)


def no_board(path: Path) -> None:
    assert path.read_bytes()
    raise TimeoutError("no answer in 60 s")


def test_a_device_that_does_not_answer_is_an_error_before_the_search(
    plain: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "stages_of", lambda settings: [])  # they take seconds, and ask no device
    data = labeled()
    with pytest.raises(RehearsalError) as caught:
        rehearse(plain, data, data, settings(export={"measure_with": f"{__name__}.no_board"}))
    (fault,) = caught.value.faults
    assert fault.startswith("the device (export.measure_with): TimeoutError: no answer in 60 s. Mend the function")
    assert "set export.measure_with to null" in fault


class SingleExamples(OpenvinoTarget):
    """A target that takes one example in a run, as LiteRT does."""

    def write(self, *args: Any) -> TargetFile:
        return replace(super().write(*args), batch_size=1)


def test_latency_that_a_target_cannot_have_is_an_error_before_the_search(
    plain: Plain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "stages_of", lambda settings: [])  # as above
    monkeypatch.setattr("kedro_aat.rehearsal.files.target_of", lambda name: SingleExamples())
    data = labeled()
    with pytest.raises(RehearsalError) as caught:
        rehearse(plain, data, data, settings(export={"objective": {"target": "openvino", "latency_ms": 64}}))
    assert caught.value.faults == [
        "the baseline, latency of the OpenVINO file: it takes batches of 1 alone, and its latency at batch 64 is to "
        "decide or is limited. Name batch 1 in export.objective and export.limits, and first in export.batch_sizes. "
        "Until then no stage can deliver a file of this model."
    ]
    assert "export.objective names openvino, so that its file is written as well" in caplog.text


def test_nothing_is_changed(plain: Plain) -> None:
    before, data = copy.deepcopy(plain.state_dict()), labeled()
    torch.manual_seed(5)
    plain.train()
    expected = torch.get_rng_state()
    rehearse(plain, data, data, settings())
    assert torch.equal(torch.get_rng_state(), expected)
    assert plain.training
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())


def test_a_data_loader_is_read_in_part(plain: Plain) -> None:
    data = labeled()
    loader = DataLoader(TensorDataset(data["inputs"], data["targets"]), batch_size=16)
    searched = settings(export={})  # for axes that may have any size, as by default
    assert rehearse(plain, loader, loader, searched).outcome == "passed"


def test_it_can_be_switched_off(plain: Plain) -> None:
    class Unused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    data = labeled()
    off = RehearsalResult(outcome="off")
    assert rehearse(Unused(), data, data, settings(rehearsal=False)) == off
    assert rehearse(Unused(), data, data, settings(choose={"max_drop": 0.1})) == off
    assert rehearse(Unused(), data, data, settings(best_so_far=True)) == off
    assert node(Unused(), data, data, settings(rehearsal=False)) == off.model_dump(mode="json")


class Large(nn.Module):
    """A model of 2.4 GB, which take no memory: all of its weights are one number, or have no values at all."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device=device).expand(300_000_000))
        self.other = nn.Parameter(torch.zeros(1, device=device).expand(300_000_000))

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("it is refused before it is run")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_that_no_file_holds_is_refused_at_once(device: str) -> None:
    data, started = labeled(), time.monotonic()
    with pytest.raises(RehearsalError) as caught:
        rehearse(Large(device), data, data, settings())
    assert time.monotonic() - started < 5
    told = str(caught.value)
    assert "the baseline, export as ONNX file: 2,400,000,000 bytes are the tensors of Large" in told
    assert "holds at most 2,000,000,000: start from a smaller model" in told


def test_a_target_whose_file_cannot_be_timed_is_told_before_the_search(
    plain: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")

    def fails(*_: Any) -> Any:
        raise ExportError("no such kernel")

    monkeypatch.setattr(OpenvinoTarget, "bind", fails)
    data = labeled()
    with pytest.raises(RehearsalError, match="no such kernel") as caught:
        rehearse(plain, data, data, settings(export={"targets": ["onnx", "openvino"]}))
    assert "measuring the OpenVINO file" in str(caught.value)


def test_the_last_batch_of_a_split_may_be_a_single_example() -> None:
    data = labeled(33)
    with pytest.raises(RehearsalError, match="metric in evaluation mode") as caught:
        rehearse(Squeezing(), data, data, settings())
    assert len(caught.value.faults) >= 1


def count_steps(controller: Any, model: nn.Module, *, epoch: int, optimizer: Any, lr_scheduler: Any) -> float:
    """Trains on batches of its own, without end."""
    model.train()
    while True:
        controller.scheduler.step()
        optimizer.zero_grad()
        loss = model(torch.randn(4, 1, 8, 8)).square().mean() + controller.loss()
        loss.backward()
        optimizer.step()
        CALLS.append("step")


def test_a_training_function_with_data_of_its_own_is_ended_after_two_steps(plain: Plain) -> None:
    CALLS.clear()
    data = labeled()
    result = rehearse(plain, data, data, settings(training={"train_epoch": f"{__name__}.count_steps"}))
    assert result.outcome == "passed"
    assert len(CALLS) == 6  # of the baseline, and of the stage at both rates


def test_few_calls_lets_a_function_end_that_gets_its_data() -> None:
    model = nn.Identity()

    def given(model: nn.Module, data: Any) -> None: ...

    with few_calls(model, given):
        results = [model(torch.zeros(1)) for _ in range(9)]
    with few_calls(model, count_steps):
        results = [model(torch.zeros(1)) for _ in range(9)]
    assert len(results) == 9
    assert not model._forward_pre_hooks


class Endless(torch.utils.data.Dataset[Any]):
    """Counts the examples that are read."""

    def __init__(self) -> None:
        self.read: set[int] = set()

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read.add(index)
        return torch.full((1, 8, 8), index / 100_000), index % 4

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def test_few_examples_are_read(plain: Plain) -> None:
    train, validation = Endless(), Endless()
    rehearse(plain, train, validation, settings())
    assert len(train.read) <= 2 * 32 + 64
    assert len(validation.read) <= 32 + 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_works_on_a_gpu(plain: Plain) -> None:
    data = labeled()
    on_gpu = {"training": {"device": "cuda", "precision": "bf16"}, "second_stage": {}}
    assert rehearse(plain, data, data, settings(**on_gpu)).outcome == "passed"
    assert next(plain.parameters()).device.type == "cpu"

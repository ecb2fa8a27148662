"""Trackers follow a run from its first epoch to what it delivers, and cannot end it."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat import CompressionResult, compress
from kedro_aat.errors import ConfigurationError, InterruptedRunError
from kedro_aat.testing.training import images, small_net, train
from kedro_aat.trackers import Delivered, EpochRecord, FineTuned, TrackedSearch, Tracker

TRAIN, VALIDATION = images(128), images(64, seed=1)
TOLD: list[tuple[str, Any]] = []


class Noting(Tracker):
    """Keeps what it is told."""

    def __init__(self, interrupts: bool = False) -> None:
        self._interrupts = interrupts

    def start(self, search: TrackedSearch) -> None:
        TOLD.append(("start", search))

    def epoch(self, record: EpochRecord) -> None:
        TOLD.append(("epoch", record))
        if self._interrupts and record.epoch == 1:
            raise KeyboardInterrupt

    def finish(self, result: FineTuned | None) -> None:
        TOLD.append(("finish", result))

    def deliver(self, delivered: Delivered) -> None:
        TOLD.append(("deliver", delivered))


class Failing(Noting):
    def epoch(self, record: EpochRecord) -> None:
        raise ConnectionError("no route to host")

    def deliver(self, delivered: Delivered) -> None:
        raise ConnectionError("still none")


def made_of(given: Any) -> object:
    return given


def run(folder: Path, *trackers: Any, **more: Any) -> CompressionResult:
    torch.manual_seed(0)
    net: nn.Module = small_net()
    train(net, torch.optim.Adam(net.parameters(), 0.01), num_steps=30, batch=TRAIN)
    settings: dict[str, Any] = {
        "compression": {"algorithm": "filter_pruning"},
        "export": {"latency_seconds": 0.01, "batch_sizes": [1], "objective": "bytes"},
        "training": {"device": "cpu", "num_threads": 1},
        "rehearsal": False,
        "trackers": [*trackers],
        "budget": 0.4,
        "epochs": 2,
    }
    TOLD.clear()
    splits = [(data["inputs"], data["targets"]) for data in (TRAIN, VALIDATION)]
    return compress(net, *splits, folder=folder, **{**settings, **more})


def told(what: str) -> list[Any]:
    return [value for name, value in TOLD if name == what]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def interrupted(folder: Path) -> list[tuple[str, Any]]:
    with pytest.raises(InterruptedRunError):
        run(folder, functools.partial(Noting, interrupts=True))
    return [*TOLD]


@pytest.fixture(scope="module")
def finished(folder: Path, interrupted: object) -> tuple[CompressionResult, list[tuple[str, Any]]]:
    second = {
        "compression": {"algorithm": "magnitude_sparsity"},
        "search": {"kind": "frontier", "maximal_total_epochs": 1},
        "skip_without_gain": False,
    }
    result = run(folder, Noting, second_stage=second)
    return result, [*TOLD]


def test_an_interrupted_search_is_finished_without_a_result(interrupted: list[tuple[str, Any]]) -> None:
    assert [name for name, _ in interrupted] == ["start", "epoch", "epoch", "finish"]
    assert [record.epoch for name, record in interrupted if name == "epoch"] == [0, 1]
    assert interrupted[-1][1] is None or interrupted[-1][1].outcome == "interrupted"


def test_each_stage_goes_on_from_what_is_known(
    finished: tuple[CompressionResult, list[tuple[str, Any]]], interrupted: list[tuple[str, Any]]
) -> None:
    result, events = finished
    first, second = (value for name, value in events if name == "start")
    assert (first.stage, second.stage) == (1, 2)
    assert first.run == first.first_run == second.first_run == result.summary.run == interrupted[0][1].run
    assert second.run not in ("", first.run)
    known = [record for name, record in interrupted if name == "epoch"]
    assert [record.epoch for record in first.history] == [record.epoch for record in known]
    names = [name for name, _ in events]
    assert names.count("finish") == 2
    assert names[-1] == "deliver"
    ended = [value for name, value in events if name == "finish"]
    assert [stage.outcome for stage in ended] == [stage.outcome for stage in result.summary.stages]


def test_what_is_delivered(finished: tuple[CompressionResult, list[tuple[str, Any]]]) -> None:
    result, events = finished
    delivered = events[-1][1]
    assert delivered.run == result.summary.run
    assert delivered.metrics["compressed.onnx_bytes"] == result.compressed.onnx_bytes
    assert delivered.metrics["is_within_budget"] == 1
    assert delivered.tags["outcome"] == "within_budget"
    assert "test split was left unread" in delivered.tags["certificate"]
    assert delivered.onnx.graph.input[0].type.tensor_type.HasField("shape")
    start = next(value for name, value in events if name == "start")
    assert delivered.parameters == start.parameters
    parameters = delivered.parameters
    assert parameters["budget.max_drop"] == 0.4
    assert parameters["compression.algorithm"] == "filter_pruning"
    assert parameters["training.optimizer.init_args.lr"] == 1e-3
    assert parameters["export.batch_sizes"] == "[1]"
    assert "compression.schedule.kind" not in parameters  # a section at its defaults
    assert not any(name.startswith("trackers") for name in parameters)  # whose arguments may be secret


def test_numbers_of_an_epoch(finished: tuple[CompressionResult, list[tuple[str, Any]]]) -> None:
    record = next(value for name, value in finished[1] if name == "epoch")
    assert record.scalars["rate/achieved"] == record.achieved_rate
    assert record.scalars["metric/validation"] == record.metric
    assert None not in record.scalars.values()


def test_a_tracker_that_fails_ends_no_run_and_a_finished_search_is_told_again(
    folder: Path, finished: tuple[CompressionResult, object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "kedro_aat"):
        again = run(folder, Failing)
    assert again.summary.run == finished[0].summary.run
    (search,) = told("start")
    assert search.is_over
    assert search.history[-1].epoch >= 2
    assert "Failing failed, and the run goes on. ConnectionError: still none" in caplog.text


def test_epochs_that_cannot_be_told_are_warnings_and_nothing_delivered_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "kedro_aat"):
        result = run(tmp_path, Noting, Failing, epochs=1, budget=0.0001, minimal_rate=0.95)
    assert caplog.text.count("Failing failed, and the run goes on. ConnectionError: no route to host") >= 2
    (delivered,) = told("deliver")
    assert result.outcome == "infeasible"
    assert told("finish")[-1].outcome == "infeasible"
    assert delivered.onnx is None
    assert delivered.metrics["is_within_budget"] == 0
    assert delivered.tags["outcome"] == "infeasible"
    assert delivered.tags["delivered"] == "nothing"


@pytest.mark.parametrize(
    ("tracker", "mistake"),
    [
        ({"class_path": "tests.trackers.test_trackers.Nothing"}, r"trackers.0.class_path: .*Nothing"),
        ({"class_path": f"{__name__}.Noting", "init_args": {"size": 1}}, r"trackers.0.*size"),
        (
            {"class_path": f"{__name__}.made_of", "init_args": {"given": 1}},
            "trackers.0: .* must be a kedro_aat.trackers",
        ),
    ],
)
def test_what_is_no_tracker_is_found_before_anything_is_trained(tmp_path: Path, tracker: Any, mistake: str) -> None:
    from kedro_aat.config import AatSettings

    settings = AatSettings.model_validate(
        {
            "budget": {"max_drop": 0.1},
            "training": {"metric": {"class_path": "torchmetrics.MeanSquaredError"}},
            "trackers": [tracker],
        }
    )
    with pytest.raises(ConfigurationError, match=mistake):
        settings.check()

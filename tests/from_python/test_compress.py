"""One call does what the pipeline does, with the objects that a caller has at hand."""

from __future__ import annotations

import functools
import logging
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from kedro_aat import CompressionResult, Outcome, compress
from kedro_aat.datasets.model import ModelDataset
from kedro_aat.errors import ConfigurationError, DataError, InterruptedRunError, ModelError
from kedro_aat.testing.training import SmallNet, images, small_net, train
from kedro_aat.training.records import EpochRecord
from tests.from_python.same_as_pipeline import require_same_as_the_pipeline

TRAIN, VALIDATION, TEST = images(128), images(64, seed=1), images(64, seed=2)
SEEN: list[EpochRecord] = []


def note(record: EpochRecord) -> None:
    SEEN.append(record)


# What a search of seconds needs, and a choice of the file that does not depend on how busy the machine is.
SMALL: dict[str, Any] = {
    "compression": {"algorithm": "filter_pruning"},
    "export": {"latency_seconds": 0.01, "batch_sizes": [1], "objective": "bytes", "dynamic_axes": {}},
    "training": {"device": "cpu", "num_threads": 1, "on_epoch": note},
    "rehearsal": False,
}
INT8 = {
    "compression": {"algorithm": "quantization"},
    "search": {"kind": "frontier", "maximal_total_epochs": 1},
    "skip_without_gain": False,
}


class Interrupt(logging.Handler):
    """Presses Ctrl-C in the first epoch, and keeps all messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        if self.num_times("epoch 1  rate") == 1 and self.messages[-1].startswith("epoch 1  rate"):
            signal.raise_signal(signal.SIGINT)

    def num_times(self, start: str) -> int:
        return sum(message.startswith(start) for message in self.messages)


def small(**more: Any) -> Any:
    arguments = {"budget": 0.4, "epochs": 3, **SMALL, **more}
    return functools.partial(compress, **arguments)


def model() -> nn.Module:
    net = small_net()
    train(net, torch.optim.Adam(net.parameters(), 0.01), num_steps=30, batch=TRAIN)
    return net


def pair(data: Any) -> Any:
    return data["inputs"], data["targets"]


def given() -> dict[str, Any]:
    return {"baseline_model": model(), "train_data": TRAIN, "validation_data": VALIDATION, "test_data": TEST}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compressed")


@pytest.fixture(scope="module")
def log() -> Iterator[Interrupt]:
    handler = Interrupt()
    logging.getLogger("kedro_aat").addHandler(handler)
    yield handler
    logging.getLogger("kedro_aat").removeHandler(handler)


@pytest.fixture(scope="module")
def result(folder: Path, log: Interrupt) -> CompressionResult:
    call = functools.partial(small(recipe=SmallNet, folder=folder), model(), pair(TRAIN), pair(VALIDATION), test=TEST)
    with pytest.raises(InterruptedRunError):
        call()
    so_far = call(best_so_far=True)
    assert so_far.summary.epochs.used == 1
    assert so_far.files["compressed_onnx"].exists()
    assert so_far.summary.certificate.examples is None
    found: CompressionResult = call()
    return found


def test_ctrl_c_loses_nothing(result: CompressionResult, log: Interrupt) -> None:
    assert log.num_times("epoch 1  rate") == 1
    assert log.num_times("Continuing after epoch 1 ") == 1
    assert result.summary.epochs.used > 1
    # Each epoch was told once, in both processes together.
    records = SEEN[: result.summary.epochs.used + 1]
    assert [record.epoch for record in records] == [*range(len(records))]
    assert [record.metric for record in records] == result.trajectory["metric"].tolist()[: len(records)]


def test_result_is_that_of_the_pipeline(result: CompressionResult, tmp_path: Path) -> None:
    require_same_as_the_pipeline(result, given(), tmp_path)


@pytest.mark.slow
def test_result_of_two_stages_is_that_of_the_pipeline(tmp_path: Path) -> None:
    call = small(folder=tmp_path / "call", second_stage=INT8, rehearsal=True)
    require_same_as_the_pipeline(call(model(), pair(TRAIN), pair(VALIDATION), test=TEST), given(), tmp_path)


def test_model_files_and_numbers_are_of_one_model(result: CompressionResult) -> None:
    assert result.outcome in (Outcome.CERTIFIED, Outcome.WITHIN_BUDGET)
    assert result.summary.certificate.examples == 64
    assert result.model is not None
    inputs = TEST["inputs"]
    session = onnxruntime.InferenceSession(result.files["compressed_onnx"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.no_grad():
        expected = result.model(inputs).numpy()
    is_int8 = "quantization" in (result.summary.delivered or "") or (result.summary.delivered_candidate or 0) != 0
    np.testing.assert_allclose(outputs, expected, atol=0.1 * float(np.abs(expected).max()) if is_int8 else 1e-5)
    again = ModelDataset(
        filepath=str(result.files["compressed_model"]), class_path="kedro_aat.testing.training.SmallNet"
    )
    with torch.no_grad():
        np.testing.assert_array_equal(again.load()(inputs).numpy(), expected)
    assert str(result.outcome) in str(result)
    assert repr(result).startswith(f"<CompressionResult: {result.outcome}, ONNX file of ")  # below the table
    assert "\n" not in repr(result)
    assert result.compressed.onnx_bytes == result.files["compressed_onnx"].stat().st_size
    assert result.baseline.parameters == sum(parameter.numel() for parameter in model().parameters())


def test_the_same_call_goes_on_where_it_ended(result: CompressionResult, folder: Path) -> None:
    again = small(recipe=SmallNet, folder=folder)(model(), pair(TRAIN), pair(VALIDATION), test=TEST)
    pd.testing.assert_frame_equal(again.trajectory, result.trajectory)  # with its seconds, so nothing was trained


def test_report_is_a_page_and_export_copies_all(result: CompressionResult, tmp_path: Path) -> None:
    assert "<iframe srcdoc=" in result.report()._repr_html_()
    copies = result.export(tmp_path / "delivered")
    assert copies.keys() == result.files.keys()
    assert (tmp_path / "delivered/compressed_model.onnx").read_bytes() == result.files["compressed_onnx"].read_bytes()
    assert (tmp_path / "delivered/compressed_model/recipe.json").exists()


def test_another_budget_leaves_the_first_result_as_it_is(result: CompressionResult) -> None:
    before = result.files["compressed_onnx"].read_bytes()
    chosen = result.choose(max_drop=0.9)
    assert chosen.folder != result.folder
    assert chosen.summary.budget.drop == 0.9
    assert result.files["compressed_onnx"].read_bytes() == before
    with pytest.raises(ConfigurationError, match="max_drop"):
        result.choose()


def test_without_recipe_there_is_a_state_dict(result: CompressionResult, tmp_path: Path) -> None:
    shutil.copytree(result.folder / "run", tmp_path / "run")  # so that nothing is searched again
    shutil.copytree(result.files["compressed_model"], tmp_path / "compressed_model")  # of the call with a recipe
    found = small(folder=tmp_path)(model(), pair(TRAIN), pair(VALIDATION))
    with pytest.raises(ModelError, match="There is no file compressed_model, only compressed_onnx"):
        _ = found.files["compressed_model"]
    assert "test=" in found.notes[0]
    assert "recipe=" in found.notes[1]
    assert found.summary.certificate.examples is None
    tensors = load_file(found.files["state_dict"])
    assert found.model is not None
    assert {name: tensor.shape for name, tensor in found.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": None, "certificate": {"alpha": 0.1}}, "certificate: 1 mistake\n  - needs the test split"),
        ({"metric": lambda: None}, "has no import path"),
        ({"budgets": 1}, "budgets"),
        ({"budget": {"max_drops": 1}}, "max_drop"),
    ],
)
def test_mistaken_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small(**arguments)(model(), pair(TRAIN), pair(VALIDATION))


def test_inputs_without_targets() -> None:
    with pytest.raises(DataError, match="train split has inputs without targets"):
        small()(model(), TRAIN["inputs"], pair(VALIDATION))


def test_a_regression_needs_a_metric() -> None:
    inputs, targets = torch.randn(64, 4), torch.randn(64, 1)
    with pytest.raises(ConfigurationError, match="metric: 1 mistake\n  - is missing, and the targets do not say"):
        small()(nn.Linear(4, 1), (inputs, targets), (inputs, targets))


def test_optimizer_that_suits_most_models_is_the_default(result: CompressionResult) -> None:
    optimizer = result.settings.training.optimizer
    assert (optimizer.class_path, optimizer.init_args) == ("torch.optim.AdamW", {"lr": 1e-3})


def test_metric_as_an_object_is_the_one_in_the_settings(result: CompressionResult) -> None:
    assert result.settings.training.metric is not None
    assert result.settings.training.metric.class_path == "torchmetrics.classification.MulticlassAccuracy"
    metric = MulticlassAccuracy(num_classes=4, average="micro")
    from kedro_aat.from_python.described import as_settings

    assert as_settings(metric, "metric") == result.settings.training.metric.model_dump()

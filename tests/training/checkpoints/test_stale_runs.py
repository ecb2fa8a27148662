"""A run is never taken for another one: what it depends on has changed, and one line says what."""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from kedro_aat.errors import CheckpointError
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.checkpoints.upgrades import RunRecord
from tests.training.checkpoints import small_search
from tests.training.checkpoints.small_search import STEPPING, Ended, network, split
from tests.training.checkpoints.test_upgrades import change_record

search = functools.partial(small_search.search, policy=STEPPING)

MINE = """
import torch
from torch import nn
import mine_helpers

class Loss(nn.Module):
    def forward(self, outputs, targets):
        return mine_helpers.scaled(nn.functional.cross_entropy(outputs, targets))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

class SGD(torch.optim.SGD):
    pass

def validate(model, data):
    right = [(model(x).argmax(1) == y).float() for x, y in data]
    return float(torch.cat(right).mean())
"""
HELPERS = "def scaled(x):\n    return x * 1.0\n"

Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs the search with the user's modules, as a new process would."""
    monkeypatch.syspath_prepend(tmp_path)

    def forget() -> None:
        importlib.invalidate_caches()
        for name in ("mine", "mine_helpers"):
            sys.modules.pop(name, None)

    def run(mine: str = MINE, helpers: str = HELPERS, **changes: Any) -> Ended:
        forget()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        (tmp_path / "mine.py").write_text(mine)
        (tmp_path / "mine_helpers.py").write_text(helpers)
        net = importlib.import_module("mine").Net()
        weights = iter(network().state_dict().values())
        net.load_state_dict({name: next(weights) for name in net.state_dict()})
        settings = {"net": net, "loss": "mine.Loss"} | changes
        return search(tmp_path / "store", **settings)

    yield run
    forget()


def change(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


SOURCES = {
    "loss": ({"mine": change(MINE, "return mine_helpers", "return -mine_helpers")}, "the source of mine.Loss"),
    "forward": ({"mine": change(MINE, "relu", "sigmoid")}, "the source of mine.Net"),
    "helper": ({"helpers": change(HELPERS, "1.0", "2.0")}, "the source of mine_helpers.scaled"),
    "both": (
        {"mine": change(MINE, "relu", "tanh"), "helpers": change(HELPERS, "1.0", "3.0")},
        "the source of mine.Net and mine_helpers.scaled",
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_changed_source_is_another_run(kind: str, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    changes, words = SOURCES[kind]
    first = run()
    assert run().trained == []
    caplog.clear()
    second = run(**changes)
    assert second.trained
    assert second.folder != first.folder
    (line,) = [record.message for record in caplog.records if record.message.startswith("New run")]
    assert line == f"New run {second.folder.name}: {words} changed since run {first.folder.name}."
    caplog.clear()
    assert run().folder == first.folder  # the old source finds the old run
    assert "New run" not in caplog.text


def test_a_changed_comment_is_the_same_run(run: Run) -> None:
    run()
    commented = change(MINE, "return self.b(", "# Two layers.\n        return self.b(  # the second\n            ")
    assert run(mine=f"# by me\n{commented}").trained == []


@pytest.mark.parametrize("part", ["optimizer", "validate", "metric"])
def test_the_users_optimizer_metric_and_functions_count(part: str, run: Run) -> None:
    more = "\nfrom torchmetrics.classification import MulticlassAccuracy\nclass Metric(MulticlassAccuracy):\n    pass\n"
    all_settings: dict[str, dict[str, Any]] = {
        "optimizer": {"optimizer": {"class_path": "mine.SGD", "init_args": {"lr": 0.05}}},
        "validate": {"validate": "mine.validate", "metric": None, "higher_is_better": True},
        "metric": {"metric": {"class_path": "mine.Metric", "init_args": {"num_classes": 3, "average": "micro"}}},
    }
    settings = all_settings[part]
    old, new = {
        "optimizer": ("SGD):\n    pass", "SGD):\n    more = 1"),
        "validate": (".mean()", ".mean() * 1"),
        "metric": ("Accuracy):\n    pass", "Accuracy):\n    more = 1"),
    }[part]
    first = run(MINE + more, **settings)
    assert run(change(MINE + more, old, new), **settings).folder != first.folder


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, labels: Tensor) -> None:
        self._inputs, self._labels = split(1600)["inputs"], labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._inputs[index], self._labels[index]


def test_changed_labels_of_a_dataset_are_another_run(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    labels = split(1600)["targets"]
    changed = (labels + 1) % 3
    changed[::100] = labels[::100]  # 1,584 of 1,600
    first = run(train=Pairs(labels), batch_size=400)
    assert run(train=Pairs(labels.clone()), batch_size=400).trained == []
    second = run(train=Pairs(changed), batch_size=400)
    assert second.trained
    assert f"{second.folder.name}: the training data changed since run {first.folder.name}." in caplog.text


def test_the_baseline_counts(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    first = run()
    assert run(baseline=0.85).folder != first.folder
    assert ": the baseline's metric changed since" in caplog.text
    assert run(baseline=0.85 + 1e-6).trained == []  # as another processor would compute it

    class Scaled(nn.Sequential):
        factor = 1.0

    nets = [Scaled(*network().children()), Scaled(*network().children())]
    nets[1].factor = 2.0  # in no state_dict
    caplog.clear()
    assert len({run(net=net).folder for net in nets}) == 2
    assert ": the baseline changed since" in caplog.text


def test_changed_settings_are_named(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = run()
    run(batch_size=16)
    words = f": training.batch_size (8, now 16) changed since run {first.folder.name}."
    assert words in caplog.text
    assert [record.levelname for record in caplog.records if words in record.message] == ["INFO"]


def test_the_nearest_run_is_named(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run(MINE + "\n")
    nearest = run(helpers=change(HELPERS, "1.0", "2.0"))
    run(helpers=change(HELPERS, "1.0", "2.0"), train=split(40))
    assert f": the training data changed since run {nearest.folder.name}." in caplog.text


def test_a_run_that_recorded_less_needs_a_choice(run: Run) -> None:
    first = run()

    def as_before(record: dict[str, Any]) -> None:
        del record["sources"], record["baseline"], record["packages"], record["kedro_aat"]["identity_version"]

    change_record(first.folder, as_before)
    with pytest.raises(CheckpointError, match="not recorded: the baseline, and the source of model, loss and metric"):
        run()
    assert run(after_upgrade="continue").folder == first.folder
    assert run().trained == []
    record = RunRecord.read(first.folder)
    assert record is not None
    assert "mine.Loss" in record.ingredients["sources"]


def test_a_dataset_of_which_a_few_examples_were_hashed_is_recognized(run: Run) -> None:
    data = Pairs(split(1600)["targets"])
    first = run(train=data, batch_size=400)

    def as_before(record: dict[str, Any]) -> None:
        del record["sources"], record["baseline"], record["packages"], record["kedro_aat"]["identity_version"]
        record["train_data"] = record["train_data"].rpartition("-")[0]

    change_record(first.folder, as_before)
    assert run(train=data, batch_size=400, after_upgrade="continue").folder == first.folder


def test_another_version_of_a_package_needs_a_choice(run: Run) -> None:
    first = run()
    change_record(first.folder, lambda record: record["packages"].update(torch="1.13.1"))
    now = torch.__version__.partition("+")[0]
    with pytest.raises(CheckpointError, match=rf"packages that have changed since: torch \('1\.13\.1', now '{now}'\)"):
        run()
    assert run(after_upgrade="continue").folder == first.folder
    assert run().trained == []


def test_runs_of_another_kind_are_not_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    search(tmp_path)
    store = CheckpointStore(tmp_path)
    store.open({"settings": {"seed": 0}, "model": "a"}).close()
    store.open({"config": {}, "model": "a"}).close()
    assert "New run" not in caplog.text

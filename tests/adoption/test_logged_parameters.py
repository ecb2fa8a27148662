"""What hooks that come after ours see of our settings, as kedro-mlflow's do."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog
from kedro.pipeline import node
from kedro.runner import Task

from kedro_aat.config import AatSettings
from kedro_aat.plugin import AatHooks
from kedro_aat.trackers import MlflowTracker, Tracker


class Recorder:
    """Sees what the hook of kedro-mlflow sees."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    @hook_impl
    def before_node_run(self, inputs: dict[str, Any]) -> None:
        self.seen = dict(inputs)


class OfMlflow(MlflowTracker):
    def __init__(self, password: str) -> None:
        pass


class OfOthers(Tracker):
    def __init__(self, password: str) -> None:
        pass


@pytest.fixture
def _kedro_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kedro_mlflow", ModuleType("kedro_mlflow"))


def seen(**settings: Any) -> dict[str, Any]:
    """What a later hook sees of a node's inputs, while the node gets them as they are."""
    training = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}
    given = AatSettings.model_validate({"budget": {"max_drop": 0.01}, "seed": 3, "training": training, **settings})
    catalog = DataCatalog.from_config({})
    catalog["params:small.aat"], catalog["params:rate"] = given, {"a": 0.5}
    manager, recorder = _create_hook_manager(), Recorder()
    for hooks in (recorder, AatHooks()):
        manager.register(hooks)

    def takes(ours: AatSettings, theirs: dict[str, float]) -> None:
        assert ours == given
        assert theirs == {"a": 0.5}

    Task(
        node(takes, ["params:small.aat", "params:rate"], None, name="it"), catalog, is_async=False, hook_manager=manager
    ).execute()
    return recorder.seen


@pytest.mark.usefixtures("_kedro_mlflow")
def test_each_setting_is_a_parameter_of_its_own() -> None:
    tracker = {"class_path": f"{__name__}.OfOthers", "init_args": {"password": "secret"}}
    logged = seen(trackers=[tracker])
    assert logged["params:small.aat.budget.max_drop"] == 0.01
    assert logged["params:small.aat.training.optimizer.init_args.lr"] == 0.1
    assert logged["params:rate"] == {"a": 0.5}
    assert all(isinstance(value, str | int | float) for name, value in logged.items() if ".aat" in name)
    assert "secret" not in str(logged)


@pytest.mark.usefixtures("_kedro_mlflow")
def test_what_our_tracker_logs_is_not_logged_twice() -> None:
    tracker = {"class_path": f"{__name__}.OfMlflow", "init_args": {"password": "secret"}}
    assert seen(trackers=[tracker]) == {"params:rate": {"a": 0.5}}


def test_without_kedro_mlflow_other_hooks_see_the_settings_themselves() -> None:
    assert seen()["params:small.aat"].seed == 3

"""Runs in a real MLflow, with and without kedro-mlflow; `make test-trackers` installs both."""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from kedro_aat.budget import Outcome
from kedro_aat.trackers import Delivered, FineTuned, MlflowTracker, TrackedSearch
from tests.projects import Project
from tests.trackers.told import PARAMETERS, RUN, TAGS, record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(find_spec("kedro_mlflow") is None, reason="needs mlflow and kedro-mlflow: make test-trackers"),
]


def doubling() -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("inputs", "outputs")]
    node = helper.make_node("Add", ["inputs", "inputs"], ["outputs"])
    graph = helper.make_graph([node], "double", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def delivered(model: onnx.ModelProto | None) -> Delivered:
    return Delivered(RUN, PARAMETERS, {"compressed.latency_ms.1": 0.25}, TAGS, model)


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


def client(uri: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(uri)


def runs(uri: str, experiment: str = "digits") -> list[Any]:
    found = client(uri).get_experiment_by_name(experiment)
    return list(client(uri).search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))


def curve(uri: str, run: Any, name: str) -> list[tuple[int, float]]:
    return [(point.step, round(point.value, 6)) for point in client(uri).get_metric_history(run.info.run_id, name)]


def test_a_run_of_its_own_goes_on_in_other_processes(uri: str) -> None:
    def tracker() -> MlflowTracker:
        made = MlflowTracker("digits", registered_model_name="digits", tracking_uri=uri)
        return pickle.loads(pickle.dumps(made))  # type: ignore[no-any-return]

    search = TrackedSearch(RUN, RUN, 1, PARAMETERS)
    first = tracker()
    first.start(search)
    for epoch in (0, 1):
        first.epoch(record(epoch))
    first.finish(None)
    (run,) = runs(uri)
    assert (run.info.status, run.info.run_name) == ("KILLED", RUN)

    again = tracker()
    again.start(TrackedSearch(RUN, RUN, 1, PARAMETERS, (record(0), record(1))))
    again.epoch(record(2))
    again.finish(FineTuned(Outcome.WITHIN_BUDGET, "", record(2), 0.9, 0.6, [record(2)]))
    later = tracker()
    later.start(TrackedSearch("another", RUN, 2, PARAMETERS))
    later.epoch(record(1))
    (run,) = runs(uri)
    assert run.info.status == "RUNNING"
    assert curve(uri, run, "stage_1/rate/achieved") == [(0, 0.4), (1, 0.5), (2, 0.6)]
    assert curve(uri, run, "stage_2/rate/achieved") == [(1, 0.5)]
    assert run.data.metrics["stage_1/guards/MulticlassRecall_ class 3"] == 0.8
    assert run.data.params["training.optimizer.init_args.lr"] == "0.1"

    tracker().deliver(delivered(doubling()))
    (run,) = runs(uri)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["latency_ms.1"] == 0.25
    assert run.data.tags.items() >= TAGS.items()

    # The same search with what was delivered anew is a run beside the finished one, with the whole curves.
    once_more = tracker()
    once_more.start(TrackedSearch(RUN, RUN, 1, PARAMETERS, (record(0), record(1)), is_over=True))
    tracker().deliver(delivered(None))
    _, other = runs(uri)
    assert other.info.status == "FINISHED"
    assert curve(uri, other, "stage_1/rate/achieved") == [(0, 0.4), (1, 0.5)]


def test_the_model_is_registered_and_answers(uri: str) -> None:
    import mlflow

    MlflowTracker("digits", registered_model_name="digits", tracking_uri=uri).deliver(delivered(doubling()))
    model = mlflow.pyfunc.load_model("models:/digits/1")
    (inputs,) = model.metadata.signature.inputs.to_dict()
    assert inputs == {"name": "inputs", "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": (-1, 3)}}
    given = np.ones((2, 3), dtype=np.float32)
    np.testing.assert_array_equal(model.predict(given)["outputs"], 2 * given)


def test_epochs_wait_until_mlflow_can_be_reached(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/later/mlflow.db"
    (tmp_path / "later").write_text("no folder")
    tracker = MlflowTracker("digits", tracking_uri=uri)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever MLflow raises
        tracker.start(TrackedSearch(RUN, RUN, 1, PARAMETERS))
    with pytest.raises(Exception):  # noqa: B017, PT011
        tracker.epoch(record(0))
    (tmp_path / "later").unlink()
    (tmp_path / "later").mkdir()
    tracker.epoch(record(1))
    (run,) = runs(uri)
    assert curve(uri, run, "stage_1/rate/achieved") == [(0, 0.4), (1, 0.5)]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after `kedro mlflow init` and two runs, of which the second found nothing."""
    project = Project.create(tmp_path_factory.mktemp("tracked"))
    parameters = project.folder / "conf/base/parameters.yml"
    settings = yaml.safe_load(parameters.read_text())
    settings["aat"]["trackers"] = ["kedro_aat.trackers.MlflowTracker"]
    parameters.write_text(yaml.safe_dump(settings))
    command = project.kedro("mlflow", "init")
    assert command.wait() == 0, command.output
    server = project.folder / "conf/local/mlflow.yml"
    written = server.read_text()
    assert "mlflow_tracking_uri: null" in written
    server.write_text(written.replace("mlflow_tracking_uri: null", "mlflow_tracking_uri: sqlite:///mlflow.db"))
    project.spawn()
    nothing: dict[str, Any] = {
        "aat.budget.max_drop": 0,
        "aat.minimal_rate": 0.99,
        "aat.maximal_rate": 0.99,
        "aat.second_stage": "null",
    }
    nothing["aat.on_infeasible"] = "error"
    output = project.fail("--from-nodes", "evaluate_baseline", **nothing)
    assert "Set on_infeasible to keep_baseline" in " ".join(output.split())
    return project


def test_kedro_mlflow_has_everything_in_its_run(tracked: Project) -> None:
    uri = f"sqlite:///{tracked.folder}/mlflow.db"
    good, infeasible = runs(uri, "kedro_aat")
    assert (good.info.status, infeasible.info.status) == ("FINISHED", "FAILED")
    assert good.data.tags["outcome"] in ("within_budget", "certified")
    assert infeasible.data.tags["outcome"] == "infeasible"
    assert good.data.metrics["onnx_bytes"] < good.data.metrics["baseline.onnx_bytes"]
    assert {"latency_ms.1", "validation"} < good.data.metrics.keys()
    assert good.data.params["budget.max_drop"] == "0.05"
    assert not [name for name in good.data.params if name.startswith("aat")]  # kedro-mlflow's own, as one text
    assert len(curve(uri, good, "stage_1/rate/achieved")) > 1
    assert len(curve(uri, good, "stage_2/rate/achieved")) > 1
    assert good.outputs.model_outputs
    assert not infeasible.outputs.model_outputs


def test_without_the_tracker_kedro_mlflow_logs_a_parameter_for_each_setting(tracked: Project, tmp_path: Path) -> None:
    project = tracked.copy(tmp_path)
    parameters = project.folder / "conf/base/parameters.yml"
    settings = yaml.safe_load(parameters.read_text())
    settings["aat"]["trackers"] = []
    parameters.write_text(yaml.safe_dump(settings))
    project.spawn("--nodes", "report_run")
    *_, last = runs(f"sqlite:///{project.folder}/mlflow.db", "kedro_aat")
    assert last.data.params["aat.budget.max_drop"] == "0.05"
    assert max(map(len, last.data.params.values())) < 200

"""Nodes are typed functions, and what they write to the catalog is plain JSON."""

from __future__ import annotations

import inspect
import json
import logging
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from kedro.io import DataCatalog, SharedMemoryDataCatalog
from kedro.pipeline import Node, Pipeline
from kedro.runner import ParallelRunner, SequentialRunner
from kedro.validation import TypeExtractor
from kedro_datasets.json import JSONDataset

from kedro_aat.config import AatSettings
from kedro_aat.delivery.results import LaterSearchResult, SearchResult, SkippedSearch, Summary
from kedro_aat.errors import ConfigurationError, InterruptedRunError
from kedro_aat.export import NotExported
from kedro_aat.pipelines.aat import nodes
from kedro_aat.pipelines.aat.as_json import JsonNode
from kedro_aat.pipelines.aat.pipeline import create_pipeline
from kedro_aat.pipelines.aat.reporting import collect_metrics
from tests.pipelines.aat import saying
from tests.projects import Project
from tests.reporting.runs import summary_of, trajectory_of


def skip(result: SearchResult, again: LaterSearchResult, times: int = 1) -> tuple[SearchResult, SkippedSearch, int]:
    assert isinstance(result, SearchResult)
    return result, again if isinstance(again, SkippedSearch) else SkippedSearch(outcome="skipped"), times


RESULT = summary_of("within_budget").stages[0]


def test_results_are_read_from_json_and_written_as_json() -> None:
    data = json.loads(RESULT.model_dump_json())
    skipped = SkippedSearch(outcome="skipped")
    plain = skipped.model_dump(mode="json")
    assert JsonNode(skip)(data, {"outcome": "skipped"}, times=2) == (data, plain, 2)
    assert JsonNode(skip)(RESULT, skipped) == (data, plain, 1)  # as a notebook calls it


def test_node_functions_take_models_and_json_and_return_json() -> None:
    """Pipelines and notebooks that were written for version 0.1.0 call the nodes with plain data."""
    summary = summary_of("within_budget")
    trajectory = trajectory_of(summary)
    metrics, history = nodes.collect_metrics(summary.model_dump(mode="json"), trajectory)
    assert (metrics, history) == nodes.collect_metrics(summary, trajectory)
    assert json.loads(json.dumps(metrics)) == metrics


def test_json_that_is_no_result_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"result: 11 mistakes\n  - algorithms: this key is required"):
        JsonNode(skip)({"outcome": "within_budget"}, {"outcome": "skipped"})
    with pytest.raises(ConfigurationError, match=r"(?s)again: .*outcome: .* but got 'x'"):
        JsonNode(skip)(RESULT, {"outcome": "x"})


def test_kedro_sees_the_function_itself() -> None:
    """Kedro validates parameters by the type hints, and Kedro-Viz shows the source."""
    node = next(node for node in create_pipeline().nodes if node.name == "collect_metrics")
    assert inspect.unwrap(node.func) is collect_metrics
    assert inspect.signature(node.func) == inspect.signature(collect_metrics)
    assert "def collect_metrics(" in inspect.getsource(node.func)


def test_settings_of_nodes_are_classes() -> None:
    """Kedro 1.3 reads the `__name__` of each parameter's type, and ends every run if that is a union."""
    for node in create_pipeline().nodes:
        found = TypeExtractor({"": Pipeline([node])}).extract_types_from_pipelines()
        assert set(found.values()) <= {AatSettings}


def test_nodes_can_be_pickled() -> None:
    """ParallelRunner sends nodes to other processes."""
    for node in create_pipeline().nodes:
        copied = pickle.loads(pickle.dumps(node.func))
        assert inspect.unwrap(copied) is inspect.unwrap(node.func)
        assert copied.__name__ == node.func.__name__


def test_node_sets_the_level_of_messages_where_no_hook_has(monkeypatch: pytest.MonkeyPatch) -> None:
    package = logging.getLogger("kedro_aat")
    monkeypatch.setattr(package, "level", logging.NOTSET)
    package.setLevel(logging.NOTSET)  # forgets the levels that were found before
    saying.node(3)
    assert package.level == logging.INFO
    package.setLevel(logging.ERROR)
    saying.node(3)
    assert package.level == logging.ERROR


@pytest.mark.slow
def test_messages_of_a_node_in_another_process_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The hook that sets the level runs in the process that was started, and Kedro configures others anew."""
    monkeypatch.setenv("KEDRO_MP_CONTEXT", "spawn")
    catalog = SharedMemoryDataCatalog({name: JSONDataset(filepath=str(tmp_path / name)) for name in ("number", "same")})
    catalog.save("number", 3)
    runner = ParallelRunner(max_workers=1)
    runner.run(Pipeline([Node(saying.node, "number", "same")]), catalog)
    assert "a line of the node" in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_signal_ends_a_node_with_one_sentence(number: int) -> None:
    def node() -> None:
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match=r"^The run was stopped; .*Run the same command again to continue.$"):
        JsonNode(node)()
    assert signal.getsignal(number) is before


def test_nodes_in_threads_take_turns() -> None:
    """Two that ran at the same time would meet."""
    both = threading.Barrier(2, timeout=0.2)

    def node() -> str:
        try:
            both.wait()
        except threading.BrokenBarrierError:
            return "alone"
        return "together"

    with ThreadPoolExecutor(2) as threads:
        results = [thread.result() for thread in [threads.submit(JsonNode(node)) for _ in range(2)]]
    assert results == ["alone", "alone"]


def test_any_json_dataset_can_hold_a_result(tmp_path: Path) -> None:
    """Catalogs that users wrote for version 0.1.0 have `json.JSONDataset` entries."""
    summary = summary_of("certified")
    catalog = DataCatalog(
        {
            "aat_summary": JSONDataset(filepath=str(tmp_path / "summary.json")),
            "aat_metrics": JSONDataset(filepath=str(tmp_path / "metrics.json")),
        }
    )
    catalog.save("aat_summary", summary.model_dump(mode="json"))
    catalog["trajectory"] = trajectory_of(summary)
    catalog["compressed_onnx"] = NotExported("no file is needed without trackers")
    training = {"batch_size": 8, "optimizer": "torch.optim.SGD", "metric": "torchmetrics.MeanMetric"}
    catalog["params:aat"] = AatSettings.model_validate({"budget": {"max_drop": 0.1}, "training": training})
    pipeline: Pipeline = create_pipeline().only_nodes("collect_metrics")
    SequentialRunner().run(pipeline, catalog)
    assert json.loads((tmp_path / "metrics.json").read_text())["is_certified"] == 1.0


def test_results_of_a_run_are_what_their_models_say(finished: Project) -> None:
    """What stands in the files of a real run is read and written again without a change."""
    assert Summary.model_validate(finished.summary).model_dump(mode="json") == finished.summary
    assert isinstance(finished.trajectory, pd.DataFrame)

"""The parts of a project's pipeline, however they are renamed, and the nodes that a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro_datasets.json import JSONDataset

from kedro_aat.adoption.beside import beside, loaded_beside, redirect_outputs, remove_beside, written_beside
from kedro_aat.adoption.jobs import Job
from kedro_aat.config import AatSettings
from kedro_aat.errors import ConfigurationError
from kedro_aat.pipelines.aat import create_pipeline

AFTER_SEARCH = {
    "finetune_adaptively",
    "finetune_second_stage",
    "finetune_third_stage",
    "export_model",
    "certify_model",
    "summarize_run",
    "describe_layers",
    "report_run",
    "collect_metrics",
    "list_packages",
    "add_preprocessing",
    "require_feasible",
}

REPORTS = ("summarize_run", "report_run", "collect_metrics", "list_packages", "require_feasible")
SAVED_BY = Path(__file__).parents[1] / "saved_by"
SETTINGS = {
    "budget": {"max_drop": 0.01},
    "training": {"optimizer": "torch.optim.SGD"},
    "compression": {"algorithm": "filter_pruning"},
    "second_stage": {"compression": {"algorithm": "magnitude_sparsity"}},
}


def split() -> tuple[int, int, int]:
    return 1, 2, 3


def publish(model: Any) -> None:
    """A node of the user's that reads what is delivered."""


def catalog(*names: str) -> DataCatalog:
    """A catalog in which everything is missing but these names."""
    return DataCatalog({name: MemoryDataset(0) for name in names})


KNOWN = ("baseline_model", "baseline_evaluation", "baseline_scores", "compression_controller", "checkpoint_store")


def test_nodes_and_parameters_are_found_by_whatever_names_they_have() -> None:
    renamed = Pipeline(
        create_pipeline(), parameters={"params:aat": "params:compression.mine"}, outputs={"aat_summary": "result"}
    )
    job = Job.find("aat", {"aat": renamed})
    assert job.settings == "compression.mine"
    assert job.node("summarize_run").outputs == ["result"]
    assert job.dataset("checkpoint_store") == "checkpoint_store"
    assert job.results == ["search_result", "second_stage_result", "third_stage_result"]


def test_a_namespace_is_one_of_several_jobs_of_a_pipeline() -> None:
    both = create_pipeline(namespace="small") + create_pipeline(namespace="large")
    job = Job.find("both", {"both": both}, "large")
    assert job.settings == "large.aat"
    assert job.results[0] == "large.search_result"
    with pytest.raises(ConfigurationError, match="no search has no namespace, but these exist: large, small"):
        Job.find("both", {"both": both})
    with pytest.raises(ConfigurationError, match="it must have 1 search of kedro-aat, but has 0"):
        Job.find("none", {"none": Pipeline([])})


def test_nodes_that_make_data_in_memory_run_before() -> None:
    maker = Pipeline([Node(split, None, ["train_data", "validation_data", "test_data"], name="split")])
    ours = create_pipeline()
    registered = {"prepare": maker, "aat": ours, "__default__": maker + ours}
    job = Job.find("aat", registered)
    pipelines, nodes = job.nodes_from(job.search, catalog(*KNOWN))
    assert (pipelines, set(nodes)) == (["aat", "prepare"], AFTER_SEARCH | {"split"})
    pipelines, nodes = job.nodes_from(job.search, catalog(*KNOWN, "train_data", "validation_data", "test_data"))
    assert (pipelines, set(nodes)) == (["aat"], AFTER_SEARCH)
    # What only our own nodes make, and nothing holds, is made again.
    _, nodes = job.nodes_from(job.search, catalog("train_data", "validation_data", "test_data"))
    assert {"rehearse", "evaluate_baseline", "build_controller"} <= set(nodes)


def test_a_certificate_exports_nothing_again_for_targets_that_the_catalog_does_not_know() -> None:
    job = Job.find("aat", {"aat": create_pipeline()})
    read = {name for node in create_pipeline().from_nodes("certify_model").nodes for name in node.inputs}
    assert "export_model" not in job.nodes_from(job.node("certify_model"), catalog(*read))[1]
    _, nodes = job.nodes_from(
        job.node("certify_model"), catalog(*read - {"compressed_executorch", "compressed_litert"})
    )
    assert "export_model" not in nodes  # it would deliver what `kedro aat choose` has replaced
    assert "export_model" in job.nodes_from(job.node("certify_model"), catalog(*read - {"compressed_onnx"}))[1]


def test_a_certificate_with_a_catalog_of_an_earlier_version_repeats_no_search() -> None:
    job = Job.find("aat", {"aat": create_pipeline()})
    first = job.node("certify_model")
    names = set(yaml.safe_load((SAVED_BY / "0.1.0/templates/catalog_aat.yml").read_text()))

    def with_settings(settings: dict[str, Any], names: set[str] = names) -> DataCatalog:
        made = catalog(*names)
        made["params:aat"] = MemoryDataset(settings)
        return made

    pipelines, nodes = job.nodes_from(first, with_settings(SETTINGS), repeats=False)
    assert (pipelines, set(nodes)) == (["aat"], {"certify_model", *REPORTS})
    # It is the third stage's result that nothing keeps, if there is one.
    third = {**SETTINGS, "third_stage": {"compression": {"algorithm": "quantization"}}}
    AatSettings.model_validate(third)
    with pytest.raises(ConfigurationError, match="third_stage_result is not saved, so finetune_third_stage would run"):
        job.nodes_from(first, with_settings(third), repeats=False)
    with pytest.raises(ConfigurationError, match="search_result is not saved, so finetune_adaptively would run again"):
        job.nodes_from(first, with_settings(SETTINGS, names - {"search_result"}), repeats=False)


def test_nodes_of_the_users_that_read_our_results_can_be_left_out() -> None:
    pipeline = create_pipeline() + Pipeline([Node(publish, "compressed_model", None, name="publish")])
    job = Job.find("aat", {"aat": pipeline})
    data = catalog(*KNOWN, "train_data", "validation_data", "test_data")
    assert "publish" in job.nodes_from(job.search, data)[1]
    assert set(job.nodes_from(job.search, data, only_ours=True)[1]) == AFTER_SEARCH


def write() -> dict[str, int]:
    return {"value": 2}


def test_a_run_writes_beside_the_files_only_where_it_was_asked_to(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"value": 1}))
    pipeline = Pipeline([Node(write, None, "result")])
    data = DataCatalog({"result": JSONDataset(filepath=str(path)), "table": MemoryDataset(0)})
    assert loaded_beside(data, "result") is None
    redirect_outputs(pipeline, data)
    assert data.load("result") == {"value": 1}
    with written_beside():
        run = DataCatalog({"result": JSONDataset(filepath=str(path))})
        redirect_outputs(pipeline, run)
        run.save("result", write())
    assert data.load("result") == {"value": 1}
    assert loaded_beside(data, "result") == {"value": 2}
    assert isinstance(beside("table", MemoryDataset(0)), MemoryDataset)
    (tmp_path / "chosen" / "notes.txt").write_text("of the user")
    (tmp_path / "chosen" / "result.json.not_exported.txt").write_text("why")
    (tmp_path / "chosen" / ".result.json.kedro-aat-lock").touch()
    remove_beside(data, ["result", "table"])
    assert "notes.txt" in [each.name for each in (tmp_path / "chosen").iterdir()]
    assert not (tmp_path / "chosen" / "result.json.not_exported.txt").exists()
    (tmp_path / "chosen" / "notes.txt").unlink()
    remove_beside(data, ["result"])
    assert not (tmp_path / "chosen").exists()

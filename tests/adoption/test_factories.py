"""Several models in one project: one file of dataset factories makes what the pipeline writes in every namespace."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline

from kedro_aat.adoption.factories import FILE, covered_by, factories, notes_on_factories, results
from kedro_aat.adoption.init.tasks import Choices
from kedro_aat.adoption.init.upgrade import upgraded
from kedro_aat.adoption.init.write import CATALOG, PARAMETERS, Place, write
from kedro_aat.adoption.templates import template
from kedro_aat.errors import ConfigurationError
from kedro_aat.pipelines.aat import create_pipeline
from tests.adoption.demo import Demo
from tests.adoption.test_runners import NAMESPACES, SHORT, add_models

OWN = ("baseline_model", "train_data", "validation_data", "test_data")
# A pipeline of the user's, in a namespace of its own, with a dataset that is called like one of ours.
OTHER = Pipeline([Node(lambda: 0, None, "trajectory", name="fly")], namespace="drone")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where the namespace `small` is written in a project that finds its pipelines."""
    package = tmp_path / "src" / "demo"
    package.mkdir(parents=True)
    (package / "pipeline_registry.py").write_text("pipelines = find_pipelines()\n")
    (tmp_path / "conf" / "base").mkdir(parents=True)
    return Place(tmp_path, package, tmp_path / "conf", "base", "small")


def _write(place: Place, *, yes: bool = False, force: bool = False, **registered: Pipeline) -> list[str]:
    return list(write(place, Choices(data="tensors"), registered, lambda _: yes, force=force))


def _catalog(*places: Place) -> DataCatalog:
    """The catalog as Kedro merges it: the files of each environment replace entries of those before."""
    config: dict[str, Any] = {}
    for env in dict.fromkeys(place.env for place in places):
        for path in sorted((places[0].conf / env).glob("catalog*")):
            config |= yaml.safe_load(path.read_text()) or {}
    return DataCatalog.from_config(config)


def _described(catalog: DataCatalog, name: str) -> tuple[type, Any, Any]:
    dataset = catalog.get(name)
    assert dataset is not None, name
    return type(dataset), dataset._describe().get("filepath"), getattr(dataset, "metadata", None)


def test_a_second_model_adds_only_the_entries_of_its_model_and_data(place: Place) -> None:
    large = replace(place, namespace="large")
    assert f"Wrote conf/base/{FILE}" in _write(place)
    place.file(FILE).write_text(place.file(FILE).read_text().replace("trajectory.parquet", "path.parquet"))
    edited = place.file(FILE).read_text()
    assert not any(FILE in line for line in _write(large, aat_small=create_pipeline("small")))
    assert place.file(FILE).read_text() == edited
    for each in (place, large):
        entries = yaml.safe_load(each.file(CATALOG).read_text())
        assert set(entries) == {f"{each.namespace}.{name}" for name in OWN}


def test_factories_make_what_one_entry_for_each_dataset_makes(place: Place) -> None:
    _write(place)
    _write(replace(place, namespace="large"))
    catalog = _catalog(place)
    for namespace in ("small", "large"):
        entries = DataCatalog.from_config(yaml.safe_load(template(CATALOG, namespace)))
        names = [name for name in create_pipeline(namespace).datasets() if not name.startswith("params:")]
        assert len(names) == len(OWN) + len(results())
        for name in names:
            assert _described(catalog, name) == _described(entries, name)


def test_datasets_of_the_project_are_not_caught(place: Place) -> None:
    _write(place, other=OTHER)
    catalog = _catalog(place)
    for name in ("trajectory", "small.mine", "small.my_trajectory", "small.certificate_of_mine", "drone.trajectory"):
        assert catalog.get(name) is None, name
    # The model itself has an entry instead, and so has the next one.
    assert "trajectory" not in covered_by(place.file(FILE).read_text())
    assert _described(catalog, "small.trajectory")[1].as_posix().endswith("data/08_reporting/small/trajectory.parquet")
    large = replace(place, namespace="large")
    _write(large, other=OTHER)
    assert set(yaml.safe_load(large.file(CATALOG).read_text())) == {f"large.{name}" for name in (*OWN, "trajectory")}


def test_a_dataset_that_is_caught_later_is_noted(place: Place) -> None:
    reader = Pipeline([Node(lambda onnx: None, "compressed_onnx", None, name="ship")], namespace="small")
    registered = {"aat_small": create_pipeline("small"), "other": OTHER, "ship": reader}
    _write(place)
    (note,) = notes_on_factories(registered, _catalog(place))
    assert note.startswith(
        f"drone.trajectory is none of ours, but the factory {{namespace}}.trajectory in {FILE} writes it to a file. "
        "Give it an entry of its own, such as `drone.trajectory: { type: MemoryDataset }`"
    )
    (place.conf / "base/catalog.yml").write_text("drone.trajectory: { type: MemoryDataset }\n")
    assert list(notes_on_factories(registered, _catalog(place))) == []
    (place.conf / "base/catalog.yml").write_text('"drone.{name}ctory": { type: MemoryDataset }\n')  # more specific
    assert list(notes_on_factories(registered, _catalog(place))) == []


def test_an_entry_of_the_project_goes_before_a_factory(place: Place) -> None:
    (place.conf / "base/catalog.yml").write_text("small.trajectory: { type: MemoryDataset }\n")
    with pytest.raises(ConfigurationError, match=r"conf/base/catalog.yml has catalog entries named small\.trajectory"):
        _write(place)
    assert not place.file(FILE).exists()
    _write(place, yes=True)
    assert type(_catalog(place)["small.trajectory"]).__name__ == "MemoryDataset"


def test_a_factory_of_the_project_of_the_same_name_stays_the_only_one(place: Place) -> None:
    (place.conf / "base/catalog.yml").write_text('"{namespace}.trajectory": { type: MemoryDataset }\n')
    _write(place, yes=True)
    assert covered_by(place.file(FILE).read_text()) == set(results()) - {"trajectory"}
    assert type(_catalog(place)["small.trajectory"]).__name__ == "MemoryDataset"


def test_another_environment_replaces_what_is_in_base(place: Place) -> None:
    prod = replace(place, env="prod")
    _write(place)
    _write(prod, force=True)  # the pipeline's module is there
    prod.file(FILE).write_text(prod.file(FILE).read_text().replace("data/", "prod/"))
    assert "prod/06_models/small/" in str(_described(_catalog(place, prod), "small.compressed_onnx")[1])


def test_another_environment_replaces_entries_that_an_earlier_version_wrote_in_base(place: Place) -> None:
    place.file(CATALOG).write_text(template(CATALOG, "small"))
    prod = replace(place, env="prod")
    _write(prod)
    entries = yaml.safe_load(prod.file(CATALOG).read_text())
    assert set(entries) == set(yaml.safe_load(template(CATALOG, "small")))


def test_upgrade_knows_the_factories(place: Place) -> None:
    _write(place)
    assert upgraded(place) == {}
    without = factories(["model_sbom"])
    place.file(FILE).write_text(
        without.replace("layer: third_stage, preview_args", "layer: second_stage, preview_args")
    )
    new = upgraded(place)
    assert new[FILE] == without
    assert "\nsmall.model_sbom:\n  type: json.JSONDataset\n" in new[CATALOG]
    assert set(new) == {FILE, CATALOG}


def test_entries_of_an_earlier_version_stay_beside_the_factories(place: Place) -> None:
    place.file(CATALOG).write_text(template(CATALOG, "small"))
    place.file(PARAMETERS).write_text(template(PARAMETERS, "small"))
    _write(replace(place, namespace="large"), aat_small=create_pipeline("small"))
    assert upgraded(place) == {}


def test_layers_of_several_models_are_in_order(place: Place) -> None:
    from kedro_viz.data_access.managers import DataAccessManager

    large = replace(place, namespace="large")
    _write(place)
    _write(large)
    small = create_pipeline("small")
    pipelines = {"__default__": small + create_pipeline("large"), "aat_small": small}
    manager = DataAccessManager()
    manager.add_catalog(_catalog(place), pipelines)
    manager.add_pipelines(pipelines)
    stages = ["fine_tuning", "second_stage", "third_stage"]
    for name, pipeline in pipelines.items():
        data = [node for node in manager.get_nodes_for_registered_pipeline(name) if node.type == "data"]
        assert {node.name for node in data} == {each for each in pipeline.datasets() if not each.startswith("params:")}
        assert [node.name for node in data if node.layer is None] == []
        # An empty list would mean that the layers run in a circle and were switched off.
        found = manager.get_sorted_layers_for_registered_pipeline(name)
        assert found == ["model_input", "baseline", *stages, "export", "certificate", "reporting"]


def _parameters() -> str:
    return ",".join(f"{name}.aat.{key}={value}" for name in NAMESPACES for key, value in SHORT.items())


def test_searches_of_two_namespaces_in_one_session_of_which_one_has_no_tensorboard_log(demo: Demo) -> None:
    add_models(demo)
    log = '"{namespace}.tensorboard_log":\n  type: kedro_aat.datasets.handles.TensorBoardDataset\n'
    demo.edit(FILE, (log, log.replace('"{namespace}.tensorboard_log"', "large.tensorboard_log")))
    demo.edit(FILE, ("data/08_reporting/{namespace}/tensorboard", "data/08_reporting/large/tensorboard"))
    last = ",".join(f"{name}.finetune_adaptively" for name in NAMESPACES)
    demo.kedro("run", "--to-nodes", last, "--params", _parameters())
    for name in NAMESPACES:
        folder = demo.folder / "data/07_model_output" / name
        assert len(pd.read_parquet(folder / "baseline_scores.parquet")) == 96
        assert len(pd.read_parquet(folder / "search_trajectory.parquet")) >= 3
        assert list((demo.folder / "data/06_models" / name / "checkpoints").glob("*/run.json"))
        assert (folder / "certificate_ledger.json").exists()  # a handle
    assert list((demo.folder / "data/08_reporting/large/tensorboard").rglob("events.out.*"))
    assert not (demo.folder / "data/08_reporting/small").exists()
    checked = demo.kedro("aat", "validate", "--pipeline", "aat_small", "--params", _parameters())
    assert "no mistakes in parameters, import paths and datasets" in " ".join(checked.split())
    assert "catalog entry" not in checked  # that nothing keeps the results
    shown = " ".join(demo.kedro("catalog", "resolve-patterns", "--pipeline", "aat_small").split())
    assert "small.compressed_onnx: " in shown
    assert "data/06_models/small/compressed_model.onnx" in shown


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_namespaces_in_one_run_and_their_site(demo: Demo) -> None:
    add_models(demo)
    demo.kedro("run", "--namespaces", ",".join(NAMESPACES), "--params", _parameters())
    for name in NAMESPACES:
        assert (demo.folder / f"data/06_models/{name}/compressed_model.onnx").exists()
        assert "finished, delivered" in demo.kedro("aat", "runs", "list", "--namespace", name)
    assert "{namespace}.compressed_onnx" in demo.kedro("catalog", "list-patterns")
    demo.kedro("viz", "build")
    site = json.loads((demo.folder / "build/api/main").read_text())
    assert site["layers"][:2] == ["model_input", "baseline"]
    assert site["layers"][-2:] == ["certificate", "reporting"]

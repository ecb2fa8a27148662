"""Nodes that make what is missing are run for the rehearsal, and leave the project's files as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline

from kedro_aat.adoption.makers import Makers, make, makers_elsewhere, makers_of
from kedro_aat.adoption.rehearsals import rehearsed_inputs
from kedro_aat.errors import UserFunctionError
from kedro_aat.pipelines.aat import create_pipeline
from kedro_aat.training.checkpoints import CheckpointStore
from tests.rehearsal.faulty import Case, Plain, labeled, settings_of
from tests.rehearsal.test_faults import SPARSE

AAT = create_pipeline()
NEEDED = ("baseline_model", "train_data", "validation_data")
SETTINGS = {"aat": settings_of(Case(settings=SPARSE))}.get


def split(raw: Any, seed: int) -> Any:
    return labeled(), labeled(seed)


def train(data: Any) -> Plain:
    assert len(data["inputs"]) == 70
    torch.manual_seed(0)
    return Plain()


def fail(raw: Any) -> Any:
    raise LookupError("no such table")


PREPARE = Pipeline(
    [
        Node(split, ["raw", "params:seed"], ["train_data", "validation_data"], name="split"),
        Node(train, "train_data", "baseline_model", name="train"),
        Node(lambda raw: raw, "raw", "unneeded", name="unneeded"),
    ]
)


def catalog_of(folder: Path, **changes: Any) -> DataCatalog:
    """Data of which one split is in a file, and the other stays in memory."""
    config = {
        "raw": {"type": "json.JSONDataset", "filepath": str(folder / "raw.json")},
        "train_data": {
            "type": "kedro_aat.datasets.tensors.TensorsDataset",
            "filepath": str(folder / "train.safetensors"),
            "backend": "torch",
        },
        "validation_data": {"type": "MemoryDataset", "copy_mode": "assign"},
        "baseline_model": {"type": "MemoryDataset", "copy_mode": "assign"},
    }
    catalog = DataCatalog.from_config(config | changes)
    catalog["checkpoint_store"] = MemoryDataset(CheckpointStore(folder / "store"), copy_mode="assign")
    catalog.save("raw", {})
    return catalog


def found(catalog: DataCatalog, prepare: Pipeline = PREPARE, names: tuple[str, ...] = NEEDED) -> Makers:
    registered = {"aat": AAT, "prepare": prepare, "__default__": AAT + prepare}
    return makers_of(names, "aat", registered, catalog)


def node_names(makers: Makers) -> set[str]:
    return {node.name for node in makers.nodes.nodes}


def test_the_catalog_gets_what_nodes_make_and_no_file_is_written(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    makers = found(catalog, names=tuple(rehearsed_inputs(AAT, SETTINGS)))
    assert makers.names == NEEDED
    assert makers.what_they_do == (
        "the nodes split and train of the pipeline prepare make baseline_model, train_data and validation_data"
    )
    assert makers.command("aat") == "kedro run --pipelines prepare,aat"
    make(makers, catalog, {"params:seed": 40}.__getitem__, tmp_path / "temporary")
    assert len(catalog.load("validation_data")["inputs"]) == 40
    (written,) = [path for path in tmp_path.rglob("*") if path.is_file() and path not in before]
    assert written.name == "train.safetensors"
    assert written.is_relative_to(tmp_path / "temporary")


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path)
    catalog.save("train_data", labeled())
    assert node_names(found(catalog)) == {"split", "train"}
    catalog.save("validation_data", labeled())
    makers = found(catalog)
    assert (makers.names, node_names(makers)) == (("baseline_model",), {"train"})
    catalog.save("baseline_model", Plain())
    assert found(catalog).names == ()


def test_own_nodes_come_first_and_the_sum_of_all_pipelines_last(tmp_path: Path) -> None:
    registered = {"__default__": AAT + PREPARE, "both": AAT + PREPARE, "prepare": PREPARE}
    makers = makers_of(NEEDED, "both", registered, catalog_of(tmp_path))
    assert makers.in_words == "the nodes split and train"
    only_sum = {"aat": AAT, "__default__": AAT + PREPARE}
    assert node_names(makers_of(NEEDED, "aat", only_sum, catalog_of(tmp_path))) == {"split", "train"}
    assert makers_elsewhere("both", registered, catalog_of(tmp_path)).names == ()


def test_what_the_nodes_lack_is_named(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path)
    (tmp_path / "raw.json").unlink()
    assert found(catalog).missing == ("raw",)


def test_a_node_that_fails_is_named_with_its_words(tmp_path: Path) -> None:
    prepare = Pipeline([Node(fail, "raw", "train_data", name="query")])
    catalog = catalog_of(tmp_path)
    with pytest.raises(
        UserFunctionError, match="node query, which makes train_data, fails: LookupError: no such table"
    ):
        make(found(catalog, prepare, ("train_data",)), catalog, str, tmp_path / "temporary")


def test_a_file_that_is_written_as_another_dataset(tmp_path: Path) -> None:
    path = str(tmp_path / "train.csv")
    table = {"type": "kedro_aat.datasets.tabular.TableDataset", "filepath": path, "target": "kind"}
    frame = {"type": "pandas.CSVDataset", "filepath": path, "save_args": {"index": False}}
    catalog = catalog_of(tmp_path, **{"train_data@aat": table, "train_data@pandas": frame})
    node = Node(lambda raw: pd.DataFrame({"x": [1.0, 2.0], "kind": [0, 1]}), "raw", "train_data@pandas", name="query")
    registered = {"aat": Pipeline(AAT, inputs={"train_data": "train_data@aat"}), "prepare": Pipeline([node])}
    makers = makers_of(("train_data@aat",), "aat", registered, catalog)
    make(makers, catalog, str, tmp_path / "temporary")
    assert catalog.load("train_data@aat")["targets"].tolist() == [0, 1]
    assert not Path(path).exists()

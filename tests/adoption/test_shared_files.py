"""Files that our nodes read or write as one entry, and nodes of the same run write as another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kedro.io import AbstractDataset, DataCatalog, Version
from kedro.pipeline import Node, Pipeline
from kedro_datasets.json import JSONDataset

from kedro_aat.adoption.shared_files import notes_on_other_runs, shared_file_mistakes
from kedro_aat.pipelines.aat import create_pipeline

TABLE = "kedro_aat.datasets.tabular.TableDataset"
CSV = "pandas.CSVDataset"


class Described(AbstractDataset[Any, Any]):
    """A dataset of the user's that says where it is, in its own way."""

    def __init__(self, **described: Any) -> None:
        self.described = described

    def load(self) -> Any:
        raise NotImplementedError

    def save(self, data: Any) -> None:
        raise NotImplementedError

    def _describe(self) -> dict[str, Any]:
        return self.described


def _nothing(*_: Any) -> None:
    """What all nodes of the user's do."""


def _node(inputs: Any, outputs: Any, name: str = "split") -> Node:
    return Node(_nothing, inputs, outputs, name=name)


def _mistakes(nodes: list[Node] | Pipeline, entries: dict[str, dict[str, Any]], ours: Pipeline | None = None) -> Any:
    pipeline = Pipeline(nodes) + (ours or create_pipeline())
    return shared_file_mistakes(pipeline, DataCatalog.from_config(entries))


def _table(path: Path | str, kind: str = TABLE, **more: Any) -> dict[str, Any]:
    return {"type": kind, "filepath": str(path), **({"target": "kind"} if kind == TABLE else {}), **more}


def test_an_entry_that_another_one_writes_is_named_with_both_nodes_and_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    (mistake,) = _mistakes([_node(None, "table")], {"train_data": _table(path), "table": _table(path, CSV)})
    assert mistake.startswith(f"train_data: {path} is also table, which the node split writes in the same run.")
    for words in ("evaluate_baseline, build_controller, finetune_adaptively", "Let split write train_data itself"):
        assert words in mistake


def test_a_shared_place_elsewhere_has_its_protocol() -> None:
    url = "s3://bucket/train.csv"
    (mistake,) = _mistakes([_node(None, "table")], {"train_data": _table(url), "table": _table(url, CSV)})
    assert mistake.startswith(f"train_data: {url} is also table")


def test_names_that_are_one_dataset_are_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    both = {"train_data@pandas": _table(path, CSV), "train_data@aat": _table(path)}
    ours = Pipeline(create_pipeline(), inputs={"train_data": "train_data@aat"})
    assert _mistakes([_node(None, "train_data@pandas")], both, ours) == []
    assert _mistakes([_node(None, "train_data")], {"train_data": _table(path)}) == []
    assert _mistakes([_node("table", "other")], {"train_data": _table(path), "table": _table(path, CSV)}) == []


DATA = "FOLDER/data"
PARTITIONS = {"type": "partitions.PartitionedDataset", "dataset": CSV}
TRAIN = _table(f"{DATA}/train.csv")
IMAGES = {"type": "kedro_aat.datasets.images.ImageFolderDataset", "filepath": f"{DATA}/images", "size": 8}
ELSEWHERE = _table("memory://train.safetensors", "kedro_aat.datasets.tensors.TensorsDataset")
VERSIONED = _table(f"{DATA}/t.csv", CSV, versioned=True)
DESCRIBED = f"{__name__}.Described"

# Case -> the entry that we read, and the one that a node writes.
SHARED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "relative": (TRAIN, _table("data/train.csv", CSV)),
    "dots": (TRAIN, _table(f"{DATA}/splits/../train.csv", CSV)),
    "link": (TRAIN, _table("FOLDER/link/train.csv", CSV)),
    "url": (TRAIN, _table(f"file://{DATA}/train.csv", CSV)),
    "cached": (TRAIN, {"type": "CachedDataset", "dataset": _table(f"{DATA}/train.csv", CSV)}),
    "partitions": (TRAIN, {**PARTITIONS, "path": DATA}),
    "partitions that end so": (TRAIN, {**PARTITIONS, "path": "FOLDER/link", "filename_suffix": ".csv"}),
    "in a folder": (IMAGES, _table(f"{DATA}/images/cats/1.png", "pillow.ImageDataset")),
    "folder above": (IMAGES, {**PARTITIONS, "path": DATA}),
    "elsewhere": (ELSEWHERE, _table("memory://train.safetensors", "text.TextDataset")),
    "partitions elsewhere": (ELSEWHERE, {**PARTITIONS, "path": "memory://"}),
    "described": (TRAIN, {"type": DESCRIBED, "filepath": f"{DATA}/train.csv"}),
    "described elsewhere": (ELSEWHERE, {"type": DESCRIBED, "path": "memory://train.safetensors"}),
    "described apart": (ELSEWHERE, {"type": DESCRIBED, "filepath": "train.safetensors", "protocol": "memory"}),
    "newest version": (VERSIONED, VERSIONED),
}
APART: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "beside": (TRAIN, _table(f"{DATA}/train.csv.old", CSV)),
    "partitions that end otherwise": (TRAIN, {**PARTITIONS, "path": DATA, "filename_suffix": ".json"}),
    "other protocol": (TRAIN, {"type": DESCRIBED, "filepath": f"{DATA}/train.csv", "protocol": "s3"}),
    "an older version": (_table(f"{DATA}/t.csv/1/t.csv"), VERSIONED),
    "no file": (TRAIN, {"type": "MemoryDataset"}),
    "nothing described": (TRAIN, {"type": DESCRIBED, "filepath": None}),
    "wrong entry": (TRAIN, {"type": "nowhere.Dataset", "filepath": f"{DATA}/train.csv"}),
}


@pytest.mark.parametrize("case", [*SHARED, *APART])
def test_places_are_compared_as_what_they_are(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "splits").mkdir(parents=True)
    (tmp_path / "link").symlink_to("data")
    read, written = json.loads(json.dumps((SHARED | APART)[case]).replace("FOLDER", str(tmp_path)))
    assert len(_mistakes([_node(None, "other")], {"train_data": read, "other": written})) == (case in SHARED)


def test_a_version_that_was_chosen_is_not_the_one_that_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / "baseline.json")
    catalog = DataCatalog(
        {
            "train_data": JSONDataset(filepath=path, version=Version("1", None)),
            "other": JSONDataset(filepath=path, version=Version(None, "2")),
        }
    )
    pipeline = Pipeline([_node(None, "other")]) + create_pipeline()
    assert shared_file_mistakes(pipeline, catalog) == []


def test_entries_of_factories_and_namespaces_are_compared(tmp_path: Path) -> None:
    entries = {
        "{name}_data": _table(tmp_path / "{name}.csv"),
        "{space}.{name}_data": _table(tmp_path / "{space}" / "{name}.csv"),
        "{name}_table": _table(tmp_path / "small" / "{name}.csv", CSV),
    }
    assert _mistakes([_node(None, "test_table")], entries) == []
    (mistake,) = _mistakes([_node(None, "test_table")], entries, create_pipeline(namespace="small"))
    assert mistake.startswith("small.test_data: ")
    assert "small.certify_model" in mistake


@pytest.mark.parametrize(
    ("needs", "makes", "num_mistakes"),
    [
        (None, ["table", "baseline_model"], 0),  # before all nodes of ours
        ("aat_summary", "table", 0),  # after them
        ("baseline_evaluation", "table", 1),  # some have read the old file
        (None, ["table", "checkpoint_store"], 0),
        (None, ["table", "certificate_ledger"], 1),  # the rehearsal does not wait
    ],
)
def test_an_order_that_is_certain_is_no_mistake(needs: Any, makes: Any, num_mistakes: int, tmp_path: Path) -> None:
    entries = {"validation_data": _table(tmp_path / "v.csv"), "table": _table(tmp_path / "v.csv", CSV)}
    assert len(_mistakes([_node(needs, makes)], entries)) == num_mistakes


def test_results_that_replace_each_other_are_one_mistake(tmp_path: Path) -> None:
    def result(name: str) -> dict[str, Any]:
        return {"type": "json.JSONDataset", "filepath": str(tmp_path / name)}

    (mistake,) = _mistakes([], {"search_result": result("a"), "second_stage_result": result("a")})
    assert mistake == (
        f"search_result: {tmp_path / 'a'} is written twice in a run, by the node finetune_adaptively as search_result "
        "and by finetune_second_stage as second_stage_result, so one replaces the other. Give one of the two entries "
        "another path"
    )
    other = {"baseline_evaluation": result("b"), "mine": result("b")}
    assert "evaluate_baseline as baseline_evaluation and by split as mine" in _mistakes([_node(None, "mine")], other)[0]
    assert len(_mistakes([_node("aat_summary", "mine")], {"aat_summary": result("c"), "mine": result("c")})) == 1
    assert _mistakes([_node(None, "mine")], {"aat_summary": result("d"), "mine": result("e")}) == []


def test_a_table_that_is_cleaned_in_place_is_no_mistake(tmp_path: Path) -> None:
    entries = {"train_data": _table(tmp_path / "t.csv"), "raw": _table(tmp_path / "t.csv", CSV)}
    assert _mistakes([_node(None, "raw"), _node("raw", "train_data", "clean")], entries) == []


def test_nodes_without_ours_may_share_files(tmp_path: Path) -> None:
    entries = {"one": _table(tmp_path / "t.csv", CSV), "two": _table(tmp_path / "t.csv", CSV)}
    nodes = Pipeline([_node(None, "one"), _node(None, "two", "again")])
    assert shared_file_mistakes(nodes, DataCatalog.from_config(entries)) == []


def test_other_runs_get_a_note(tmp_path: Path) -> None:
    catalog = DataCatalog.from_config({"train_data": _table(tmp_path / "t"), "table": _table(tmp_path / "t", CSV)})
    prepare, aat = Pipeline([_node(None, "table")]), create_pipeline()
    registered = {"prepare": prepare, "aat": aat, "__default__": prepare + aat, "all": prepare + aat}
    (note,) = notes_on_other_runs("aat", registered, catalog)
    assert note.startswith("`kedro run` would not start. train_data: ")
    assert notes_on_other_runs("__default__", registered, catalog) == []

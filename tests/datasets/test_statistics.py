"""Kedro-Viz is told the sizes of datasets that are no tables."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline, node

from kedro_aat.datasets.documents import MarkdownDataset
from kedro_aat.datasets.handles import CheckpointStoreDataset
from kedro_aat.datasets.statistics import add_statistics
from kedro_aat.datasets.tensors import TensorsDataset


def joined(*inputs: object) -> str:
    return "text"


PIPELINE = Pipeline([node(joined, ["split", "store", "table", "missing", "params:seed"], "card")])


def catalog_in(folder: Path) -> DataCatalog:
    """A split of five examples, a store of 30 bytes, a card of four bytes, and a table that Kedro-Viz has measured."""
    split = TensorsDataset(filepath=str(folder / "split.safetensors"), backend="torch")
    split.save({"inputs": torch.zeros(5, 3), "targets": torch.zeros(5)})
    card = MarkdownDataset(filepath=str(folder / "card.md"))
    card.save("text")
    run = folder / "store/run"
    run.mkdir(parents=True)
    (run / "one").write_bytes(bytes(10))
    (run / "two").write_bytes(bytes(20))
    (folder / "store/.hidden").write_bytes(bytes(1000))
    return DataCatalog({"split": split, "card": card, "store": CheckpointStoreDataset(filepath=str(folder / "store"))})


def test_sizes_and_rows_are_added_to_what_kedro_viz_has_written(tmp_path: Path) -> None:
    catalog = catalog_in(tmp_path)
    stats = tmp_path / ".viz/stats.json"
    stats.parent.mkdir()
    stats.write_text(json.dumps({"table": {"rows": 7, "columns": 2}}))
    add_statistics(tmp_path, PIPELINE, catalog)
    assert json.loads(stats.read_text()) == {
        "table": {"rows": 7, "columns": 2},
        "split": {"rows": 5, "columns": 2, "file_size": (tmp_path / "split.safetensors").stat().st_size},
        "store": {"file_size": 30},
        "card": {"file_size": 4},
    }


def test_nothing_is_written_without_kedro_viz(tmp_path: Path) -> None:
    add_statistics(tmp_path, PIPELINE, catalog_in(tmp_path))
    assert not (tmp_path / ".viz").exists()


def test_damaged_file_of_kedro_viz_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / ".viz").mkdir()
    (tmp_path / ".viz/stats.json").write_text("{")
    add_statistics(tmp_path, PIPELINE, catalog_in(tmp_path))
    assert (tmp_path / ".viz/stats.json").read_text() == "{"

"""Files that the settings do not ask for are no error for the nodes that would read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kedro.io import DataCatalog, DatasetError, Version

from kedro_aat.adoption.checks import exists
from kedro_aat.datasets.exported import ExecutorchDataset, LitertDataset, OnnxDataset, OpenvinoDataset
from kedro_aat.export import NotExported
from kedro_aat.export.targets.registry import not_asked_for


@pytest.mark.parametrize(
    ("kind", "name", "target"),
    [
        (OpenvinoDataset, "m.xml", "openvino"),
        (ExecutorchDataset, "m.pte", "executorch"),
        (LitertDataset, "m.tflite", "litert"),
    ],
)
def test_what_was_not_asked_for_says_how_to_ask(kind: Any, name: str, target: Any, tmp_path: Path) -> None:
    dataset = kind(filepath=str(tmp_path / name))
    dataset.save(not_asked_for(target))
    assert not list(tmp_path.iterdir())
    read = dataset.load()
    assert read == not_asked_for(target)
    assert f"Name {target} in export.targets" in read.reason
    dataset.save(NotExported("Nothing kept the budget."))
    assert dataset.load() == NotExported("Nothing kept the budget.")


@pytest.mark.parametrize(
    ("kind", "name", "target"), [(OpenvinoDataset, "m.xml", "openvino"), (LitertDataset, "m.tflite", "litert")]
)
def test_a_versioned_entry_that_was_added_later_has_no_file(kind: Any, name: str, target: Any, tmp_path: Path) -> None:
    def entry(load: str | None) -> Any:
        return kind(filepath=str(tmp_path / name), version=Version(load, "2026-11-27T10.00.00.000Z"))

    added = entry(None)
    # So `kedro aat certify` exports nothing again to make it.
    assert exists(DataCatalog({"compressed": added}), "compressed")
    assert added.load() == not_asked_for(target)
    pinned = entry("2026-11-01T10.00.00.000Z")
    assert not exists(DataCatalog({"compressed": pinned}), "compressed")
    with pytest.raises(DatasetError):
        pinned.load()
    added.save(NotExported("Nothing kept the budget."))
    assert entry(None).load() == NotExported("Nothing kept the budget.")
    assert not entry(None).loads_without_file


def test_a_lost_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        OnnxDataset(filepath=str(tmp_path / "m.onnx")).load()
    (tmp_path / "m.bin").touch()
    with pytest.raises(DatasetError):
        OpenvinoDataset(filepath=str(tmp_path / "m.xml")).load()

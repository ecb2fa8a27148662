"""Every dataset's arguments can be written as a catalog again: `DataCatalog.to_config`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from kedro.io import AbstractDataset, CatalogConfigResolver, DataCatalog

import kedro_aat.datasets

ROOT = Path(__file__).parents[2]
PACKAGE = kedro_aat.datasets.__name__

# Arguments that are required, or whose values are not the defaults.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CertificateLedgerDataset": {},
    "CheckpointStoreDataset": {},
    "ControllerDataset": {},
    "ExportedProgramDataset": {},
    "FigureDataset": {"versioned": True},
    "ImageFolderDataset": {"size": [8, 4], "channels": 1},
    "ImportedModelDataset": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}},
    "MarkdownDataset": {"fs_args": {"open_args_save": {"mode": "a"}}},
    "ModelDataset": {"recipe": {"class_path": "torch.nn.ReLU", "init_args": {"inplace": True}}},
    "OnnxDataset": {},
    "OpenvinoDataset": {},
    "PageDataset": {},
    "TableDataset": {"target": "label", "classes": ["a", "b"]},
    "TensorBoardDataset": {},
    "TensorsDataset": {"backend": "torch"},
}


def dataset_classes() -> dict[str, str]:
    """Name and import path of each dataset that a catalog can name."""
    paths = {}
    for found in pkgutil.iter_modules(kedro_aat.datasets.__path__, f"{PACKAGE}."):
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            ours = isinstance(value, type) and value.__module__ == found.name and issubclass(value, AbstractDataset)
            if ours and not name.startswith("_") and name not in ("LocalDataset", "ReadOnlyDataset"):
                paths[name] = f"{found.name}.{name}"
    return paths


def test_every_dataset_is_tested() -> None:
    assert dataset_classes().keys() == ARGUMENTS.keys()


def rewritten(entries: dict[str, Any]) -> tuple[DataCatalog, DataCatalog]:
    """A catalog with all its datasets, and the one that its configuration gives."""
    catalog = DataCatalog.from_config(entries)
    for name in entries:
        catalog.get(name)
    configuration: tuple[Any, ...] = catalog.to_config()
    return catalog, DataCatalog.from_config(*configuration)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_a_dataset_are_recorded(name: str, tmp_path: Path) -> None:
    entry = {
        "type": dataset_classes()[name],
        "filepath": str(tmp_path / "data"),
        "metadata": {"kedro-viz": {"layer": "models"}},
        **ARGUMENTS[name],
    }
    catalog, again = rewritten({"entry": entry})
    recorded = catalog.to_config()[0]["entry"]
    # Kedro leaves metadata out, and adds defaults.
    assert {key: recorded[key] for key in entry if key != "metadata"} == {
        key: value for key, value in entry.items() if key != "metadata"
    }
    assert type(again.get("entry")) is type(catalog.get("entry"))
    assert repr(again.get("entry")) == repr(catalog.get("entry"))
    assert again.to_config() == catalog.to_config()


def test_catalog_of_this_repository_is_recorded() -> None:
    entries = yaml.safe_load((ROOT / "conf" / "base" / "catalog.yml").read_text())
    named = {name: entry for name, entry in entries.items() if not CatalogConfigResolver.is_pattern(name)}
    catalog, again = rewritten(named)
    assert {name: repr(again.get(name)) for name in named} == {name: repr(catalog.get(name)) for name in named}


def test_user_class_may_inherit_or_extend_the_arguments(tmp_path: Path) -> None:
    from kedro_aat.datasets.exported import OnnxDataset

    class Inheriting(OnnxDataset):
        pass

    class Extending(OnnxDataset):
        def __init__(self, *, filepath: str, note: str) -> None:
            super().__init__(filepath=filepath)
            self.note = note

    path = str(tmp_path / "model.onnx")
    inheriting, extending = Inheriting(filepath=path), Extending(filepath=path, note="mine")
    assert inheriting._init_config()["filepath"] == extending._init_config()["filepath"] == path
    assert extending._init_config()["note"] == extending.note == "mine"

"""Every dataset's arguments: `DataCatalog.to_config` writes them as a catalog again; paths elsewhere are refused."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from kedro.io import AbstractDataset, CatalogConfigResolver, DataCatalog, DatasetError, Version

import kedro_aat.datasets
from kedro_aat.datasets.documents import MarkdownDataset, PageDataset
from kedro_aat.datasets.exported import OnnxDataset
from kedro_aat.datasets.recipe import build_module
from kedro_aat.datasets.tensors import TensorsDataset
from kedro_aat.errors import StorageError
from kedro_aat.imports import Imported

ROOT = Path(__file__).parents[2]
PACKAGE = kedro_aat.datasets.__name__

# Arguments that are required, or whose values are not the defaults.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CertificateLedgerDataset": {"fs_args": {"echo": False}},
    "CheckpointStoreDataset": {"mirror": "memory://mirror", "fs_args": {"use_listings_cache": False}},
    "ControllerDataset": {},
    "ExecutorchDataset": {},
    "ExportedProgramDataset": {},
    "FigureDataset": {"versioned": True},
    "ImageFolderDataset": {"size": [8, 4], "channels": 1},
    "ImportedModelDataset": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}},
    "LitertDataset": {},
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
            if (
                ours
                and not name.startswith("_")
                and name not in ("FileDataset", "GroupDataset", "ReadOnlyDataset", "TargetDataset")
            ):
                paths[name] = f"{found.name}.{name}"
    return paths


# Those whose store or ledger locks a file.
HERE = {"CertificateLedgerDataset", "CheckpointStoreDataset"}


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


def test_class_that_a_tracker_derives_may_wrap_saving(tmp_path: Path) -> None:
    """kedro-mlflow's MlflowArtifactDataset does so, with a class that it makes at run time."""

    class Logged(PageDataset):
        def _save(self, data: str) -> None:
            path = self._get_save_path().as_posix()
            super().save.__wrapped__(self, data)  # type: ignore[attr-defined]
            self.logged = Path(path).read_text()

    for version in (None, Version(None, "v1")):
        page = Logged(filepath=str(tmp_path / f"{version is None}.html"), version=version)
        page.save("text")
        assert page.logged == page.load() == "text"


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("path", ["memory://bucket/data", "simplecache::s3://bucket/data", "dbfs:/data"])
def test_path_that_would_become_a_local_folder_is_refused(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    catalog = DataCatalog.from_config({"entry": {"type": dataset_classes()[name], **ARGUMENTS[name], "filepath": path}})
    if path.startswith("memory:") and name not in HERE:
        catalog.get("entry")
        return
    refusal = "cannot be used"
    if name == "CertificateLedgerDataset":
        refusal = f"cannot hold a certificate ledger: {path.partition(':')[0]}:// has no way to create a file only if"
    with pytest.raises(DatasetError, match=f"{path} {refusal}") as info:
        catalog.get("entry")
    assert isinstance(info.value.__cause__, StorageError)
    assert list(tmp_path.iterdir()) == []


def test_file_url_is_a_path_on_this_machine(tmp_path: Path) -> None:
    entries = {
        "model": {"type": f"{PACKAGE}.model.ModelDataset", "filepath": f"file://{tmp_path}/model"},
        "page": {"type": f"{PACKAGE}.documents.PageDataset", "filepath": f"file:{tmp_path}/page.html"},
        "ledger": {
            "type": f"{PACKAGE}.handles.CertificateLedgerDataset",
            "filepath": f"file://localhost{tmp_path}/l.json",
        },
    }
    catalog = DataCatalog.from_config(entries)
    catalog.save("model", build_module(Imported(class_path="torch.nn.ReLU")))
    catalog.save("page", "<p>text</p>")
    catalog.load("ledger").claim("split", {})
    assert {path.name for path in tmp_path.iterdir()} >= {"model", "page.html", "l.json"}
    assert isinstance(catalog.load("model"), torch.nn.ReLU)
    assert catalog.load("page") == "<p>text</p>"


def test_tensors_and_texts_are_written_elsewhere() -> None:
    tensors = TensorsDataset(filepath="memory://bucket/split.safetensors", backend="torch")
    tensors.save({"inputs": torch.arange(3)})
    assert tensors.load()["inputs"].tolist() == [0, 1, 2]
    page = PageDataset(filepath="memory://bucket/page.html")
    page.save("text")
    assert page.load() == "text"


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("make", [torch.tensor, np.asarray], ids=["tensors", "arrays"])
def test_views_of_tensors_and_arrays_keep_their_numbers(backend: str, make: Callable[..., Any], tmp_path: Path) -> None:
    numbers = np.arange(12.0).reshape(3, 4)
    table, one = make(numbers), make(5.0)
    dataset = TensorsDataset(filepath=str(tmp_path / "views.safetensors"), backend=backend)
    given = {"column": table[:, 1], "rows": table[::2], "turned": table.T, "all": table, "first": table[0], "one": one}
    expected = [numbers[:, 1], numbers[::2], numbers.T, numbers, numbers[0], 5.0]
    dataset.save(given)
    loaded = dataset.load()
    assert {type(part) for part in loaded.values()} == {np.ndarray if backend == "numpy" else torch.Tensor}
    for name, part in zip(given, expected, strict=True):
        np.testing.assert_array_equal(loaded[name], part)
    with pytest.raises(DatasetError, match="rows is a list: give an array of NumPy or a tensor"):
        dataset.save({"rows": [1, 2]})


def test_tensors_come_in_the_order_of_their_names_and_may_be_views(tmp_path: Path) -> None:
    dataset = TensorsDataset(filepath=str(tmp_path / "split.safetensors"), backend="torch")
    table = torch.arange(12.0).view(3, 4)
    dataset.save(dict.fromkeys("dbaec", table.T))
    assert [*dataset.load()] == [*"abcde"]
    assert torch.equal(dataset.load()["a"], table.T)


def test_text_can_be_appended(tmp_path: Path) -> None:
    dataset = MarkdownDataset(filepath=str(tmp_path / "log.md"), fs_args={"open_args_save": {"mode": "a"}})
    dataset.save("1")
    dataset.save("2")
    assert dataset.load() == "12"

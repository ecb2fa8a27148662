"""A figure is saved as plotly.JSONDataset saves it, and needs Plotly only to be loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from kedro.io import DataCatalog, DatasetError, Version
from kedro_datasets.plotly import JSONDataset

from kedro_aat.datasets.documents import FigureDataset
from kedro_aat.export import NotExported


@pytest.fixture
def figure() -> go.Figure:
    """A figure with an array, a gap and a character outside ASCII."""
    return go.Figure(go.Scatter(x=np.arange(3), y=[1, 2.5, float("nan")], name="\N{RIGHTWARDS ARROW}"))


def test_bytes_and_preview_are_those_of_plotly_json_dataset(figure: go.Figure, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "nested" / "ours.json", tmp_path / "theirs.json"
    dataset, reference = FigureDataset(filepath=str(ours)), JSONDataset(filepath=str(theirs))
    dataset.save(figure)
    reference.save(figure)
    assert ours.read_bytes() == theirs.read_bytes()
    assert dataset.preview() == reference.preview()
    assert dataset.load() == reference.load()
    assert isinstance(dataset.load(), go.Figure)


def test_not_exported_removes_the_file(figure: go.Figure, tmp_path: Path) -> None:
    path = tmp_path / "figure.json"
    catalog = DataCatalog.from_config(
        {"figure": {"type": "kedro_aat.datasets.documents.FigureDataset", "filepath": str(path)}}
    )
    catalog.save("figure", figure)
    assert catalog.exists("figure")
    for _ in range(2):
        catalog.save("figure", NotExported("Plotly is not installed"))
        assert not catalog.exists("figure")
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(DatasetError, match="figure"):
        catalog.load("figure")


@pytest.mark.filterwarnings("error")
def test_versions_are_kept_apart(figure: go.Figure, tmp_path: Path) -> None:
    path = tmp_path / "figure.json"
    for version in ("1", "2"):
        FigureDataset(filepath=str(path), version=Version(None, version)).save(figure)
    assert sorted(folder.name for folder in path.iterdir()) == ["1", "2"]
    assert FigureDataset(filepath=str(path), version=Version("1", None)).load().data[0].name == figure.data[0].name


def test_version_without_a_figure_has_the_reason_as_its_title(figure: go.Figure, tmp_path: Path) -> None:
    entry: dict[str, Any] = {
        "type": "kedro_aat.datasets.documents.FigureDataset",
        "filepath": str(tmp_path / "figure.json"),
        "versioned": True,
    }
    for version, data in (("1", NotExported("Plotly is not installed")), ("2", figure), ("3", NotExported("no data"))):
        catalog = DataCatalog.from_config({"figure": entry}, save_version=version)  # one run
        catalog.save("figure", data)
        assert catalog.exists("figure")
    titles = {}
    for version in ("1", "2", "3"):
        dataset = FigureDataset(filepath=entry["filepath"], version=Version(version, None))
        titles[version] = dataset.load().layout.title.text
        assert dataset.preview().keys() == {"data", "layout"}
    assert titles == {"1": "No figure: Plotly is not installed", "2": None, "3": "No figure: no data"}


def test_datasets_need_neither_plotly_nor_pillow_until_they_are_used(figure: go.Figure, tmp_path: Path) -> None:
    path = tmp_path / "figure.json"
    FigureDataset(filepath=str(path)).save(figure)
    script = f"""
import importlib, pkgutil, sys
sys.modules["plotly"] = sys.modules["PIL"] = None
import kedro_aat.datasets
for module in pkgutil.iter_modules(kedro_aat.datasets.__path__, "kedro_aat.datasets."):
    importlib.import_module(module.name)
from kedro.io import DatasetError
from kedro_aat.datasets.documents import FigureDataset
from kedro_aat.export import NotExported
dataset = FigureDataset(filepath={str(path)!r})
print(list(dataset.preview()))
try:
    dataset.load()
except DatasetError as error:
    print(error)
dataset.save(NotExported("Plotly is not installed"))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    keys, message = process.stdout.splitlines()
    assert keys == "['data', 'layout']"
    assert message.startswith("Plotly cannot be imported (")
    assert message.endswith("install it with `pip install plotly`.")
    assert not path.exists()

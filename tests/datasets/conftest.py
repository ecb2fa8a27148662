"""A catalog with one entry of each dataset that saves what a run returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kedro.io import DataCatalog


@pytest.fixture
def catalog(tmp_path: Path) -> DataCatalog:
    """One entry of each dataset, written as they are in a catalog.yml."""
    types = {
        "model": "kedro_aat.datasets.model.ModelDataset",
        "controller": "kedro_aat.datasets.model.ControllerDataset",
        "store": "kedro_aat.datasets.handles.CheckpointStoreDataset",
        "tensorboard": "kedro_aat.datasets.handles.TensorBoardDataset",
        "onnx": "kedro_aat.datasets.exported.OnnxDataset",
        "program": "kedro_aat.datasets.exported.ExportedProgramDataset",
        "openvino": "kedro_aat.datasets.exported.OpenvinoDataset",
    }
    suffixes = {"onnx": ".onnx", "program": ".pt2", "openvino": ".xml"}
    entries: dict[str, Any] = {
        name: {
            "type": kind,
            "filepath": str(tmp_path / "models" / f"{name}{suffixes.get(name, '')}"),
            "metadata": {"kedro-viz": {"layer": "models"}},
        }
        for name, kind in types.items()
    }
    recipe = {
        "class_path": "tests.nets.NeedsArguments",
        "init_args": {"num_inputs": 3, "num_outputs": 2, "bias": False},
    }
    entries["with_recipe"] = {
        "type": types["model"],
        "filepath": str(tmp_path / "models" / "with_recipe"),
        "recipe": recipe,
    }
    for name in ("model", "controller"):
        entries[name]["trusted"] = ["tests"]  # where most modules that tests save are defined
    entries["program"]["trusted"] = True
    return DataCatalog.from_config(entries)

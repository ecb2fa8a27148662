"""Exported files are written as a whole, and removed if nothing is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from kedro.io import DataCatalog, DatasetError
from torch import Tensor, nn

from kedro_aat.export import NotExported
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.openvino_file import OpenvinoFiles
from kedro_aat.export.program import to_program
from kedro_aat.export.session import open_session, run_session
from tests.datasets.saved import INPUTS, built, listed, outputs


def test_onnx_model_is_loaded_as_saved(catalog: DataCatalog) -> None:
    model = built()
    catalog.save("onnx", to_onnx(model, INPUTS))
    loaded = catalog.load("onnx")
    assert isinstance(loaded, onnx.ModelProto)
    session = open_session(loaded.SerializeToString())
    torch.testing.assert_close(run_session(session, INPUTS), outputs(model))


def test_exported_program_is_loaded_as_saved(catalog: DataCatalog) -> None:
    model = built()
    catalog.save("program", to_program(model, INPUTS))
    loaded = catalog.load("program").module()
    assert torch.equal(loaded(INPUTS), outputs(model))


@pytest.mark.parametrize("name", ["onnx", "program"])
def test_file_is_replaced_removed_or_kept_as_a_whole(catalog: DataCatalog, tmp_path: Path, name: str) -> None:
    make: Callable[[nn.Module, Tensor], Any] = to_onnx if name == "onnx" else to_program
    assert not catalog.exists(name)
    first, second = (make(built(num_classes=number), INPUTS) for number in (3, 5))
    catalog.save(name, first)
    assert catalog.exists(name)
    folder = tmp_path / "models"
    (path,) = folder.iterdir()
    before = path.read_bytes()

    with pytest.raises(DatasetError):
        catalog.save(name, "neither a model nor a program")
    assert path.read_bytes() == before
    assert listed(folder) == [path.name]

    catalog.save(name, second)
    assert path.read_bytes() != before
    assert listed(folder) == [path.name]

    for _ in range(2):
        catalog.save(name, NotExported("no rate was within budget"))
        assert not path.exists()
        assert catalog.load(name) == NotExported("no rate was within budget")
    assert listed(folder) == [f"{path.name}.not_exported.txt"]

    catalog.save(name, first)
    assert listed(folder) == [path.name]


def test_both_openvino_files_are_written_and_removed_together(catalog: DataCatalog, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    first, second = (OpenvinoFiles(b"<net/>" + more, b"weights" + more) for more in (b"", b"2"))
    for files in (first, second):
        catalog.save("openvino", files)
        assert catalog.load("openvino") == files
        assert listed(folder) == ["openvino.bin", "openvino.xml"]
    catalog.save("openvino", NotExported("not asked for"))
    assert listed(folder) == ["openvino.xml.not_exported.txt"]
    assert catalog.load("openvino") == NotExported("not asked for")


def test_what_nobody_asked_for_leaves_no_file(catalog: DataCatalog, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    catalog.save("openvino", OpenvinoFiles(b"<net/>", b"weights"))
    catalog.save("openvino", NotExported("set a setting to get them", is_asked=False))
    assert listed(folder) == []
    assert not catalog.exists("openvino")
    catalog.save("openvino", NotExported("it failed"))
    catalog.save("openvino", NotExported("set a setting to get them", is_asked=False))
    assert listed(folder) == []


@pytest.mark.parametrize("name", ["model", "controller", "onnx", "program"])
def test_missing_data_cannot_be_loaded(catalog: DataCatalog, name: str) -> None:
    assert not catalog.exists(name)
    with pytest.raises(DatasetError, match=name):
        catalog.load(name)


def test_file_that_nobody_asked_for_is_loaded_as_not_exported(catalog: DataCatalog) -> None:
    assert not catalog.exists("openvino")
    loaded = catalog.load("openvino")
    assert isinstance(loaded, NotExported)
    assert not loaded.is_asked

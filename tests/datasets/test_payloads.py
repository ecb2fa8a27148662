"""A file from a stranger runs nothing when it is loaded or previewed, and the error says so."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pytest
import torch
from kedro.io import AbstractDataset, DatasetError
from onnx.external_data_helper import set_external_data
from pyarrow import parquet
from safetensors.torch import save_file
from torch import nn

from kedro_aat.datasets.exported import ExportedProgramDataset, OnnxDataset
from kedro_aat.datasets.handles import CheckpointStoreDataset
from kedro_aat.datasets.images import ImageFolderDataset
from kedro_aat.datasets.imported import ImportedModelDataset
from kedro_aat.datasets.model import ControllerDataset, ModelDataset
from kedro_aat.datasets.tabular import TableDataset
from kedro_aat.errors import AatError, CheckpointError, DataError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.program import to_program
from kedro_aat.export.verify import read_back
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore

INPUTS = torch.zeros(2, 3)
LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}}


class Boom:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.command = f"touch '{marker}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


def write_folder(folder: Path, recipe: dict[str, Any]) -> Path:
    """Writes what both a model folder and a controller's folder need."""
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "compression.json").write_text(json.dumps({"settings": {"algorithm": "quantization"}, "state": {}}))
    save_file({}, folder / "model.safetensors")
    return folder


def refuse(dataset: AbstractDataset[Any, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message) as wrapped:
        dataset.load()
    assert isinstance(wrapped.value.__cause__, AatError)


def calls_reduce_graph_module(folder: Path, marker: Path) -> Path:
    body = {"_code": "def forward(self, x): return x", "_modules": {}}
    arguments = {"body": body, "import_block": f"import os; os.system('touch {marker}')\n"}
    return write_folder(folder, {"class_path": "torch.fx.graph_module.reduce_graph_module", "init_args": arguments})


def brings_its_own_module(folder: Path, marker: Path) -> Path:
    write_folder(folder, {"class_path": "folder.net.Net", "init_args": {}})
    (folder / "net.py").write_text(f"import torch\nopen('{marker}', 'w')\nclass Net(torch.nn.Module): pass\n")
    return folder


@pytest.mark.parametrize("write", [calls_reduce_graph_module, brings_its_own_module])
def test_model_folder(
    write: Callable[[Path, Path], Path], tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)  # like the current directory for `python -m kedro` and in Jupyter
    folder = write(tmp_path / "folder", marker)
    for dataset in (ModelDataset(filepath=str(folder)), ControllerDataset(filepath=str(folder))):
        refuse(dataset, "Nothing was imported")
        assert dataset.preview() is not None
    assert "folder" not in sys.modules
    assert not marker.exists()


def test_pickle_in_place_of_safetensors(tmp_path: Path, marker: Path) -> None:
    folder = write_folder(tmp_path / "folder", LINEAR)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Boom(marker)))
    refuse(ModelDataset(filepath=str(folder)), "does not have the tensors of this Linear")
    (folder / "compression.json").write_text(json.dumps({"settings": {"class_path": "os.system"}, "state": {}}))
    refuse(ControllerDataset(filepath=str(folder)), "class_path")
    assert not marker.exists()


def with_pickle(entries: dict[str, bytes], marker: Path) -> None:
    (name,) = (name for name in entries if "sample_inputs" in name)
    file = io.BytesIO()
    torch.save((Boom(marker),), file)
    entries[name] = file.getvalue()


def with_expression(entries: dict[str, bytes], marker: Path) -> None:
    (name,) = (name for name in entries if name.endswith("models/model.json"))
    text = json.loads(entries[name])

    def plant(value: Any) -> None:
        if isinstance(value, dict) and "expr_str" in value:
            value["expr_str"] = f"__import__('os').system('touch {marker}')"
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            plant(part)

    plant(text)
    entries[name] = json.dumps(text).encode()


@pytest.mark.parametrize("plant", [with_pickle, with_expression])
def test_exported_program(plant: Callable[[dict[str, bytes], Path], None], tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "model.pt2"
    program = to_program(nn.Linear(3, 2).eval(), INPUTS)
    ExportedProgramDataset(filepath=str(path)).save(program)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    plant(entries, marker)
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in entries.items():
            archive.writestr(name, contents)

    dataset = ExportedProgramDataset(filepath=str(path))
    refuse(dataset, r"the model folder or the ONNX file of the same run(.|\n)*\n  trusted: true")
    assert dataset.preview() is not None
    assert not marker.exists()
    with contextlib.suppress(Exception):  # whatever torch says after the payload has run
        ExportedProgramDataset(filepath=str(path), trusted=True).load()
    assert marker.exists()  # so the file is dangerous


def test_program_of_this_run_is_read_back_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    model = nn.Linear(3, 2).eval()
    torch.testing.assert_close(read_back(to_program(model, INPUTS))(INPUTS), model(INPUTS))


@pytest.mark.parametrize("value", ["yes", ["torch"]])
def test_trust_in_a_program_is_a_yes_or_no(value: Any) -> None:
    with pytest.raises(AatError, match="must be true or false"):
        ExportedProgramDataset(filepath="model.pt2", trusted=value)


def test_onnx_file_that_refers_to_other_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    model = to_onnx(nn.Linear(3, 2).eval(), INPUTS)
    constant = onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(INPUTS.numpy(), "c"))
    model.graph.node.append(constant)
    for tensor in (model.graph.initializer[0], constant.attribute[0].t):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        (planted,) = (
            each for each in (*other.graph.initializer, other.graph.node[-1].attribute[0].t) if each == tensor
        )
        set_external_data(planted, "../secret")
        planted.ClearField("raw_data")
        path = tmp_path / "models" / "model.onnx"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(other.SerializeToString())
        refuse(OnnxDataset(filepath=str(path)), "refers to other files for 1 of its tensors")
        assert OnnxDataset(filepath=str(path)).preview() is not None  # without the values of tensors


@pytest.mark.parametrize("way", ["load", "preview"])
def test_pickled_weights(way: str, tmp_path: Path, marker: Path) -> None:
    torch.save({"weight": torch.zeros(2, 3), "bias": Boom(marker)}, tmp_path / "weights.pt")
    dataset = ImportedModelDataset(filepath=str(tmp_path / "weights.pt"), **LINEAR)  # type: ignore[arg-type]
    with pytest.raises((DatasetError, AatError), match="is not unpickled"):
        getattr(dataset, way)()
    assert not marker.exists()


@pytest.mark.parametrize("contents", [b"", b"no zip file", b"PK\x03\x04 no zip file"])
def test_damaged_weights(contents: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(contents)
    refuse(ImportedModelDataset(filepath=str(tmp_path / "weights.pt"), **LINEAR), "weights.pt")  # type: ignore[arg-type]


def test_checkpoint_store(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedro_aat.training.checkpoints.one_run.require_plain", lambda *_: None)
    store = CheckpointStore(tmp_path)
    with store.open({"seed": 0}) as run:
        run.save(Checkpoint(number=1, model={}, training={"optimizer": Boom(marker)}, state={}))
        with pytest.raises(CheckpointError, match="cannot be read"):
            run.load(1)
        assert run.latest() is None
    assert CheckpointStoreDataset(filepath=str(tmp_path)).preview() is not None
    assert not marker.exists()


def test_postscript_called_png(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "image.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    dataset = ImageFolderDataset(filepath=str(tmp_path), size=4)
    with pytest.raises(DataError, match="cannot be read as an image"):
        dataset.load()[0]
    with pytest.raises(DataError, match="cannot identify image file"):
        dataset.preview()


def test_image_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    (tmp_path / "class").mkdir()
    Image.new("L", (64, 64)).save(tmp_path / "class" / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="exceeds limit"):
        ImageFolderDataset(filepath=str(tmp_path), size=4).load()[0]


def test_table_with_a_pickled_type(tmp_path: Path, marker: Path) -> None:
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Boom(marker)),
    }
    columns = [pa.field("x", pa.int64(), metadata=metadata), pa.field("y", pa.int64())]
    parquet.write_table(pa.table([[1, 2], [0, 1]], schema=pa.schema(columns)), tmp_path / "table.parquet")
    dataset = TableDataset(filepath=str(tmp_path / "table.parquet"), target="y")
    assert dataset.load()["targets"].tolist() == [0, 1]
    assert dataset.preview() is not None
    assert not marker.exists()

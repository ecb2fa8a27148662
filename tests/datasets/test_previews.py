"""Previews of datasets in Kedro-Viz: never an error if nothing was written, and no tensors are read."""

from __future__ import annotations

import base64
import inspect
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pandas as pd
import pytest
import torch
from kedro.io import AbstractDataset, DatasetError
from PIL import Image
from torch import nn

from kedro_aat.datasets.documents import FigureDataset, MarkdownDataset, PageDataset
from kedro_aat.datasets.exported import ExportedProgramDataset, OnnxDataset, OpenvinoDataset
from kedro_aat.datasets.handles import CertificateLedgerDataset, CheckpointStoreDataset, TensorBoardDataset
from kedro_aat.datasets.images import ImageFolderDataset
from kedro_aat.datasets.imported import ImportedModelDataset
from kedro_aat.datasets.model import ControllerDataset, ModelDataset
from kedro_aat.datasets.recipe import build_module
from kedro_aat.datasets.tabular import TableDataset
from kedro_aat.datasets.tensors import TensorsDataset
from kedro_aat.errors import DataError
from kedro_aat.export import NotExported
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.openvino_file import OpenvinoFiles
from kedro_aat.export.program import to_program
from kedro_aat.imports import Imported
from kedro_aat.training.checkpoints import Checkpoint
from tests.fuzzing.harness import our_error

LINEAR: dict[str, Any] = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}}

CASES: list[tuple[type[AbstractDataset[Any, Any]], dict[str, Any], str]] = [
    (TensorsDataset, {"backend": "torch"}, "TablePreview"),
    (TableDataset, {"target": "label"}, "TablePreview"),
    (ImageFolderDataset, {"size": 8}, "ImagePreview"),
    (ImportedModelDataset, LINEAR, "TablePreview"),
    (ModelDataset, {}, "TablePreview"),
    (ControllerDataset, {}, "JSONPreview"),
    (CheckpointStoreDataset, {}, "TablePreview"),
    (CertificateLedgerDataset, {}, "JSONPreview"),
    (TensorBoardDataset, {}, "JSONPreview"),
    (OnnxDataset, {}, "TablePreview"),
    (ExportedProgramDataset, {}, "TablePreview"),
    (OpenvinoDataset, {}, "TablePreview"),
    (PageDataset, {}, "HTMLPreview"),
    (MarkdownDataset, {}, "HTMLPreview"),
    (FigureDataset, {}, "PlotlyPreview"),
]


@pytest.mark.parametrize(("kind", "arguments", "preview_type"), CASES, ids=[case[0].__name__ for case in CASES])
def test_nothing_written_is_not_an_error(
    kind: Any, arguments: dict[str, Any], preview_type: str, tmp_path: Path
) -> None:
    dataset = kind(filepath=str(tmp_path / "missing"), **arguments)
    shown = dataset.preview()
    if shown is not None:  # handles exist before anything is written
        parts = shown["data"] if preview_type == "TablePreview" else json.loads(shown)["runs"]
        assert parts == []
    # Kedro-Viz chooses the kind of preview by this name.
    assert str(inspect.signature(dataset.preview).return_annotation) == preview_type


def test_tensors(tmp_path: Path) -> None:
    dataset = TensorsDataset(filepath=str(tmp_path / "split.safetensors"), backend="torch")
    dataset.save({"inputs": torch.zeros(5, 3), "targets": torch.zeros(5, dtype=torch.int64)})
    assert dataset.preview()["data"] == [["inputs", "5 x 3", "F32"], ["targets", "5", "I64"]]


def test_model_is_shown_layer_by_layer(tmp_path: Path) -> None:
    dataset = ModelDataset(filepath=str(tmp_path / "model"))
    arguments = {"d_model": 4, "nhead": 2, "num_decoder_layers": 11, "batch_first": True}
    dataset.save(build_module(Imported(class_path="torch.nn.Transformer", init_args=arguments)))
    shown = dataset.preview(nrows=1000)
    assert shown["columns"] == ["layer", "largest tensor", "type", "numbers"]
    rows = {row[0]: row[1:] for row in shown["data"]}
    assert rows["encoder.layers.0.linear1"] == ["2048 x 4", "F32", 2048 * 4 + 2048]
    layers = [name.split(".")[2] for name in rows if name.startswith("decoder.layers.") and name.endswith("norm1")]
    assert layers == [str(number) for number in range(11)]
    assert len(dataset.preview(nrows=3)["data"]) == 3


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_imported_model(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {f"net.{key}": value for key, value in nn.Linear(3, 2).state_dict().items()} | {"other": torch.zeros(1)}
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save({"state": state}, path)
    else:
        save_file(state, path)
    key = "state" if path.suffix == ".pt" else None
    dataset = ImportedModelDataset(filepath=str(path), key=key, prefix="net.", **LINEAR)
    (row,) = dataset.preview()["data"]
    assert (row[1], row[3]) == ("2 x 3", 8)


def test_weights_of_the_imported_class(tmp_path: Path) -> None:
    assert ImportedModelDataset(filepath=None, **LINEAR).preview() is None


def test_exported_files_show_operators(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    inputs = torch.zeros(2, 3)
    onnx = OnnxDataset(filepath=str(tmp_path / "model.onnx"))
    onnx.save(to_onnx(model, inputs))
    assert onnx.preview()["data"] == [["Gemm", "0.weight (2 x 3), 0.bias (2)"], ["Relu", ""]]
    program = ExportedProgramDataset(filepath=str(tmp_path / "model.pt2"))
    program.save(to_program(model, inputs))
    assert program.preview()["data"] == [["aten.linear.default", "0.weight, 0.bias"], ["aten.relu.default", ""]]
    openvino = OpenvinoDataset(filepath=str(tmp_path / "model.xml"))
    graph = b'<net><layers><layer name="w" type="Const" /><layer name="v0" type="MatMul" /></layers></net>'
    openvino.save(OpenvinoFiles(graph, b""))
    assert openvino.preview()["data"] == [["MatMul", "v0"]]
    onnx.save(NotExported("no rate kept the budget"))
    assert onnx.preview()["data"] == [["no rate kept the budget"]]


def test_checkpoint_store_shows_its_runs(tmp_path: Path) -> None:
    dataset = CheckpointStoreDataset(filepath=str(tmp_path))
    with dataset.load().open({"seed": 0}) as run:
        for number in (0, 1):
            run.save(Checkpoint(number, {"weight": torch.zeros(2)}, {}, {}))
        run.finish()
    (row,) = dataset.preview()["data"]
    assert (row[0], row[2], row[3]) == (run.folder.name, "finished", "0, 1")


def test_ledger_and_tensorboard(tmp_path: Path) -> None:
    ledger = CertificateLedgerDataset(filepath=str(tmp_path / "ledger.json"))
    ledger.load().claim("split", {"model": "a"})
    assert json.loads(ledger.preview())["split"]["subject"] == {"model": "a"}
    log = TensorBoardDataset(filepath=str(tmp_path / "log"))
    log.load().writer("run").close()
    assert json.loads(log.preview()) == {"command": f"tensorboard --logdir {tmp_path / 'log'}", "runs": ["run"]}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_table_shows_its_first_rows(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table{suffix}"
    frame = pd.DataFrame({"size": range(20), "label": range(20)})
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    shown = TableDataset(filepath=str(path), target="label").preview(nrows=2)
    assert shown["columns"] == ["size", "label"]
    assert shown["data"] == [[0, 0], [1, 1]]


def test_images_are_shown_side_by_side(tmp_path: Path) -> None:
    for name, color in (("cat", "red"), ("dog", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 10), color).save(tmp_path / name / "one.png")
    shown = ImageFolderDataset(filepath=str(tmp_path), size=8).preview()
    with Image.open(io.BytesIO(base64.b64decode(shown))) as sheet:
        assert sheet.size == (192, 96)
        assert [sheet.getpixel((x, 48)) for x in (48, 144)] == [(255, 0, 0), (0, 0, 255)]


def test_page_shows_its_header(tmp_path: Path) -> None:
    dataset = PageDataset(filepath=str(tmp_path / "page.html"))
    dataset.save("<main><header>\n  <h1>Done</h1>\n</header><script>draw()</script></main>")
    assert dataset.preview() == "<header> <h1>Done</h1> </header>"


def test_markdown_tables_become_html(tmp_path: Path) -> None:
    dataset = MarkdownDataset(filepath=str(tmp_path / "card.md"))
    dataset.save("# Card\n\n| | a |\n| --- | ---: |\n| b | `c` |\n\nEnd\n")
    table = "<table><tr><th></th><th>a</th></tr><tr><td>b</td><td>`c`</td></tr></table>"
    assert dataset.preview() == f"# Card\n\n{table}\n\nEnd\n"


def test_texts_are_in_utf8_if_the_system_is_not(tmp_path: Path) -> None:
    code = (
        "import sys; from kedro_aat.datasets.documents import PageDataset; page = PageDataset(filepath=sys.argv[1]); "
        "page.save(chr(0x2192)); assert page.load() == chr(0x2192)"
    )
    path = tmp_path / "page.html"
    system = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(path)], env=system, check=True, capture_output=True)
    assert path.read_text(encoding="utf-8") == "\N{RIGHTWARDS ARROW}"


def test_archive_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/models/model.json", bytes(65 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"68 MB would be read .* at most 67 MB"):
        ExportedProgramDataset(filepath=str(path)).preview()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (OpenvinoDataset, ""),
        (ControllerDataset, "recipe.json"),
        (CertificateLedgerDataset, ""),
        (PageDataset, ""),
        (MarkdownDataset, ""),
        (FigureDataset, ""),
    ],
)
def test_large_file_is_not_read(kind: Any, name: str, tmp_path: Path) -> None:
    target = tmp_path / "data"
    dataset = kind(filepath=str(target))
    if name:
        target.mkdir()
        (target / "compression.json").touch()
    with (target / name).open("wb") as file:
        file.truncate(65 << 20)  # takes no space on disk
    with pytest.raises(DataError, match="68 MB would be read"):
        dataset.preview()


def test_preview_of_onnx_reads_no_other_file(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[20])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [20])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "graph", [], [output], [tensor])
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert OnnxDataset(filepath=str(path)).preview()["data"] == [["Identity", "w (20)"]]


@pytest.mark.parametrize(("kind", "arguments", "preview_type"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_damaged_file_is_one_error_that_names_it(
    kind: Any, arguments: dict[str, Any], preview_type: str, tmp_path: Path
) -> None:
    names = {
        TableDataset: "file.csv",
        ImportedModelDataset: "file.safetensors",
        ImageFolderDataset: "folder/a/0.png",
        ModelDataset: "folder/recipe.json",
        ControllerDataset: "folder/recipe.json",
        CheckpointStoreDataset: "folder/run/run.json",
        TensorBoardDataset: "folder/run/events.out.1",
    }
    file = tmp_path / names.get(kind, "file")
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_bytes(b"\xff\xfe" + bytes(100))
    if kind is ControllerDataset:
        file.with_name("compression.json").write_text("{}")
    path = tmp_path / names.get(kind, "file").split("/")[0]
    dataset = kind(filepath=str(path), **arguments)
    if kind in (CheckpointStoreDataset, CertificateLedgerDataset, TensorBoardDataset):
        dataset.load()  # handles read nothing
    else:
        with pytest.raises((DatasetError, DataError), match=str(path)) as caught:
            dataset.load()[0]  # a folder of images reads each image when it is asked for
        assert our_error(caught.value) is not None
    if kind not in (CheckpointStoreDataset, TensorBoardDataset):  # they list names
        with pytest.raises(DataError, match=str(path)):
            dataset.preview()

"""Models and data of the user: models by import path, tables, and folders of images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from kedro.io import DatasetError
from PIL import Image
from safetensors.torch import save_file

from kedro_aat.datasets.images import ImageFolderDataset
from kedro_aat.datasets.imported import ImportedModelDataset
from kedro_aat.datasets.tabular import TableDataset
from kedro_aat.training.data import as_dataset, data_fingerprint, example_input
from tests.nets import NeedsArguments

ARGUMENTS: dict[str, Any] = {"num_inputs": 3, "num_outputs": 2, "bias": False}


def _table(folder: Path, columns: dict[str, list[object]] | None = None, name: str = "table.csv") -> Path:
    defaults: dict[str, list[object]] = {"width": [1, 2, 3], "kind": [0, 1, 0], "height": [0.5, 1.5, 2.5]}
    frame = pd.DataFrame(defaults | (columns or {}))
    path = folder / name
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_table(name: str, tmp_path: Path) -> None:
    path = _table(tmp_path, name=name)
    data = TableDataset(filepath=str(path), target="kind").load()
    torch.testing.assert_close(data["inputs"], torch.tensor([[1, 0.5], [2, 1.5], [3, 2.5]]))
    assert data["targets"].tolist() == [0, 1, 0]
    assert data["targets"].dtype == torch.int64
    assert example_input(data).shape == (2, 2)
    other = TableDataset(filepath=str(path), target="height", columns=["kind", "width"]).load()
    assert other["inputs"].tolist() == [[0, 1], [1, 2], [0, 3]]
    assert other["targets"].dtype == torch.float32


def test_texts_are_classes_in_the_order_of_the_entry(tmp_path: Path) -> None:
    path = _table(tmp_path, {"kind": ["pear", "apple", "pear"]})
    data = TableDataset(filepath=str(path), target="kind", classes=["pear", "apple"]).load()
    assert data["targets"].tolist() == [0, 1, 0]
    with pytest.raises(DatasetError, match="List them in order under `classes`"):
        TableDataset(filepath=str(path), target="kind").load()
    with pytest.raises(DatasetError, match="contains pear, which is not among `classes`"):
        TableDataset(filepath=str(path), target="kind", classes=["apple", "plum"]).load()


@pytest.mark.parametrize(
    ("columns", "target", "words"),
    [
        ({}, "kid", "has no column kid; it has width, kind, height"),
        ({"width": [1, None, 3]}, "kind", "has empty or infinite cells in width"),
        ({"width": [1, float("inf"), 3]}, "kind", "has empty or infinite cells in width"),
        ({"width": ["a", "b", "c"]}, "kind", "has texts in width"),
    ],
)
def test_mistakes_in_a_table(columns: dict[str, list[object]], target: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=words):
        TableDataset(filepath=str(_table(tmp_path, columns)), target=target).load()


def test_a_target_cannot_be_an_input(tmp_path: Path) -> None:
    path = str(_table(tmp_path))
    with pytest.raises(DatasetError, match="kind is both the target and an input"):
        TableDataset(filepath=path, target="kind", columns=["width", "kind"]).load()
    with pytest.raises(DatasetError, match="no columns besides kind"):
        TableDataset(filepath=path, target="kind", columns=[]).load()


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_table_without_rows(name: str, tmp_path: Path) -> None:
    path = _table(tmp_path, {"width": [], "kind": [], "height": []}, name=name)
    dataset = TableDataset(filepath=str(path), target="kind")
    with pytest.raises(DatasetError, match="has no rows"):
        dataset.load()
    shown = dataset.preview()
    assert shown is not None
    assert shown["columns"] == ["width", "kind", "height"]
    assert shown["data"] == []


def test_table_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a table must be a \.csv or \.parquet file"):
        TableDataset(filepath=str(tmp_path / "table.xlsx"), target="kind").load()


def _image(path: Path, color: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), color).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    _image(folder / "cats" / "b.png", (255, 0, 0))
    _image(folder / "cats" / "a.JPEG", (0, 0, 0))
    _image(folder / "birds" / "deeper" / "c.jpg", (255, 255, 255))
    (folder / "birds" / "notes.txt").write_text("not an image")
    return folder


def test_images_are_read_in_a_fixed_order_and_scaled(images: Path) -> None:
    data = ImageFolderDataset(filepath=str(images), size=[2, 3]).load()
    assert [(path.name, label) for path, label in data.files] == [("c.jpg", 0), ("a.JPEG", 1), ("b.png", 1)]
    white, red = data[0][0], data[2][0]
    assert white.shape == (3, 2, 3)
    assert white.dtype == torch.float32
    torch.testing.assert_close(white, torch.ones(3, 2, 3))
    torch.testing.assert_close(red, torch.tensor([1.0, 0, 0]).reshape(3, 1, 1).expand(3, 2, 3))
    gray = ImageFolderDataset(filepath=str(images), size=2, channels=1).load()
    assert gray[0][0].shape == (1, 2, 2)
    assert example_input(as_dataset(data, "training")).shape == (2, 3, 2, 3)
    assert data_fingerprint(data) == data_fingerprint(ImageFolderDataset(filepath=str(images), size=[2, 3]).load())
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=3)))
    assert batch[1].tolist() == [0, 1, 1]


def test_16_bit_grayscale_is_not_clipped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.array([[0, 256 * 51], [256 * 102, 65535]], np.uint16)).save(tmp_path / "a" / "deep.png")
    image, _ = ImageFolderDataset(filepath=str(tmp_path), size=2, channels=1).load()[0]
    torch.testing.assert_close(image, torch.tensor([[[0.0, 0.2], [0.4, 1.0]]]))


def test_hidden_copies_are_not_examples(images: Path) -> None:
    dataset = ImageFolderDataset(filepath=str(images), size=8)
    before = len(dataset.load())
    folder = next(path for path in images.iterdir() if path.is_dir())
    (folder / ".ipynb_checkpoints").mkdir()
    Image.new("L", (4, 4)).save(folder / ".ipynb_checkpoints" / "one-checkpoint.png")
    (folder / "._one.png").write_bytes(b"what macOS writes on other systems' disks")
    assert len(dataset.load()) == before


def test_a_split_that_lacks_a_class_keeps_the_numbers_of_the_others(images: Path) -> None:
    data = ImageFolderDataset(filepath=str(images), size=2, classes=["ants", "birds", "cats"]).load()
    assert {label for _, label in data.files} == {1, 2}
    with pytest.raises(DatasetError, match="not among `classes`: cats"):
        ImageFolderDataset(filepath=str(images), size=2, classes=["birds"]).load()


def test_mistakes_in_images(images: Path, tmp_path: Path) -> None:
    (images / "cats" / "b.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        ImageFolderDataset(filepath=str(images), size=2).load()[2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="contains no images: create one folder per class in it"):
        ImageFolderDataset(filepath=str(tmp_path / "empty"), size=2).load()
    with pytest.raises(DatasetError, match="channels must be 1"):
        ImageFolderDataset(filepath=str(images), size=2, channels=4)
    with pytest.raises(DatasetError, match="size must be one number of pixels"):
        ImageFolderDataset(filepath=str(images), size=[2, 3, 4])


def test_missing_pillow_is_one_clear_error(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageFolderDataset(filepath=str(images), size=2).load()
    monkeypatch.setitem(sys.modules, "PIL", None)
    message = r"Pillow cannot be imported \(.*\); install it with `pip install pillow`\."
    with pytest.raises(DatasetError, match=message):
        ImageFolderDataset(filepath=str(images), size=2)
    with pytest.raises(DatasetError, match=message):
        data[0]


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_model_by_import_path(name: str, tmp_path: Path) -> None:
    module = NeedsArguments(**ARGUMENTS)
    if name.endswith(".pt"):
        torch.save(module.state_dict(), tmp_path / name)
    else:
        save_file(module.state_dict(), tmp_path / name)
    dataset = ImportedModelDataset(
        class_path="tests.nets.NeedsArguments", init_args=ARGUMENTS, filepath=str(tmp_path / name)
    )
    assert dataset.exists()
    assert not dataset.lookup_mistakes("model")
    loaded = dataset.load()
    assert not loaded.training
    for key, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


def test_weights_in_a_larger_checkpoint(tmp_path: Path) -> None:
    module = NeedsArguments(**ARGUMENTS)
    state = {f"model.{key}": tensor for key, tensor in module.state_dict().items()} | {"loss.weight": torch.ones(1)}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "last.ckpt")
    entry: dict[str, Any] = {
        "class_path": "tests.nets.NeedsArguments",
        "init_args": ARGUMENTS,
        "filepath": str(tmp_path / "last.ckpt"),
    }
    loaded = ImportedModelDataset(**entry, key="state_dict", prefix="model.").load()
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in module.state_dict().items())
    with pytest.raises(DatasetError, match=r"its keys \(epoch, state_dict\): set key: state_dict in"):
        ImportedModelDataset(**entry).load()
    with pytest.raises(DatasetError, match="has no key 'model'; it has epoch, state_dict"):
        ImportedModelDataset(**entry, key="model").load()
    with pytest.raises(DatasetError, match=r"does not match tests\.nets"):
        ImportedModelDataset(**entry, key="state_dict").load()


def test_a_pickled_module_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(NeedsArguments(**ARGUMENTS), tmp_path / "whole.pt")
    dataset = ImportedModelDataset(
        class_path="tests.nets.NeedsArguments", init_args=ARGUMENTS, filepath=str(tmp_path / "whole.pt")
    )
    with pytest.raises(DatasetError, match=r"is not unpickled. Save only the weights"):
        dataset.load()
    torch.save(np.float64(1).item(), tmp_path / "number.pt")
    with pytest.raises(DatasetError, match="must contain a state dict, but contains a float"):
        ImportedModelDataset(
            class_path="tests.nets.NeedsArguments", init_args=ARGUMENTS, filepath=str(tmp_path / "number.pt")
        ).load()


def test_a_folder_of_images_is_read_only() -> None:
    with pytest.raises(DatasetError, match="is read-only"):
        ImageFolderDataset(filepath="images", size=2).save(torch.nn.Identity())  # type: ignore[arg-type]

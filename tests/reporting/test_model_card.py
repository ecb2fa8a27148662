"""The model card: what the file takes and returns, and an example that runs."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from kedro_aat.datasets.images import ImageFolderDataset
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.settings import ExportSettings
from kedro_aat.reporting.model_card import About, model_card
from kedro_aat.training.class_names import class_names_of
from tests.export.structured import CASES
from tests.projects import Project
from tests.reporting.runs import changed, onnx_model, summary_of


@pytest.mark.parametrize("name", ["mask", "states", "heads", "mapping"])
def test_the_example_of_a_card_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    kind, inputs, given, returned = CASES[name]
    file = to_onnx(kind(), inputs)
    card = model_card(summary_of("within_budget"), file, "model.onnx")
    assert all(f"`{tensor}`" in card for tensor in (*given, *returned))
    assert "| format | ONNX, opset 18, IR version 8 |" in card
    assert "| runtime | onnxruntime 1.15 and later |" in card

    onnx.save(file, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)  # which also compares the outputs with those in the card
    assert list(found["outputs"]) == returned
    assert code.count("assert_allclose") == len(returned)


def about(loss: str | None = None, **export: Any) -> About:
    return About(ExportSettings.model_validate(export), loss)


def card_of(given: About | None = None, **changes: Any) -> str:
    return model_card(changed(summary_of("within_budget"), **changes), onnx_model(), "model.onnx", given)


def test_example_fails_for_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card_of(), re.DOTALL)
    onnx.save(onnx_model(), "model.onnx")
    exec(code, {})
    other = onnx.ModelProto()
    other.CopyFrom(onnx_model())
    weights = onnx.numpy_helper.to_array(other.graph.initializer[0])
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights + 1, other.graph.initializer[0].name))
    onnx.save(other, "model.onnx")
    with pytest.raises(AssertionError):
        exec(code, {})


def test_file_is_identified() -> None:
    content = onnx_model().SerializeToString()
    card = card_of(about(card={"license": "Apache-2.0"}))
    assert f"`model.onnx`, {len(content):,} bytes" in card
    assert hashlib.sha256(content).hexdigest() in card
    assert "| license | Apache-2.0 |" in card
    assert "| license | not stated (export.card.license) |" in card_of()


def test_checksum_is_that_of_the_written_file(finished: Project) -> None:
    folder = finished.folder / "data/06_models"
    checksum = hashlib.sha256((folder / "compressed_model.onnx").read_bytes()).hexdigest()
    assert checksum in (folder / "compressed_model.md").read_text()
    assert not list(folder.glob("*.not_exported.txt"))  # OpenVINO's files and those for raw numbers are not asked for


def test_meaning_of_inputs_and_outputs() -> None:
    own = card_of(about(card={"meanings": {"input": "three numbers | in meters", "output": "<b>scores</b>"}}))
    assert "| input | `input` | batch x 3 | float32 | three numbers \\| in meters |" in own
    assert "&lt;b>scores" in own
    by_loss = card_of(about("torch.nn.CrossEntropyLoss"))
    assert "logits, one per class along axis 1; their softmax gives probabilities" in by_loss
    assert "the sigmoid of each gives a probability" in card_of(about("torch.nn.BCEWithLogitsLoss"))
    assert "softmax" not in card_of(about("project.losses.Own"))
    assert "`batch` (one row for each example)" in own


def test_names_of_classes() -> None:
    assert "Classes: 0 cat, 1 dog." in card_of(class_names=("cat", "dog"))
    assert "Classes: 0 yes, 1 no." in card_of(about(card={"class_names": ["yes", "no"]}), class_names=("cat", "dog"))
    assert "No output has 3 numbers" in card_of(class_names=("cat", "dog", "cow"))
    assert "Classes:" not in card_of()


def test_preprocessing_is_described() -> None:
    assert "Not declared (export.preprocessing)" in card_of()
    scaling = {"raw_type": "uint8", "scale": 0.5, "mean": [0.1, 0.2, 0.3], "std": 2.0}
    given = about(preprocessing={"text": "RGB <3>", "inputs": {"input": scaling}})
    card = card_of(given)
    assert "RGB &lt;3>" in card
    assert "`input` = (raw (uint8) * 0.5 - [0.1, 0.2, 0.3]) / 2, where lists have a number" in card
    assert "takes the raw numbers as `raw_input`" in card_of(given._replace(raw_file="raw.onnx"))


class Named(torch.utils.data.Dataset[int]):
    """A dataset that knows its classes, as torchvision's do."""

    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return index


def test_class_names_of_a_dataset_and_of_what_wraps_it() -> None:
    named = Named()
    subset = torch.utils.data.Subset(torch.utils.data.Subset(named, [0, 1]), [0])
    for data in (named, subset, torch.utils.data.DataLoader(subset)):
        assert class_names_of(data) == ("cat", "dog")
    assert class_names_of({"inputs": torch.zeros(2, 3)}) is None
    assert class_names_of(torch.utils.data.TensorDataset(torch.zeros(2))) is None


def test_class_names_of_a_folder_of_images(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        pillow.new("L", (4, 4)).save(tmp_path / name / "1.png")
    assert class_names_of(ImageFolderDataset(filepath=str(tmp_path), size=4, channels=1).load()) == ("cat", "dog")

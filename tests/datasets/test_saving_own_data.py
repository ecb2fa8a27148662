"""A node of the user's writes the splits and the baseline: what `save` takes, `load` gives back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from kedro.io import DatasetError
from torch import Tensor, nn

from kedro_aat.datasets.imported import ImportedModelDataset
from kedro_aat.datasets.tabular import TableDataset
from kedro_aat.training.data import as_dataset
from tests.nets import NeedsArguments

ARGUMENTS: dict[str, Any] = {"num_inputs": 3, "num_outputs": 2, "bias": False}
SUFFIXES = st.sampled_from([".csv", ".parquet"])


def _floats(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    elements = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return arrays.arrays(np.float32, shape, elements=elements)


@st.composite
def splits(draw: st.DrawFn) -> dict[str, Any]:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    labels = arrays.arrays(np.int64, (rows,))
    split = {"inputs": draw(_floats((rows, columns))), "targets": draw(st.one_of(labels, _floats((rows,))))}
    return {name: torch.from_numpy(array) for name, array in split.items()} if draw(st.booleans()) else split


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(split=splits(), suffix=SUFFIXES, is_named=st.booleans())
def test_what_a_table_takes_it_gives_back(split: dict[str, Any], suffix: str, is_named: bool, tmp_path: Path) -> None:
    columns = [f"column {number}" for number in range(split["inputs"].shape[1])] if is_named else None
    dataset = TableDataset(filepath=str(tmp_path / f"train{suffix}"), target="input_0", columns=columns)
    dataset.save(split)
    loaded = dataset.load()
    assert loaded.keys() == split.keys()
    for name, values in loaded.items():
        expected = torch.as_tensor(split[name])
        assert values.dtype == expected.dtype
        assert torch.equal(values, expected)
    dataset.save(loaded)
    assert all(torch.equal(values, loaded[name]) for name, values in dataset.load().items())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_names_and_texts_of_the_entry_are_in_the_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / f"train{suffix}"
    dataset = TableDataset(filepath=str(path), target="kind", columns=["width", "height"], classes=["pear", "apple"])
    dataset.save({"inputs": np.array([[1, 0.5], [2, 1.5]]), "targets": np.array([1, 0], np.int8)})
    frame = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    assert frame.to_dict("list") == {"width": [1, 2], "height": [0.5, 1.5], "kind": ["apple", "pear"]}
    assert dataset.load()["targets"].tolist() == [1, 0]
    assert len(as_dataset(dataset.load(), "training")) == 2
    shown = dataset.preview()
    assert shown is not None
    assert shown["columns"] == ["width", "height", "kind"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pd.DataFrame({"a": [1.0], "kind": [0]}), "but got a DataFrame. From a DataFrame, return {'inputs': frame["),
        ({"inputs": np.zeros((2, 2))}, "takes inputs and targets, but got inputs"),
        ({"inputs": np.zeros((2, 2)), "targets": ["a", "b"]}, "targets must be a tensor or an array of numbers"),
        ({"inputs": np.array([["a", "b"]]), "targets": np.zeros(1)}, "but got an array of <U1"),
        ({"inputs": torch.zeros(2, 2), "targets": torch.zeros(3)}, "inputs are (2, 2) and targets (3,)"),
        ({"inputs": torch.zeros(2, 2, 2), "targets": torch.zeros(2)}, "inputs are (2, 2, 2) and targets (2,)"),
        ({"inputs": torch.zeros(2, 2), "targets": torch.zeros(2, 1)}, "inputs are (2, 2) and targets (2, 1)"),
        ({"inputs": torch.zeros(0, 2), "targets": torch.zeros(0)}, "with at least one row and one column"),
        ({"inputs": torch.zeros(2, 3), "targets": torch.zeros(2)}, "inputs have 3 columns, but `columns` of the"),
        ({"inputs": np.array([[1.0, np.nan]]), "targets": np.zeros(1, int)}, "1 inputs for"),
        ({"inputs": np.array([[1.0, 1e300]]), "targets": np.zeros(1, int)}, "are NaN or beyond float32"),
        ({"inputs": torch.zeros(2, 2), "targets": torch.zeros(2)}, "targets must be whole numbers"),
        ({"inputs": torch.zeros(3, 2), "targets": torch.tensor([-1, 0, 2])}, "2 targets for"),
    ],
)
def test_what_a_table_would_not_give_back_is_refused(data: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("old")
    dataset = TableDataset(filepath=str(path), target="kind", columns=["a", "b"], classes=["x", "y"])
    with pytest.raises(DatasetError, match=re.escape(words)):
        dataset.save(data)
    assert path.read_text() == "old"


@pytest.mark.parametrize("texts", [["NA", "EU"], ["01", "02"], ["a", "a"]])
def test_texts_that_a_csv_file_changes_are_refused(texts: list[str], tmp_path: Path) -> None:
    split = {"inputs": torch.zeros(2, 1), "targets": torch.tensor([0, 1])}
    with pytest.raises(DatasetError, match="the table would not be read as it is written"):
        TableDataset(filepath=str(tmp_path / "train.csv"), target="kind", classes=texts).save(split)
    assert not list(tmp_path.iterdir())
    if len(set(texts)) == 2:
        dataset = TableDataset(filepath=str(tmp_path / "train.parquet"), target="kind", classes=texts)
        dataset.save(split)
        assert dataset.load()["targets"].tolist() == [0, 1]


def test_a_table_that_could_not_be_saved_is_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, words in (("train.xlsx", r"must be a \.csv or \.parquet file"), ("folder.csv", "is a folder")):
        dataset = TableDataset(filepath=str(tmp_path / name), target="kind")
        (mistake,) = dataset.save_mistakes("train_data")
        assert re.match(rf"train_data: .*{words}", mistake)
        with pytest.raises(DatasetError, match=words):
            dataset.save({"inputs": torch.zeros(2, 1), "targets": torch.zeros(2)})


def _entry(path: Path | None, **more: Any) -> ImportedModelDataset:
    where = None if path is None else str(path)
    return ImportedModelDataset(class_path="tests.nets.NeedsArguments", init_args=ARGUMENTS, filepath=where, **more)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("weights.safetensors", {}),
        ("weights.safetensors", {"prefix": "model."}),
        ("weights.pt", {}),
        ("last.ckpt", {"key": "state_dict", "prefix": "model."}),
    ],
)
def test_what_a_model_entry_takes_it_gives_back(name: str, more: dict[str, str], tmp_path: Path) -> None:
    dataset = _entry(tmp_path / "new folder" / name, **more)
    module = NeedsArguments(**ARGUMENTS)
    before = torch.get_rng_state()
    dataset.save(module)
    assert torch.equal(torch.get_rng_state(), before)  # later nodes draw the same numbers
    loaded = dataset.load()
    assert loaded.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert [row[0] for row in dataset.preview()["data"]]
    dataset.save(loaded)


class WithState(nn.Module):
    """Has tied weights, and a state that is no tensor."""

    def __init__(self, state: object = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def test_state_beside_the_tensors(tmp_path: Path) -> None:
    dataset = ImportedModelDataset(class_path=f"{__name__}.WithState", filepath=str(tmp_path / "weights.pt"))
    dataset.save(WithState({"step": 3}))
    loaded = dataset.load()
    assert isinstance(loaded, WithState)
    assert loaded.state == {"step": 3}
    assert loaded.first.weight is loaded.second.weight
    with pytest.raises(DatasetError, match="more than tensors and plain values"):
        dataset.save(WithState(Path("code")))
    assert loaded.state == dataset.load().state  # the file is the old one
    with pytest.raises(DatasetError, match="must be a tensor"):
        ImportedModelDataset(class_path=f"{__name__}.WithState", filepath=str(tmp_path / "w.safetensors")).save(
            WithState({"step": 3})
        )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Linear(3, 2), r"This Linear does not fit tests\.nets\.NeedsArguments"),
        (lambda: NeedsArguments(4, 2, bias=False), "size mismatch"),
        (lambda: NeedsArguments(**ARGUMENTS).double(), r"is float64, but tests\.nets\.NeedsArguments has float32"),
        (lambda: {"weight": torch.zeros(2)}, "takes a module that fits .* but got a dict"),
    ],
)
def test_a_model_that_would_not_be_given_back_is_refused(make: Callable[[], Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_text("old")
    with pytest.raises(DatasetError, match=words):
        _entry(path).save(make())
    assert path.read_text() == "old"


def test_a_model_that_could_not_be_saved_is_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    for dataset, words in (
        (_entry(None), "no filepath says where"),
        (_entry(tmp_path / "folder.pt"), "is a folder"),
        (_entry(tmp_path / "weights.safetensors", key="state_dict"), "cannot have the key 'state_dict'"),
    ):
        (mistake,) = dataset.save_mistakes("baseline_model")
        assert mistake.startswith("baseline_model: ")
        assert words in mistake
        with pytest.raises(DatasetError, match=words):
            dataset.save(NeedsArguments(**ARGUMENTS))
    (mistake,) = ImportedModelDataset(class_path="tests.nets.Missing", filepath="m.pt").save_mistakes("baseline_model")
    assert "Missing" in mistake


def test_tensors_with_gradients_and_truth_values_are_saved(tmp_path: Path) -> None:
    inputs: Tensor = torch.zeros(2, 1, requires_grad=True)
    dataset = TableDataset(filepath=str(tmp_path / "train.csv"), target="kind")
    dataset.save({"inputs": inputs, "targets": torch.tensor([True, False])})
    assert dataset.load()["targets"].tolist() == [1, 0]

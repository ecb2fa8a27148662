"""What identifies data: all examples of any dataset, its files, or what its author says."""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from kedro_aat.datasets.images import ImageFolderDataset
from kedro_aat.errors import DataError
from kedro_aat.tensors import hash_file
from kedro_aat.training import data
from kedro_aat.training.data import data_fingerprint
from kedro_aat.training.fingerprints import contents

NUM_EXAMPLES = 1600


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    data._KNOWN.clear()
    data._warn_that_they_differ.cache_clear()
    contents._FILES.clear()


class Listed(Dataset[Any]):
    """A dataset of examples in a list, which counts how often one is read."""

    num_read = 0

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        Listed.num_read += 1
        return self.examples[index]


class Hidden(Listed):
    """Keeps its examples in a private attribute."""

    def __init__(self, examples: list[Any]) -> None:
        super().__init__(examples)
        self._kept = examples
        del self.examples

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Any:
        Listed.num_read += 1
        return self._kept[index]


def pairs(labels: torch.Tensor) -> list[Any]:
    return [(torch.full((2,), index), label) for index, label in enumerate(labels.tolist())]


@pytest.mark.parametrize("kind", [Listed, Hidden])
def test_changed_labels_are_noticed(kind: type[Listed]) -> None:
    labels = torch.arange(NUM_EXAMPLES) % 4
    changed = (labels + 1) % 4
    changed[:: NUM_EXAMPLES // 16] = labels[:: NUM_EXAMPLES // 16]  # 1,584 of 1,600
    assert int((changed != labels).sum()) == 1584
    assert data_fingerprint(kind(pairs(labels))) == data_fingerprint(kind(pairs(labels)))
    assert data_fingerprint(kind(pairs(labels))) != data_fingerprint(kind(pairs(changed)))


def image(value: int) -> Image.Image:
    return Image.new("L", (3, 3), value)


EXAMPLES: dict[str, Callable[[int], Any]] = {
    "tensors": lambda value: (torch.ones(2), torch.tensor(value)),
    "half": lambda value: (torch.full((2,), value, dtype=torch.bfloat16), 0),
    "sparse": lambda value: (torch.tensor([0, value]).to_sparse(), 0),
    "arrays": lambda value: (np.ones(3), np.int64(value)),
    "transposed": lambda value: (np.arange(value, value + 6).reshape(2, 3).T, 0),
    "numbers": lambda value: (1.0, value),
    "texts": lambda value: ("a", str(value)),
    "images": lambda value: (image(value), 0),
    "dictionaries": lambda value: {"input_ids": torch.ones(2), "labels": [value]},
    "nested": lambda value: ((torch.ones(1), {"mask": torch.ones(1)}), (0, (value, None))),
    "objects": lambda value: (np.array(["a", value], dtype=object), 0),
    "tables": lambda value: (pd.DataFrame({"a": [value]}), 0),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_of_any_kind(kind: str) -> None:
    make, size = EXAMPLES[kind], 40
    examples = [make(1) for _ in range(size)]
    other = [*examples[:-1], make(2)]
    assert data_fingerprint(Hidden(examples)) == data_fingerprint(Hidden([make(1) for _ in range(size)]))
    assert data_fingerprint(Hidden(examples)) != data_fingerprint(Hidden(other))


def test_what_looks_alike_is_not_the_same() -> None:
    examples = [[1], [1.0], ["1"], [True], [None], [(1, 2), 3], [1, (2, 3)], [torch.ones(2, 1)], [torch.ones(1, 2)]]
    assert len({data_fingerprint(Hidden([each])) for each in examples}) == len(examples)


def test_a_part_of_tensors_is_its_own_examples_alone() -> None:
    inputs, targets = torch.rand(20, 2), torch.arange(20)
    part = Subset(TensorDataset(inputs, targets), [3, 5])
    assert data_fingerprint(part) == data_fingerprint({"inputs": inputs[[3, 5]], "targets": targets[[3, 5]]})
    assert data_fingerprint(Subset(Hidden(pairs(targets)), [3, 5])) != data_fingerprint(
        Subset(Hidden(pairs(targets)), [3, 6])
    )


def test_examples_are_read_once_in_a_process() -> None:
    original = Listed(pairs(torch.arange(NUM_EXAMPLES)))
    before = Listed.num_read
    data_fingerprint(original)
    assert Listed.num_read - before >= NUM_EXAMPLES
    before = Listed.num_read
    copied = copy.deepcopy(original)  # as Kedro does between nodes
    assert data_fingerprint(copied) == data_fingerprint(original)
    assert Listed.num_read - before < 100
    original.examples[7] = (torch.zeros(2), 9)
    assert data_fingerprint(copied) != data_fingerprint(original)


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    class Rows(Hidden):
        def __init__(self, path: Path) -> None:
            super().__init__([(float(row), 0) for row in path.read_text().split()])
            self.path = path

    path = tmp_path / "rows.txt"
    path.write_text(" ".join(["1"] * 100))
    before = data_fingerprint(Rows(path))
    path.write_text(" ".join(["1"] * 99 + ["2"]))
    os.utime(path, ns=(1, 1))
    assert data_fingerprint(Rows(path)) != before


def test_no_example_is_kept() -> None:
    class Large:
        def __len__(self) -> int:
            return 300

        def __getitem__(self, index: int) -> Any:
            return np.full(100_000, index % 256, dtype=np.uint8), 0

    tracemalloc.start()
    data_fingerprint(Large())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15e6  # of 30 MB; two samples of 18 examples are compared


def test_reading_leaves_random_numbers_as_they_were() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    data_fingerprint(Listed(pairs(torch.arange(40))))
    assert torch.equal(torch.rand(1), expected)


def test_a_long_reading_is_announced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(data, "NOTEWORTHY_SECONDS", 0.0)
    data_fingerprint(Listed(pairs(torch.arange(40))))
    assert "Reading all 40 examples once" in caplog.text
    assert "`fingerprint`" in caplog.text


# --- what its author says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_method", [True, False], ids=["method", "attribute"])
def test_a_fingerprint_of_the_users_is_taken_instead(is_method: bool) -> None:
    class Stated(Listed):
        def __init__(self, examples: list[Any], version: Any) -> None:
            super().__init__(examples)
            self.fingerprint = (lambda: version) if is_method else version

    before = Listed.num_read
    first, same, other = Stated([1, 2], "v1"), Stated([3, 4], "v1"), Stated([1, 2], "v2")
    assert data_fingerprint(first) == data_fingerprint(same) != data_fingerprint(other)
    assert Listed.num_read == before
    assert data_fingerprint(Stated([1, 2, 3], "v1")) != data_fingerprint(first)
    with pytest.raises(DataError, match="must be text or a number, but got <object"):
        data_fingerprint(Stated([1], object()))


# --- examples that differ ---------------------------------------------------------------------------------------


class Noise:
    def __init__(self, scale: float) -> None:
        self._scale = scale

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x + self._scale * torch.rand(2)


class Augmented(Hidden):
    def __init__(self, labels: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__(pairs(labels))
        self.labels = labels
        self.noise = Noise(scale)
        self._cache: dict[int, Any] = {}

    def __getitem__(self, index: int) -> Any:
        x, label = super().__getitem__(index)
        self._cache[index] = label
        return self.noise(x), label


def test_random_augmentation_is_identified_by_source_and_arguments(caplog: pytest.LogCaptureFixture) -> None:
    labels = torch.arange(40) % 2
    first = Augmented(labels)
    before = data_fingerprint(first)
    assert data_fingerprint(first) == before == data_fingerprint(Augmented(labels))
    (warning,) = [record.message for record in caplog.records if "differ when they are read twice" in record.message]
    assert f"{__name__}.Augmented" in warning
    assert "`fingerprint`" in warning
    others = [Augmented(labels, scale=0.5), Augmented(labels.flip(0)), Augmented(labels[:39])]
    assert len({before, *map(data_fingerprint, others)}) == 4


def test_the_source_of_an_augmentation_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint_of(sign: str) -> str:
        folder = tmp_path / f"{len([*tmp_path.iterdir()])}"
        folder.mkdir()
        text = f"import torch\ndef shifted(x):\n    return x {sign} torch.rand(2)\n"
        (folder / "shifting.py").write_text(text)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            import shifting  # type: ignore[import-not-found]

        augmented = Augmented(torch.arange(40))
        augmented.noise = shifting.shifted
        del sys.modules["shifting"]
        return data_fingerprint(augmented)

    assert fingerprint_of("+") == fingerprint_of("+") != fingerprint_of("-")


# --- files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(40):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image(number).save(path)
    return tmp_path / "images"


def folder_of(path: Path, **options: Any) -> Any:
    return ImageFolderDataset(filepath=str(path), **({"size": 2, "channels": 1} | options)).load()


def test_contents_of_files_count_wherever_they_lie(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = data_fingerprint(folder_of(images))
    moved = images.rename(images.with_name("moved"))
    assert data_fingerprint(folder_of(moved)) == before
    assert data_fingerprint(folder_of(moved, size=3)) != before
    assert data_fingerprint(folder_of(moved, channels=3)) != before
    hashed: list[Path] = []
    monkeypatch.setattr(contents, "hash_file", hashed.append)
    data_fingerprint(folder_of(moved))
    assert not hashed  # they have the same size and time
    monkeypatch.undo()
    image(200).save(moved / "b" / "01.png")
    assert data_fingerprint(folder_of(moved)) != before


def test_hashes_of_files_are_kept_for_other_processes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in images.rglob("*.png"):
        os.utime(path, (1, 1))
    kept = tmp_path / "hashes.json"
    before = data_fingerprint(folder_of(images), kept)
    contents._FILES.clear()  # another process
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return hash_file(path)

    monkeypatch.setattr(contents, "hash_file", counted)
    assert data_fingerprint(folder_of(images), kept) == before
    assert not hashed
    for damaged in ("", "[]", '{"a": 1}', '{"a": [1, 2]}'):
        kept.write_text(damaged)
        contents._FILES.clear()
        assert data_fingerprint(folder_of(images), kept) == before
    image(200).save(images / "b" / "01.png")  # too lately for its hash to be kept
    assert data_fingerprint(folder_of(images), kept) != before
    assert len(hashed) == 4 * 40 + 1
    assert json.loads(kept.read_text())[str(images / "b" / "01.png")][1] == 10**9  # it changed too late to be kept
    assert data_fingerprint(folder_of(images), tmp_path / "no" / "such" / "folder.json") != before


def test_augmentation_of_files_needs_no_warning(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Samples:
        def __init__(self, scale: float) -> None:
            self.samples = [(str(path), 0) for path in sorted(images.rglob("*.png"))]
            self.noise = Noise(scale)

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, index: int) -> Any:
            return self.noise(torch.zeros(2)), self.samples[index][1]

    assert data_fingerprint(Samples(1)) == data_fingerprint(Samples(1)) != data_fingerprint(Samples(2))
    assert not caplog.records


def test_hashes_begin_with_those_of_the_first_versions() -> None:
    """Runs of these versions are recognized by them."""
    assert data_fingerprint(Hidden(pairs(torch.arange(40)))).startswith("40-")

"""No file of a run holds an example of the user's data."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch.export import Dim

from kedro_aat.export.program import to_program
from tests.leaks import MAX_PIXEL, Search, digits
from tests.pipelines.aat.conftest import Run
from tests.projects import Project

Images = NDArray[np.float32]
THE_DATA = {
    "data/01_raw/digits.csv",
    "data/05_model_input/test.safetensors",
    "data/05_model_input/train.safetensors",
    "data/05_model_input/validation.safetensors",
}


@pytest.fixture(scope="module")
def search() -> Search:
    return Search()


def with_images(project: Project, search: Search) -> set[str]:
    """Relative paths of the files in which the search finds an image."""
    files = [path for path in project.folder.rglob("*") if path.is_file()]
    return {path.relative_to(project.folder).as_posix() for path in files if search.finds(path.read_bytes())}


def test_only_the_data_itself_has_the_users_examples(finished: Project, search: Search) -> None:
    assert with_images(finished, search) == THE_DATA


def test_openvinos_files_have_none_of_them(restarted: Run, search: Search) -> None:
    pytest.importorskip("openvino")
    assert (restarted.project.models / "compressed_model.xml").exists()
    assert with_images(restarted.project, search) == THE_DATA


def as_old_program(images: Images) -> bytes:
    """What was written before: the program keeps the first two rows, whose storage is the whole batch."""
    inputs = torch.from_numpy(images)
    buffer = io.BytesIO()
    program = torch.export.export(torch.nn.Linear(64, 1), (inputs[:2],), dynamic_shapes=({0: Dim("batch")},))
    torch.export.save(program, buffer)
    return buffer.getvalue()


def as_npz(images: Images) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images)
    return buffer.getvalue()


WAYS: dict[str, Callable[[Images], bytes]] = {
    "array at any offset": lambda images: b"odd" + images.tobytes(),
    "float64": lambda images: images.astype("float64").tobytes(),
    "bytes": lambda images: (images * MAX_PIXEL).astype("uint8").tobytes(),
    "old program": as_old_program,
    "npz in gzip": lambda images: gzip.compress(as_npz(images)),
    "parquet": lambda images: pd.DataFrame(images.astype("float64")).rename(columns=str).to_parquet(),
    "JSON": lambda images: str(images.tolist()).encode(),
    "base64": lambda images: b'{"bdata":"' + base64.b64encode(images.tobytes()) + b'"}',
}


@pytest.mark.parametrize("way", WAYS)
def test_the_search_finds_a_single_example(way: str, search: Search) -> None:
    images = np.full((4, 64), 0.5, "float32")
    assert not search.finds(WAYS[way](images))
    images[3] = digits()[1000] / MAX_PIXEL
    assert search.finds(WAYS[way](images))


class Bag(torch.nn.Module):
    """Mean of embeddings: (B, T) of ids -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50_000, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embedding(ids).mean(1)  # type: ignore[no-any-return]


def test_a_program_for_ids_has_other_ids_and_runs_with_them(tmp_path: Path) -> None:
    ids = torch.randint(50_000, (64, 6), generator=torch.Generator().manual_seed(0))
    program = to_program(Bag(), ids)
    torch.export.save(program, tmp_path / "bag.pt2")
    file = (tmp_path / "bag.pt2").read_bytes()  # tensors are not compressed
    assert not any(row.numpy().tobytes() in file for row in ids.unfold(1, 2, 1).flatten(0, 1))
    loaded = torch.export.load(tmp_path / "bag.pt2")
    (inputs,), _ = loaded.example_inputs
    assert loaded.module()(inputs).shape == (2, 3)

"""What a run writes is looked at before the run: can it be written, and is it kept?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from kedro.io import AbstractDataset, DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro_datasets.json import JSONDataset

from kedro_aat.adoption.checks import data_mistakes
from kedro_aat.adoption.outputs import notes_on_memory, unreachable_outputs
from kedro_aat.datasets.handles import CheckpointStoreDataset
from kedro_aat.pipelines.aat import create_pipeline


def work(number: int, store: Any) -> dict[str, int]:
    return {"number": number}


PIPELINE = Pipeline([Node(work, ["number", "store"], "result")])


class Forbidden(AbstractDataset[Any, Any]):
    """A dataset in a store that refuses its credentials."""

    def load(self) -> Any:
        raise NotImplementedError

    def save(self, data: Any) -> None:
        raise NotImplementedError

    def _describe(self) -> dict[str, Any]:
        return {}

    def _exists(self) -> bool:
        raise PermissionError("InvalidAccessKeyId")


def _mistakes(result: Path, store: Path) -> list[str]:
    datasets = {
        "number": MemoryDataset(1),
        "store": CheckpointStoreDataset(filepath=str(store)),
        "result": JSONDataset(filepath=str(result)),
    }
    return data_mistakes(PIPELINE, DataCatalog(datasets))


def test_a_file_in_the_place_of_a_folder_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert _mistakes(tmp_path / "new/folder/result.json", tmp_path / "new/store") == []
    result, store = tmp_path / "taken/folder/result.json", tmp_path / "taken/store"
    assert _mistakes(result, store) == [
        f"{name}: {path} cannot be written, because {tmp_path / 'taken'} is a file; remove it, or correct the catalog "
        "entry"
        for name, path in (("result", result), ("store", store))
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_a_mistake(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "old.json").write_text("{}")
    closed.chmod(0o500)
    try:
        (mistake,) = _mistakes(closed / "result.json", tmp_path / "store")
        assert mistake.startswith(f"result: {closed / 'result.json'} cannot be written, because this user may not")
        assert _mistakes(closed / "old.json", tmp_path / "store") == []  # the file itself can be written to
    finally:
        closed.chmod(0o700)


def test_a_store_that_refuses_is_a_mistake(tmp_path: Path) -> None:
    catalog = DataCatalog({"number": MemoryDataset(1), "store": MemoryDataset(2), "result": Forbidden()})
    (mistake,) = unreachable_outputs(PIPELINE, catalog)
    assert mistake == "result: its place cannot be reached: InvalidAccessKeyId"
    assert (
        unreachable_outputs(PIPELINE, DataCatalog({"result": JSONDataset(filepath=str(tmp_path / "new.json"))})) == []
    )


def test_results_without_an_entry_are_noted(tmp_path: Path) -> None:
    pipeline = create_pipeline()
    outputs = sorted(pipeline.all_outputs())
    kept = {name: JSONDataset(filepath=str(tmp_path / name)) for name in outputs[2:]}
    (note,) = notes_on_memory(pipeline, DataCatalog(kept))
    assert note.startswith(f"2 of {len(outputs)} outputs have no catalog entry, so they stay in memory and are lost")
    assert f"{outputs[0]}, {outputs[1]}. `kedro aat init --upgrade`" in note
    (note,) = notes_on_memory(pipeline, DataCatalog({}))
    assert f"and {len(outputs) - 5} more." in note
    own = {name: MemoryDataset() for name in outputs[:2]}  # the user's choice
    assert list(notes_on_memory(pipeline, DataCatalog(kept | own))) == []

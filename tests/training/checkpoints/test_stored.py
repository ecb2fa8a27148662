"""The runs of a store: what they found, how they are told apart, and how they are removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kedro_aat.disk import hold
from kedro_aat.errors import CheckpointError, InterruptedRunError, MissingRunError
from kedro_aat.testing.store_saving import checkpoint
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.checkpoints.changes import changes_between
from kedro_aat.training.checkpoints.mirror import Mirror
from kedro_aat.training.checkpoints.stored import REMOVING, find_run, remove_run, stored_runs
from tests.training.checkpoints.small_search import search

SAVED = Path(__file__).parents[2] / "saved_by"
OLDER: dict[str, Any] = {"batch_size": 8}
NEWER: dict[str, Any] = {"batch_size": 4}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    for time, settings in ((1e9, OLDER), (2e9, NEWER)):
        for file in search(root, epochs=2, **settings).folder.rglob("state.json"):
            os.utime(file, (time, time))
    return root


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> CheckpointStore:
    shutil.copytree(filled, tmp_path / "store")
    return CheckpointStore(tmp_path / "store")


def test_what_a_run_found(store: CheckpointStore) -> None:
    newer, older = stored_runs(store)
    assert newer.settings["training"]["batch_size"] == 4
    ended = search(store.root, epochs=2, **OLDER)
    assert not ended.trained  # it is the finished run
    assert older.history == tuple(ended.result.history)
    assert older.best == ended.result.best
    assert older.is_finished
    assert older.stage == "1: magnitude_sparsity"
    assert older.epochs == 2


def test_an_unfinished_run_has_the_best_so_far(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(InterruptedRunError):
        search(tmp_path, epochs=4, stop_after=3)
    (run,) = stored_runs(store)
    assert not run.is_finished
    assert run.epochs >= 1


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_runs_of_earlier_versions(version: str) -> None:
    runs = stored_runs(CheckpointStore(SAVED / version / "checkpoints"))
    assert runs
    assert all(run.history and run.record.version.startswith(version) for run in runs)


def test_a_damaged_checkpoint_costs_its_epoch(store: CheckpointStore) -> None:
    (run, _) = stored_runs(store)
    last = sorted(run.record.folder.glob("checkpoint-*"))[-1]
    (last / "state.json").write_text("{")
    (again,) = (other for other in stored_runs(store) if other.name == run.name)
    assert 0 < len(again.history) < len(run.history)


def test_the_begin_of_a_name_is_enough(store: CheckpointStore) -> None:
    newer, older = stored_runs(store)
    assert find_run(store, newer.name[:6]).name == newer.name
    with pytest.raises(MissingRunError, match=f"no run {older.name}x, but these: {newer.name}, {older.name}"):
        find_run(store, f"{older.name}x")
    shutil.copytree(newer.record.folder, store.root / f"{newer.name}-2")
    assert find_run(store, newer.name).name == newer.name
    with pytest.raises(CheckpointError, match="2 runs begin with"):
        find_run(store, newer.name[:6])


def test_what_is_different(store: CheckpointStore) -> None:
    newer, older = stored_runs(store)
    assert changes_between(older.record, newer.record) == ["training.batch_size (8, now 4)"]
    assert changes_between(older.record, older.record) == []


def test_a_removed_run_is_gone_and_the_other_stays(store: CheckpointStore) -> None:
    newer, older = stored_runs(store)
    (store.root / f"{REMOVING}{newer.name}").mkdir()  # of a process that was killed
    remove_run(store, newer)
    assert [run.name for run in stored_runs(store)] == [older.name]
    assert not list(store.root.glob(f"{REMOVING}*"))
    assert search(store.root, epochs=2, **NEWER).trained


def test_a_run_whose_removal_was_cut_off_is_not_continued(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.open({"seed": 0}) as run:
        run.save(checkpoint(3))
    run.folder.rename(tmp_path / f"{REMOVING}{run.folder.name}")
    assert stored_runs(store) == []
    with store.open({"seed": 0}) as again:
        assert again.numbers == []
        again.save(checkpoint(0))
    assert again.folder == run.folder


def test_a_run_in_use_is_not_removed(store: CheckpointStore) -> None:
    (run, _) = stored_runs(store)
    folder = run.record.folder
    with hold(folder / ".lock", folder, wait=False), pytest.raises(CheckpointError, match="The run is not removed"):
        remove_run(store, run)
    assert len(stored_runs(store)) == 2


def test_a_run_is_removed_from_the_mirror_too(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Mirror("memory://stored/checkpoints"))
    for number in (0, 1):
        with store.open({"seed": number}) as run:
            run.save(checkpoint(3))
            run.finish()
    kept, removed = stored_runs(store)
    remove_run(store, removed)
    assert {path.partition("/")[0] for path in Mirror("memory://stored/checkpoints").files()} == {kept.name}

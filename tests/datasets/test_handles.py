"""Handles are loaded, write by themselves, and are not saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from kedro.io import DataCatalog, DatasetError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kedro_aat.datasets.handles import CertificateLedgerDataset, CheckpointStoreDataset, TensorBoardLog
from kedro_aat.errors import StorageError
from kedro_aat.testing.store_saving import checkpoint
from kedro_aat.training.checkpoints import CheckpointStore


def test_loaded_store_writes_by_itself(catalog: DataCatalog, tmp_path: Path) -> None:
    store = catalog.load("store")
    assert isinstance(store, CheckpointStore)
    assert not catalog.exists("store")
    with store.open({"seed": 0}) as run:
        run.save(checkpoint(3))
        assert run.folder.is_relative_to(tmp_path / "models" / "store")
    assert catalog.exists("store")
    with catalog.load("store").open({"seed": 0}) as run:
        assert run.numbers == [3]


def test_store_cannot_be_saved_as_a_whole(catalog: DataCatalog) -> None:
    with pytest.raises(DatasetError, match=r"store\.open\(identity\)\.save\(checkpoint\)"):
        catalog.save("store", catalog.load("store"))


def test_log_cannot_be_saved_as_a_whole(catalog: DataCatalog) -> None:
    with pytest.raises(DatasetError, match=r"log\.writer\(run\)"):
        catalog.save("tensorboard", catalog.load("tensorboard"))


def scalars(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("metric")]


def test_log_continues_after_a_killed_run(catalog: DataCatalog, tmp_path: Path) -> None:
    log = catalog.load("tensorboard")
    assert isinstance(log, TensorBoardLog)
    assert not catalog.exists("tensorboard")
    writer = log.writer("run-a")
    for epoch in range(5):
        writer.add_scalar("metric", epoch / 8, epoch)
    writer.flush()
    assert catalog.exists("tensorboard")
    folder = tmp_path / "models" / "tensorboard" / "run-a"
    assert scalars(folder) == [(epoch, epoch / 8) for epoch in range(5)]

    writer = log.writer("run-a", next_epoch=3)
    writer.add_scalar("metric", 1.0, 3)
    writer.close()
    assert scalars(folder) == [(0, 0.0), (1, 0.125), (2, 0.25), (3, 1.0)]


def test_store_exists_if_its_mirror_has_a_run(tmp_path: Path) -> None:
    def on_disk(name: str) -> CheckpointStoreDataset:
        return CheckpointStoreDataset(filepath=str(tmp_path / name), mirror="memory://handles/checkpoints")

    assert not on_disk("first").exists()
    with on_disk("first").load().open({"seed": 0}) as run:
        run.save(checkpoint(3))
        run.finish()
    assert on_disk("second").exists()
    assert not (tmp_path / "second").exists()


def test_store_is_on_this_machine() -> None:
    with pytest.raises(StorageError, match=r"memory://handles/store cannot be used, .*this address as `mirror`"):
        CheckpointStoreDataset(filepath="memory://handles/store")


def test_ledger_exists_once_it_has_an_entry(tmp_path: Path) -> None:
    ledger = CertificateLedgerDataset(filepath=str(tmp_path / "ledger.json"))
    assert not ledger.exists()
    ledger.load().claim("split", {})
    assert ledger.exists()

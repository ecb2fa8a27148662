"""How every checkpoint store bears a disk that refuses; a part of `stores.StoreContract`."""

from __future__ import annotations

import errno
import logging
import shutil

import pytest

from kedro_aat.errors import AatError, CheckpointError
from kedro_aat.testing.disk_faults import ERRORS, Disk, read_only, without_locks
from kedro_aat.testing.store_damage import DamageContract
from kedro_aat.testing.store_saving import IDENTITY, checkpoint
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.checkpoints import CheckpointStore


def write_a_run(store: CheckpointStore) -> None:
    """Saves checkpoints 0 to 2 in the background, or goes on with what is missing, and finishes."""
    with store.open(IDENTITY) as run:
        for number in range(max(run.numbers, default=-1) + 1, 3):
            run.save(checkpoint(number), keep={0, number - 1}, wait=False)
        run.finish()


class FaultContract(DamageContract):
    """A failing disk is one error of ours; what was saved stays, and the same call continues."""

    @pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
    def test_each_operation_may_fail_once(
        self, store: CheckpointStore, store_type: type[CheckpointStore], error: int
    ) -> None:
        counting = Disk()
        with counting.used():
            write_a_run(store)
        assert counting.count > 20
        for failing in range(counting.count):
            other = store_type(store.root.with_name(f"failing-{failing}"))
            with Disk(failing, error).used(), pytest.raises(AatError) as caught:
                write_a_run(other)
            assert str(other.root) in str(caught.value)
            with other.open(IDENTITY) as run:
                # The failure ends the run, and all that was complete before is still there.
                assert all(run.can_load(number) for number in run.numbers)
            write_a_run(other)
            with other.open(IDENTITY) as run:
                assert run.is_finished
                assert run.numbers == [0, 1, 2]
                for number in run.numbers:
                    assert_same_bits(run.load(number).model, checkpoint(number).model)

    def test_full_disk_says_how_much_is_missing(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            with Disk(1, errno.ENOSPC).used(), pytest.raises(CheckpointError) as caught:
                run.save(checkpoint(1))
            assert "checkpoint-000001" in str(caught.value)
            for part in ("the disk is full: ", " bytes are needed, and ", " are free. Make space"):
                assert part in str(caught.value)
            assert not list(run.folder.glob(".writing-*"))  # its space is free again
            run.save(checkpoint(1))
            assert run.numbers == [0, 1]

    def test_folder_that_is_removed_meanwhile_is_named(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            shutil.rmtree(store.root)
            with pytest.raises(CheckpointError, match="its folder was removed meanwhile") as caught:
                run.save(checkpoint(1))
            assert str(run.folder) in str(caught.value)
        write_a_run(store)

    def test_file_in_the_place_of_the_store_is_named(self, store: CheckpointStore) -> None:
        store.root.write_text("a file")
        with pytest.raises(CheckpointError, match=str(store.root)):
            store.open(IDENTITY)

    def test_finished_run_can_be_read_on_a_read_only_disk(self, store: CheckpointStore) -> None:
        write_a_run(store)
        with read_only():
            with store.open(IDENTITY) as run:
                latest = run.latest()
                assert latest is not None
                assert latest.number == 2
                run.finish()
                assert store.load(run.folder.name, 1).number == 1
                with pytest.raises(CheckpointError, match="the file system is read-only"):
                    run.save(checkpoint(3))
            with pytest.raises(CheckpointError, match="the file system is read-only"):
                store.open({"another": "run"})

    def test_run_that_has_not_finished_can_be_read_but_not_continued_on_a_read_only_disk(
        self, store: CheckpointStore
    ) -> None:
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
        with read_only(), store.open(IDENTITY) as run:
            assert not run.is_writable
            assert run.numbers == [0]
            with pytest.raises(CheckpointError, match="the file system is read-only"):
                run.require_writable()

    @pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL], ids=errno.errorcode.get)
    def test_one_process_works_without_locks(
        self, store: CheckpointStore, error: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        with without_locks(error), caplog.at_level(logging.WARNING):
            write_a_run(store)
        assert "this file system has no locks" in caplog.text
        with store.open(IDENTITY) as run:
            assert run.numbers == [0, 1, 2]

    def test_lock_that_fails_is_an_error(self, store: CheckpointStore) -> None:
        with without_locks(errno.EIO), pytest.raises(CheckpointError, match="the disk failed"):
            store.open(IDENTITY)

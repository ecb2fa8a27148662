"""How every checkpoint store survives damage and failures; a part of `stores.StoreContract`."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kedro_aat.errors import CheckpointError
from kedro_aat.testing.store_saving import DAMAGES, IDENTITY, SavingContract, checkpoint, files_of, truncate
from kedro_aat.training.checkpoints import CheckpointStore


class DamageContract(SavingContract):
    """Damaged checkpoints are skipped, and failed saves leave nothing behind."""

    # --- damage ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_checkpoint_is_skipped(
        self, store: CheckpointStore, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            run.save(checkpoint(1))
            num_files = len(files_of(run, 1))
            for index in range(num_files):
                run.save(checkpoint(1))
                path = files_of(run, 1)[index]
                DAMAGES[damage](path)
                with pytest.raises(CheckpointError):
                    run.load(1)
                with caplog.at_level(logging.WARNING):
                    latest = run.latest()
                assert latest is not None, path.name
                assert latest.number == 0, path.name
                assert str(path.parent) in caplog.messages[-1]

    def test_every_byte_of_a_checkpoint_counts(self, store: CheckpointStore) -> None:
        """Including the manifest, which has no checksum of its own."""
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            for path in files_of(run, 0):
                contents = path.read_bytes()
                for position in range(0, len(contents), max(1, len(contents) // 100)):
                    flipped = bytearray(contents)
                    flipped[position] ^= 1
                    path.write_bytes(flipped)
                    with pytest.raises(CheckpointError):
                        run.load(0)
                path.write_bytes(contents)
            assert run.load(0).number == 0

    def test_latest_skips_all_damaged_checkpoints(
        self, store: CheckpointStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        with store.open(IDENTITY) as run:
            for number in range(4):
                run.save(checkpoint(number))
            for number in (1, 2, 3):
                truncate(files_of(run, number)[0])
            latest = run.latest()
            assert latest is not None
            assert latest.number == 0
            assert len(caplog.messages) == 3
            truncate(files_of(run, 0)[0])
            assert run.latest() is None

    def test_run_replaces_a_damaged_checkpoint(self, store: CheckpointStore) -> None:
        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            run.save(checkpoint(1))
            truncate(files_of(run, 1)[-1])
        with store.open(IDENTITY) as run:
            run.save(checkpoint(1))
            latest = run.latest()
            assert latest is not None
            assert latest.number == 1

    def test_what_a_killed_process_was_writing_is_no_checkpoint(self, store: CheckpointStore) -> None:
        def killed_while_writing(folder: Path) -> None:
            (folder / "mine.bin").write_bytes(b"1")
            raise KeyboardInterrupt

        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            with pytest.raises(KeyboardInterrupt):
                run.save(checkpoint(1), killed_while_writing)
            assert run.numbers == [0]
        with store.open(IDENTITY) as run:
            assert not list(run.folder.rglob("mine.bin"))  # its file is removed
            assert run.numbers == [0]
            latest = run.latest()
            assert latest is not None
            assert latest.number == 0
            run.save(checkpoint(1))
            assert run.numbers == [0, 1]

    def test_failed_save_can_be_repeated(self, store: CheckpointStore) -> None:
        def fail(folder: Path) -> None:
            raise RuntimeError("no space left")

        with store.open(IDENTITY) as run:
            run.save(checkpoint(0))
            with pytest.raises(RuntimeError, match="no space left"):
                run.save(checkpoint(1), fail)
            run.save(checkpoint(1))
            assert run.load(1).number == 1

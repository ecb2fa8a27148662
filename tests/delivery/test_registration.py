"""What the checkpoint store remembers of a baseline in the ledger, if its file cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.delivery.registration import register
from kedro_aat.errors import CheckpointError, LostLedgerError
from kedro_aat.testing.training import small_net
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.checkpoints.mirror import Mirror


def test_a_file_that_the_disk_refuses_is_an_error_and_no_new_registration(tmp_path: Path) -> None:
    ledger, store = CertificateLedger(tmp_path / "ledger.json"), CheckpointStore(tmp_path / "store")
    net: nn.Module = small_net()
    register(ledger, store, net, "split")
    (file,) = store.root.glob("ledgers/*.json")
    file.unlink()
    file.mkdir()  # nobody can read it as a file, root neither
    ledger.path.unlink()
    with pytest.raises(CheckpointError, match=file.name):
        register(ledger, store, net, "split")
    assert not ledger.path.exists()


def test_a_damaged_file_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger, store = CertificateLedger(tmp_path / "ledger.json"), CheckpointStore(tmp_path / "store")
    net: nn.Module = small_net()
    before = register(ledger, store, net, "split")
    (file,) = store.root.glob("ledgers/*.json")
    contents = file.read_bytes()
    file.write_text("{")
    assert register(ledger, store, net, "split") == before
    assert "is written anew" in caplog.text
    assert file.read_bytes() == contents


def test_a_lost_ledger_names_the_copy_in_the_mirror_too(tmp_path: Path) -> None:
    """Otherwise what the message says to remove would be fetched again."""
    ledger, store = (
        CertificateLedger(tmp_path / "ledger.json"),
        CheckpointStore(tmp_path / "store", Mirror("memory://m")),
    )
    net: nn.Module = small_net()
    register(ledger, store, net, "split")
    (file,) = store.root.glob("ledgers/*.json")
    ledger.path.unlink()
    with pytest.raises(LostLedgerError) as caught:
        register(ledger, store, net, "split")
    assert f"remove {file}, and its copy memory://m/ledgers/{file.name} if it is there" in str(caught.value)

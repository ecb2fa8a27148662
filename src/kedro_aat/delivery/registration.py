"""Registers the baseline in the ledger before the search, so that a ledger that was lost is told from a new one.

The evaluation of the baseline carries its number from node to node. The checkpoint store remembers it, too, for the
next run: in `ledgers/`, a file for each ledger and baseline.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from torch import nn

from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.delivery.registration_result import Registration
from kedro_aat.disk import disk_errors
from kedro_aat.errors import LostLedgerError, StorageError
from kedro_aat.storage import is_local_path, replacing
from kedro_aat.tensors import hash_tensors
from kedro_aat.training.checkpoints import CheckpointStore

logger = logging.getLogger(__name__)

FOLDER = "ledgers"  # in the checkpoint store

_LOST = (
    "so the ledger was lost since, or is another one, and a test split could be used twice. Restore it, or name the "
    "right one as certificate_ledger in the catalog. If each node has a disk of its own, keep the ledger in an object "
    "store or a database, which all of them reach. If it is lost for good, use test examples that no model was ever "
    "tested on, and {way}."
)


def register(
    ledger: CertificateLedger | None, store: CheckpointStore | None, baseline: nn.Module, validation_data: str
) -> Registration | None:
    """Registers a baseline, and checks that the ledger is the one in which it was registered before.

    Args:
        ledger: The ledger; None registers nothing.
        store: Remembers the number of the baseline in this ledger; None remembers nothing.
        baseline: The uncompressed model.
        validation_data: Hash of the validation split.

    Raises:
        LostLedgerError: If the baseline was registered in a ledger at this place, which does not know it any more.
        DataError: If its entry is damaged.
        CheckpointError: If the ledger cannot be read or written, or the disk refuses what the store remembers.
    """
    if ledger is None:
        return None
    model = hash_tensors(baseline.state_dict().items())
    name = hashlib.blake2b(f"{model} {validation_data}".encode(), digest_size=16).hexdigest()
    file = None if store is None else _file(store, ledger, name)
    before, now = _read(file), ledger.registered(name)
    if before is not None and before.number != now:
        assert file is not None  # it was read
        assert store is not None
        copy = ""
        if store.mirror is not None:  # a copy there would be fetched again
            copy = f", and its copy {store.mirror.shown}/{FOLDER}/{file.name} if it is there"
        raise LostLedgerError(
            f"{ledger.place} does not know the baseline that runs of {file.parent.parent} registered in it, "
            + _LOST.format(way=f"remove {file}{copy}")
        )
    number = now or ledger.register(name, {"baseline": model, "validation_data": validation_data})
    registration = Registration(baseline=name, number=number, ledger=ledger.place)
    if file is not None and before is None:
        try:
            with replacing(file) as new:
                new.write_text(registration.model_dump_json())
        except StorageError as error:
            logger.warning(
                "%s cannot be written (%s); if the ledger is lost, the next run does not see it.", file, error
            )
    return registration


def require_registered(ledger: CertificateLedger, registration: Registration | None) -> None:
    """Checks that a ledger is the one in which the baseline was registered.

    Args:
        ledger: The ledger.
        registration: The baseline in the ledger; None if a version before 0.2.0 evaluated it.

    Raises:
        LostLedgerError: If it is not.
    """
    if registration is not None and ledger.registered(registration.baseline) != registration.number:
        raise LostLedgerError(
            f"{ledger.place} does not know the baseline that evaluate_baseline registered in {registration.ledger}, "
            + _LOST.format(way="run the pipeline from evaluate_baseline on")
        )


def _file(store: CheckpointStore, ledger: CertificateLedger, name: str) -> Path:
    """Two ledgers may know the same baseline, such as those of two namespaces."""
    place = os.path.relpath(ledger.path, store.root) if is_local_path(ledger.place) else ledger.place
    return store.root / FOLDER / f"{hashlib.sha256(f'{place} {name}'.encode()).hexdigest()[:16]}.json"


def _read(file: Path | None) -> Registration | None:
    if file is None or not file.exists():
        return None
    with disk_errors(file):
        contents = file.read_bytes()
    try:
        return Registration.model_validate_json(contents)
    except ValueError as error:
        logger.warning("%s cannot be read (%s), and is written anew.", file, error)
        return None

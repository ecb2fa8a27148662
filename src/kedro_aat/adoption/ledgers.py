"""Takes the entries of another ledger into the one of a job, when a project moves to an object store or a database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_aat.adoption.jobs import Job
from kedro_aat.errors import ConfigurationError

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol


def import_ledger(job: Job, catalog: CatalogProtocol[Any, Any], file: Path) -> str:
    """Adds the entries of a ledger in a file to the ledger of a job; those that it has stay.

    Args:
        job: The job.
        catalog: The project's catalog.
        file: The other ledger, which stays as it is.

    Returns:
        What was done, in words.

    Raises:
        ConfigurationError: If the file is not there, or is the ledger itself.
        DataError: If an entry is damaged.
        CheckpointError: If a disk, a store or a database cannot be used.
    """
    from kedro_aat.certificate.ledger import CertificateLedger, is_of_split

    name = job.dataset("certificate_ledger", "certify_model")
    ledger, other = catalog.load(name), CertificateLedger(file)
    if not file.exists():
        raise ConfigurationError("import-ledger", [f"{file}: not found; give the JSON file of the earlier ledger"])
    if ledger.place == other.place:
        raise ConfigurationError("import-ledger", [f"{file}: is the ledger of {name} itself; give another file"])
    entries, differing = ledger.take_over(other)
    words = f"{entries} {'entry' if entries == 1 else 'entries'} of {file} imported into {ledger.place}."
    if splits := [split for split in differing if is_of_split(split)]:
        words += (
            f" For {len(splits)} of them it has another model, and keeps that: {', '.join(splits)}. These test splits "
            "were read twice, so only what was certified first holds."
        )
    return words

"""`kedro aat import-ledger`: a ledger that moves from a file to a database keeps what it knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from kedro.io import DataCatalog

from kedro_aat.adoption.jobs import Job
from kedro_aat.adoption.ledgers import import_ledger
from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.errors import ConfigurationError
from kedro_aat.pipelines.aat import create_pipeline
from tests.projects import Project

JOB = Job.find("aat", {"aat": create_pipeline()})
LEDGER = "kedro_aat.datasets.handles.CertificateLedgerDataset"


def catalog_of(tmp_path: Path) -> DataCatalog:
    """A catalog as a project has it, with the URL of the database among its credentials."""
    credentials = {"database": {"con": f"sqlite:///{tmp_path}/ledger.db"}}
    return DataCatalog.from_config({"certificate_ledger": {"type": LEDGER, "credentials": "database"}}, credentials)


def old_ledger(tmp_path: Path) -> Path:
    file = tmp_path / "certificate_ledger.json"
    ledger = CertificateLedger(file)
    ledger.register("baseline", {})
    ledger.claim("split", {"model": "a"})
    ledger.record("split", {"p_value": 0.25})
    return file


def test_entries_are_imported(tmp_path: Path) -> None:
    file, catalog = old_ledger(tmp_path), catalog_of(tmp_path)
    before = file.read_bytes()
    for _ in range(2):
        words = import_ledger(JOB, catalog, file)
        assert words == f"2 entries of {file} imported into sqlite:///{tmp_path}/ledger.db."
    ledger = catalog.load("certificate_ledger")
    assert ledger.claim("split", {"model": "b"}).result == {"p_value": 0.25}
    assert ledger.registered("baseline") == CertificateLedger(file).registered("baseline")
    assert file.read_bytes() == before


def test_a_ledger_that_0_1_0_has_written_is_imported(tmp_path: Path) -> None:
    subject = {"model": "5f3a", "baseline": "b60c", "lowest_tolerated": 0.9862}
    entry = {"subject": subject, "claimed": "2026-11-24T10:12:13+00:00", "result": {"p_value": 0.25, "outcome": "x"}}
    file, catalog = tmp_path / "old.json", catalog_of(tmp_path)
    file.write_text(json.dumps({"9c1e": entry, "4d2b": entry | {"result": None}}, indent=2))
    assert import_ledger(JOB, catalog, file).startswith(f"2 entries of {file} imported")
    found = catalog.load("certificate_ledger").entries()
    assert {split: each.model_dump() for split, each in found.items()} == json.loads(file.read_text())


def test_split_that_both_ledgers_know_is_told(tmp_path: Path) -> None:
    file, catalog = old_ledger(tmp_path), catalog_of(tmp_path)
    catalog.load("certificate_ledger").claim("split", {"model": "b"})
    assert "For 1 of them it has another model, and keeps that: split." in import_ledger(JOB, catalog, file)
    assert catalog.load("certificate_ledger").claim("split", {}).subject == {"model": "b"}


def test_what_cannot_be_imported_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"old.json: not found; give the JSON file"):
        import_ledger(JOB, catalog_of(tmp_path), tmp_path / "old.json")
    file = old_ledger(tmp_path)
    own = DataCatalog.from_config({"certificate_ledger": {"type": LEDGER, "filepath": str(file)}})
    with pytest.raises(ConfigurationError, match=r"is the ledger of certificate_ledger itself"):
        import_ledger(JOB, own, file)


@pytest.mark.slow
def test_command(project: Project, tmp_path: Path) -> None:
    file = old_ledger(tmp_path / "elsewhere")
    entry = {"type": LEDGER, "credentials": "database"}
    (project.folder / "conf/local/catalog.yml").write_text(yaml.safe_dump({"certificate_ledger": entry}))
    url = f"sqlite:///{tmp_path}/ledger.db"
    (project.folder / "conf/local/credentials.yml").write_text(yaml.safe_dump({"database": {"con": url}}))
    command = project.kedro("aat", "import-ledger", str(file))
    assert command.wait() == 0, command.output
    assert f"2 entries of {file} imported into {url}." in " ".join(command.output.split())
    assert CertificateLedger(url).claim("split", {}).subject == {"model": "a"}

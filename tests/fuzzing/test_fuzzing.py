"""The first cases of `make fuzz`, and those that once went wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedro_aat.errors import DataError
from tests.conftest import Once
from tests.fuzzing import configurations, files, harness
from tests.fuzzing.corpus import make_corpus
from tests.projects import Project

NUM_CASES = {
    "changed_parameters": 60,
    "changed_parameter_files": 10,
    "valid_by_schema": 240,
    "searched": 1,
}
SEEDS = {"searched": 2}  # whose first case the rehearsal does not refuse


@pytest.fixture(scope="session")
def corpus(finished: Project, once: Once) -> Path:
    return once("corpus", lambda folder: make_corpus(finished.folder, folder))


@pytest.mark.parametrize("kind", NUM_CASES)
def test_configurations_are_accepted_or_refused(kind: str) -> None:
    result = harness.run(kind, getattr(configurations, kind), range(NUM_CASES[kind]), seed=SEEDS.get(kind, 1))
    assert not result.failures, result.failures[0]
    assert result.counts["accepted"]


@pytest.mark.parametrize("name", files.READERS | files.DAMAGED_ONLY)
def test_files_are_accepted_or_refused(name: str, corpus: Path) -> None:
    reader = (files.READERS | files.DAMAGED_ONLY)[name]
    for kind in (files.mutation, files.damage) if name in files.READERS else (files.damage,):
        result = harness.run(name, kind(reader, corpus), range(3), seed=1)
        assert not result.failures, result.failures[0]


def test_the_harness_notices_others_errors_hangs_and_what_cannot_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    def case(rng: object, folder: Path) -> None:
        raise KeyError

    def unprintable(rng: object, folder: Path) -> None:
        raise DataError("\ud800")

    def hang(rng: object, folder: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(harness, "SECONDS", 0.05)
    assert "HangError" in harness.run("a", hang, range(1), seed=0).failures[0]
    assert len(harness.run("a", case, range(2), seed=0).failures) == 2
    assert "printed" in harness.run("a", unprintable, range(1), seed=0).failures[0]

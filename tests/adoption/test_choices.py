"""What `kedro aat choose` says of a choice beside what is delivered."""

from __future__ import annotations

from pathlib import Path

import pytest
from kedro.io import DataCatalog
from kedro_datasets.json import JSONDataset

from kedro_aat.adoption.beside import beside
from kedro_aat.adoption.choices import print_choice
from kedro_aat.adoption.jobs import Job
from kedro_aat.pipelines.aat import create_pipeline
from tests.reporting.runs import summary_of

CONFIRM = "--max-drop 0.1 --confirm --pipeline small"


@pytest.mark.parametrize(("outcome", "is_offered"), [("within_budget", True), ("infeasible", False)])
def test_only_a_choice_with_a_model_is_offered(
    outcome: str, is_offered: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = DataCatalog({"aat_summary": JSONDataset(filepath=str(tmp_path / "aat_summary.json"))})
    dataset = catalog["aat_summary"]
    dataset.save(summary_of("within_budget").model_dump(mode="json"))
    beside("aat_summary", dataset).save(summary_of(outcome).model_dump(mode="json"))
    print_choice(Job.find("small", {"small": create_pipeline()}), catalog, CONFIRM)
    words = " ".join(capsys.readouterr().out.split())
    assert (f"`kedro aat choose {CONFIRM}` replaces them." in words) is is_offered
    assert ("Nothing is chosen." in words) is not is_offered
    assert "unchanged" in words

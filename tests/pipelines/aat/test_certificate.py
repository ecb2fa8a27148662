"""The test split is read once, last, for one model; through `kedro` commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from kedro_aat.certificate.ledger import is_of_split
from kedro_aat.pipelines.aat import create_pipeline
from tests.pipelines.aat.conftest import INFEASIBLE, Run
from tests.projects import UNREHEARSED, Project, small_parameters

OLD_CATALOG = Path(__file__).parents[2] / "saved_by/0.1.0/templates/catalog_aat.yml"
# A data set that refuses to be read before all has been chosen, and counts how often it is.
LOCKED = """
from pathlib import Path
from kedro_datasets_experimental.safetensors import SafetensorsDataset

class Locked(SafetensorsDataset):
    def load(self):
        if not Path("data/07_model_output/export_report.json").exists():
            raise RuntimeError("the test split was read before the export")
        with Path("reads.txt").open("a") as reads:
            reads.write("read\\n")
        return super().load()
"""


@pytest.fixture
def locked(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project that has neither exported nor certified, with a locked test split."""
    project = finished.copy(tmp_path)
    for name in ("export_report.json", "certificate.json", "certificate_ledger.json"):
        (project.folder / "data/07_model_output" / name).unlink(missing_ok=True)
    shutil.rmtree(project.models / "checkpoints/ledgers")  # or the ledger were one that is lost
    (project.folder / "src" / "locked.py").write_text(LOCKED)
    entry = {"type": "locked.Locked", "filepath": "data/05_model_input/test.safetensors", "backend": "torch"}
    (project.folder / "conf/local/catalog.yml").write_text(json.dumps({"test_data": entry}))
    return project


def ledger(project: Project) -> dict[str, Any]:
    """The entries of the splits that were read."""
    loaded = json.loads((project.folder / "data/07_model_output/certificate_ledger.json").read_text())
    return {name: entry for name, entry in loaded.items() if is_of_split(name)}


def test_test_split_is_read_once_and_last(locked: Project) -> None:
    locked.run("--from-nodes", "evaluate_baseline")
    assert (locked.folder / "reads.txt").read_text() == "read\n"
    summary = locked.summary
    certificate = summary["certificate"]
    assert certificate["examples"] == 360
    assert certificate["alpha"] == 0.05
    assert 0 <= certificate["p_value"] <= 1
    drop = summary["baseline"]["test"] - summary["compressed"]["test"]
    assert certificate["estimated_drop"] == pytest.approx(drop)
    assert summary["outcome"] == ("certified" if certificate["p_value"] <= 0.05 else "within_budget")
    assert certificate["words"] in " ".join(json.dumps(summary, ensure_ascii=False).split())
    assert len(ledger(locked)) == 1


def test_tuning_leaves_the_test_split_unread_until_the_model_is_certified(locked: Project) -> None:
    withheld = {"aat.certificate": "null"}
    output = locked.run("--from-nodes", "evaluate_baseline", **withheld)
    summary = locked.summary
    assert not (locked.folder / "reads.txt").exists()
    assert ledger(locked) == {}
    assert summary["outcome"] == "within_budget"
    assert summary["baseline"]["test"] is summary["compressed"]["test"] is summary["certificate"]["p_value"] is None
    assert "`kedro aat certify` certifies the delivered model" in " ".join(output.split())

    command = locked.kedro("aat", "certify", "--params", small_parameters(withheld))
    assert command.wait() == 0, command.output
    certified = locked.summary
    assert (locked.folder / "reads.txt").read_text() == "read\n"
    assert "epoch 1 " not in command.output  # nothing was trained
    assert certified["certificate"]["examples"] == 360
    assert certified["delivered_id"] == summary["delivered_id"]
    assert certified["compressed"]["test_standard_error"] > 0
    again = locked.kedro("aat", "certify", "--params", small_parameters(withheld))
    assert again.wait() == 0, again.output
    assert locked.summary["certificate"] == certified["certificate"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_certify_needs_neither_checkpoints_nor_entries_that_came_after_the_first_version(
    locked: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    locked.run("--from-nodes", "evaluate_baseline", **{"aat.certificate": "null"})
    file = locked.folder / "conf/base/catalog.yml"
    new = create_pipeline().datasets() - set(yaml.safe_load(OLD_CATALOG.read_text()))
    assert {"third_stage_result", "second_stage_trajectory", "compressed_litert"} < new
    entries = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({name: entry for name, entry in entries.items() if name not in new}))
    shutil.move(locked.models / "checkpoints", tmp_path_factory.mktemp("away"))
    model, summary = (locked.models / "compressed_model.onnx").read_bytes(), locked.summary

    command = locked.kedro("aat", "certify", "--params", small_parameters({"aat.certificate": "null"}))
    assert command.wait() == 0, command.output
    assert locked.summary["certificate"]["examples"] == 360
    assert (locked.models / "compressed_model.onnx").read_bytes() == model
    for key in ("epochs", "skipped", "delivered_id", "candidates"):
        assert locked.summary[key] == summary[key]
    stages = {"second_stage": "magnitude_sparsity", "third_stage": "quantization"}
    three = {f"aat.{stage}.compression.algorithm": algorithm for stage, algorithm in stages.items()}
    refused = locked.kedro("aat", "certify", "--params", small_parameters({"aat.certificate": "null", **three}))
    assert refused.wait() == 1
    assert "third_stage_result is not saved, so finetune_third_stage would run" in " ".join(refused.output.split())


def test_a_project_without_a_test_split_can_be_tuned(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    (project.folder / "data/05_model_input/test.safetensors").unlink()
    project.run("--from-nodes", "certify_model", **{"aat.certificate": "null"})
    assert project.summary["certificate"]["words"].startswith("Not certified yet: the test split was left unread.")
    assert "test.safetensors is missing" in project.fail("--from-nodes", "certify_model")


def test_same_model_keeps_its_certificate(finished: Project, repeated: Run) -> None:
    assert repeated.project.summary["certificate"] == finished.summary["certificate"]
    assert ledger(repeated.project) == ledger(finished)


def test_another_model_gets_no_certificate(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    another = UNREHEARSED | {"aat.seed": 7, "aat.search.maximal_total_epochs": 2, "aat.second_stage": "null"}
    output = project.run("--from-nodes", "evaluate_baseline", **another)
    summary = project.summary
    assert summary["outcome"] == "within_budget"
    assert "read on 20" in summary["certificate"]["words"]
    assert "cannot be certified on it" in " ".join(output.split())
    assert summary["certificate"]["p_value"] is None
    assert summary["compressed"]["test"] is None  # not even looked at
    assert ledger(project) == ledger(finished)


def test_power_is_told_before_training(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    output = project.run(
        "--from-nodes", "evaluate_baseline", "--to-nodes", "evaluate_baseline", **{"aat.budget.max_drop": 0.01}
    )
    text = " ".join(output.split())
    assert (
        "Certificate: a model whose true drop is 0.003 will be certified in about 21 of 100 cases with your 360 test "
        "examples, and in 80 of 100 with 2,762 (if the models disagree on 2.00% of the examples). With fewer than 299, "
        "no model is certified."
    ) in text
    assert "359 validation examples cannot resolve the budget of" in text


def test_infeasible_ends_as_an_error_where_that_is_asked_for(infeasible: Run, tmp_path: Path) -> None:
    project = infeasible.project.copy(tmp_path)
    (project.folder / "data/08_reporting/aat_summary.json").unlink()
    output = project.fail("--from-nodes", "evaluate_baseline", **INFEASIBLE, **{"aat.on_infeasible": "error"})
    assert "Set on_infeasible to keep_baseline to end such a run without an error." in " ".join(output.split())
    assert project.summary["outcome"] == "infeasible"  # all is saved
    assert project.summary["certificate"]["words"] == "Nothing was exported, so there is nothing to certify."
    assert not (project.models / "compressed_model").exists()


@pytest.mark.slow
def test_time_limit_ends_the_search_with_the_best_so_far(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    long = {"aat.search.maximal_total_epochs": 4000, "aat.seed": 3}
    output = project.run("--from-nodes", "evaluate_baseline", **long, **{"aat.time_limit_minutes": 0.1})
    summary = project.summary
    assert "s per epoch: up to" in output
    assert 0 < summary["epochs"]["used"] < 4000
    assert summary["seconds"]["limit"] == 6
    assert summary["outcome"] in ("within_budget", "certified")
    used = summary["epochs"]["used"]
    project.run("--from-nodes", "evaluate_baseline", **long, **{"aat.time_limit_minutes": 0.2})
    assert project.summary["epochs"]["used"] > used  # more time goes on where the first ended

"""`kedro aat plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kedro.io import MemoryDataset
from kedro.pipeline import Node, Pipeline

from kedro_aat.adoption.commands import aat
from kedro_aat.adoption.plans import Planning
from kedro_aat.errors import ConfigurationError
from tests.adoption.test_rehearsals import PIPELINE, catalog_of, two_models
from tests.projects import Project
from tests.rehearsal.faulty import Case, labeled, settings_of
from tests.rehearsal.test_faults import SPARSE


def settings() -> dict[str, Any]:
    found: dict[str, Any] = settings_of(Case(settings=SPARSE))
    return found


def test_a_plan_without_a_model(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "plan.json"
    arguments = ["plan", "--parameters", "70e9", "--devices", "64", "--sharded", "--json", str(file)]
    done = CliRunner().invoke(aat, arguments)
    assert done.exit_code == 0, done.output
    assert "70,000,000,000 parameters, sparsity (60 epochs), on 64 devices, sharded (computed" in done.output
    found = json.loads(file.read_text())["computed"]
    assert found["totals"]["device while it trains"] == pytest.approx(21 * 70e9 / 64)


@pytest.mark.slow
def test_each_model_of_a_pipeline_is_planned(tmp_path: Path) -> None:
    both, catalog = two_models(tmp_path)
    planning = Planning(2, False, tmp_path / "plan.json")
    small, plain = sorted(planning.measured(both, catalog, {"aat": settings(), "small.aat": settings()}.get))
    assert plain.startswith("Plan: ")
    assert small.startswith("Plan of small: ")
    assert "on 2 devices" in plain
    found = json.loads((tmp_path / "plan.json").read_text())
    assert {name: each["job"]["machine"]["devices"] for name, each in found.items()} == {"aat": 2, "small": 2}
    assert not list((tmp_path / "store").glob("*"))  # nothing is left there


def test_weights_that_cannot_be_divided_are_one_error(tmp_path: Path) -> None:
    later = settings() | {"second_stage": {"compression": {"algorithm": "quantization"}}}
    with pytest.raises(ConfigurationError, match=r"--sharded: 1 mistake\n.*second_stage.compression.algorithm"):
        list(Planning(2, True, None).measured(PIPELINE, catalog_of(tmp_path), {"aat": later}.get))


def test_what_the_run_makes_is_not_planned(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path)
    catalog["train_data"] = MemoryDataset()
    pipeline = PIPELINE + Pipeline([Node(labeled, None, "train_data", name="split")])
    lines = list(Planning(None, False, None).measured(pipeline, catalog, {"aat": settings()}.get))
    assert lines == ["aat: not planned, because the run makes train_data."]


@pytest.mark.slow
def test_plan_of_a_project_whose_nodes_make_model_and_data(project: Project) -> None:
    parameters = "digits.baseline.num_epochs=1,aat.rehearsal=false,aat.training.baseline_check=off"
    command = project.kedro("aat", "plan", "--params", parameters)
    assert command.wait() == 0, command.output
    assert "because the plan needs baseline_model" in command.output
    assert "parameters, filters (50 epochs), then int8" in command.output
    assert "It fits: " in command.output

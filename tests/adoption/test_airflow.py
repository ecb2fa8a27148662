"""The DAG that kedro-airflow generates, run by Airflow's `dags test` on SQLite, each node in a task of its own.

`make test-airflow` installs both into an environment of their own, because their dependencies are not ours.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from kedro_aat.pipelines.aat import create_pipeline
from tests.adoption.test_runners import MODEL, PREPARE
from tests.documents import ROOT
from tests.projects import ENVIRONMENT

BIN = ROOT / "build" / "airflow" / "bin"
SMALL = (
    ("max_drop: 0.01", "max_drop: 0.1"),
    ("round_to: 8", "round_to: 1"),
    ("maximal_total_epochs: 50", "maximal_total_epochs: 3"),
    ("maximal_total_epochs: 10", "maximal_total_epochs: 1"),
    ("batch_sizes: [1, 64]", "batch_sizes: [1, 64]\n    latency_seconds: 0.1"),
)


class _Project:
    """A project made from Kedro's template, with the environment in which Airflow is."""

    def __init__(self, parent: Path) -> None:
        self._environment = os.environ | ENVIRONMENT | {"KEDRO_DISABLE_TELEMETRY": "1", "PYTHONPATH": "src"}
        self._environment |= {
            "AIRFLOW_HOME": str(parent / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(parent / "demo" / "airflow_dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }
        self.folder = parent
        self.run("kedro", "new", "--name", "demo", "--tools", "none", "--example", "n", "--telemetry", "no")
        self.folder = parent / "demo"

    def run(self, *command: str) -> str:
        """Runs a command of that environment to its successful end, and returns what it printed."""
        program, *arguments = command
        done = subprocess.run(
            [BIN / program, *arguments],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not (BIN / "airflow").exists(), reason="Airflow is not installed; `make test-airflow` installs it")
def test_each_node_runs_in_a_task_of_its_own(tmp_path: Path) -> None:
    project = _Project(tmp_path)
    (project.folder / "src/demo/models.py").write_text(MODEL)
    (project.folder / "prepare.py").write_text(PREPARE)
    project.run("python", "prepare.py")
    (project.folder / "data/05_model_input/small").rename(project.folder / "data/05_model_input/all")
    for path in (project.folder / "data/05_model_input/all").iterdir():
        path.rename(project.folder / "data/05_model_input" / path.name)
    model = ("--model", "Net", "--init-args", "width: 16", "--weights", "data/small.safetensors")
    project.run("kedro", "aat", "init", *model, "--data", "tensors", "--task", "classification", "--outputs", "2")
    parameters = project.folder / "conf/base/parameters_aat.yml"
    text = parameters.read_text()
    for old, new in SMALL:
        assert old in text
        text = text.replace(old, new)
    parameters.write_text(text)
    (project.folder / "conf/base/airflow.yml").write_text("default: { retries: 0 }\n")

    project.run("kedro", "airflow", "create", "--pipelines", "aat")
    project.run("airflow", "db", "migrate")
    output = project.run("airflow", "dags", "test", "demo")
    (tmp_path / "dags-test.log").write_text(output)
    nodes = [node.name for node in create_pipeline().nodes]
    for name in nodes:
        assert f"Completed node: {name}" in output
    assert output.count("[DAG TEST] end task") == len(nodes)
    summary = json.loads((project.folder / "data/08_reporting/aat_summary.json").read_text())
    assert summary["outcome"] == "within_budget"

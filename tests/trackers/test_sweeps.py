"""The sweep on the page about Optuna: whole runs that leave the test split unread, and one that reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from tests.documents import ROOT, titled_blocks
from tests.projects import ENVIRONMENT, SMALL, Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(find_spec("optuna") is None, reason="needs optuna: make test-trackers"),
    pytest.mark.skipif(
        find_spec("kedro_mlflow") is not None, reason="kedro-mlflow cannot follow two sessions in a process"
    ),
]
SCRIPT = titled_blocks(ROOT / "docs/how-to/sweeps.md", "python")["sweep.py"]
STEPS = """
import json

from kedro_aat.certificate.ledger import CertificateLedger, is_of_split
from sweep import project, run, settings_of, sweep

ledger = CertificateLedger(project / "data/07_model_output/certificate_ledger.json")
study = sweep(2)
best, before = study.best_trial, list(map(is_of_split, ledger.entries()))
print("final run", flush=True)
found = {
    "values": {trial.number: trial.value for trial in study.trials},
    "best": best.number,
    "validation": best.user_attrs["validation"],
    "splits_before": before,
    "summary": run(settings_of(study.best_params), certificate={"alpha": 0.4}),
    "splits_after": list(map(is_of_split, ledger.entries())),
}
(project / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str, dict[str, Any]]:
    project = Project.create(tmp_path_factory.mktemp("swept"))
    path = project.folder / "conf/base/parameters.yml"
    small = OmegaConf.from_dotlist([f"{key}={value}" for key, value in SMALL.items()])
    path.write_text(OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.create(yaml.safe_load(path.read_text())), small)))
    (project.folder / "sweep.py").write_text(SCRIPT)
    (project.folder / "steps.py").write_text(STEPS)
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": f"{project.folder}{os.pathsep}{ROOT / 'src'}"}
    command = [sys.executable, "steps.py"]
    done = subprocess.run(
        command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return project, done.stdout + done.stderr, json.loads((project.folder / "found.json").read_text())


def test_no_trial_reads_the_test_split(swept: tuple[Project, str, dict[str, Any]]) -> None:
    _, _, found = swept
    assert found["splits_before"], "the first trial registers the baseline"
    assert not any(found["splits_before"])
    assert found["splits_after"].count(True) == 1
    assert found["summary"]["certificate"]["examples"]


def test_the_best_trial_is_delivered_without_training_it_again(swept: tuple[Project, str, dict[str, Any]]) -> None:
    _, output, found = swept
    values = {number: value for number, value in found["values"].items() if value is not None}
    assert len(found["values"]) == 2
    assert found["values"][str(found["best"])] == min(values.values())
    assert found["summary"]["compressed"]["onnx_bytes"] == min(values.values())
    assert found["summary"]["compressed"]["validation"] == found["validation"]
    assert "epoch 1  rate" in output.partition("final run")[0]
    assert "epoch 1  rate" not in output.partition("final run")[2]

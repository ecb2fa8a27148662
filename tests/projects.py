"""Copies of this project in which tests run real `kedro` commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]

# Few epochs: enough for every node to have something to do.
SMALL = {
    "digits.baseline.num_epochs": 3,
    "aat.budget.max_drop": 0.05,
    "aat.search.maximal_total_epochs": 5,
    "aat.second_stage.search.maximal_total_epochs": 2,
    "aat.export.latency_seconds": 0.1,
    "aat.export.objective": "macs",  # what is delivered must not depend on how busy the machine is
    "aat.compression.round_to": 1,  # in so few epochs, eights would make each model of the frontier the same
}


class Project:
    """A copy of this project with its own data folder; `like` another one, with all that it has."""

    def __init__(self, folder: Path, *, like: Project | None = None) -> None:
        self.folder = folder
        if like is not None:
            shutil.copytree(like.folder, folder, dirs_exist_ok=True)
            return
        shutil.copytree(ROOT / "conf", folder / "conf", ignore=shutil.ignore_patterns("local"))
        shutil.copytree(ROOT / "data" / "01_raw", folder / "data" / "01_raw")
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "conf" / "local").mkdir()
        # Kedro wants the source inside the project.
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))

    def start(self, *arguments: str, **parameters: Any) -> subprocess.Popen[str]:
        """Starts `kedro run` with the small job's parameters and these."""
        command = [sys.executable, "-m", "kedro", "run", *arguments]
        merged = SMALL | parameters
        command += ["--params", ",".join(f"{key}={value}" for key, value in merged.items())]
        # CI is what keeps OpenVINO from telling its makers when it is imported.
        environment = os.environ | {"DO_NOT_TRACK": "1", "CI": "true", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **parameters: Any) -> str:
        """Runs it to its successful end, and returns what it printed."""
        process = self.start(*arguments, **parameters)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        return output

    def fail(self, *arguments: str, **parameters: Any) -> str:
        """Runs it to its failure, and returns what it printed."""
        process = self.start(*arguments, **parameters)
        output, _ = process.communicate(timeout=240)
        assert process.returncode != 0, output
        return output

    @property
    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "data/08_reporting/aat_summary.json").read_text())
        return loaded

    @property
    def trajectory(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "data/08_reporting/trajectory.parquet")

    @property
    def models(self) -> Path:
        return self.folder / "data" / "06_models"

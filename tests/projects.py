"""Copies of this project in which tests run `kedro` commands."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from tests.forks import ROOT, Command, Request, kedro

# Few epochs: enough for every node to have something to do.
SMALL = {
    "digits.baseline.num_epochs": 3,
    "aat.budget.max_drop": 0.05,
    "aat.search.maximal_total_epochs": 5,
    "aat.second_stage.search.maximal_total_epochs": 2,
    "aat.second_stage.skip_without_gain": "false",  # int8 gains no MACs
    "aat.export.latency_seconds": 0.1,
    "aat.export.dynamic_axes": "{}",  # the search for others takes two thirds of an export
    "aat.export.objective": "macs",  # what is delivered must not depend on how busy the machine is
    "aat.compression.round_to": 1,  # in so few epochs, eights would make each model of the frontier the same
}
# For a run with other settings, whose rehearsal would be another, but is not what is tested.
UNREHEARSED = {"aat.rehearsal": "false"}
# CI keeps OpenVINO from sending telemetry when it is imported.
ENVIRONMENT = {"DO_NOT_TRACK": "1", "CI": "true", "OMP_NUM_THREADS": "1"}
_COMMAND_NUMBERS = itertools.count()


class Project:
    """A project with a data folder of its own.

    Commands run in forks of a process that has imported torch and the like, unless they are spawned.

    Attributes:
        folder: Its root.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path) -> Project:
        """Copies this project without anything that runs have made."""
        shutil.copytree(ROOT / "conf", folder / "conf", ignore=shutil.ignore_patterns("local"))
        shutil.copytree(ROOT / "data" / "01_raw", folder / "data" / "01_raw")
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "conf" / "local").mkdir()
        # Kedro wants a folder of sources in the project. What is imported is the package that is tested.
        (folder / "src").mkdir()
        return cls(folder)

    def copy(self, folder: Path) -> Project:
        """Copies this project with all that its runs have made."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Project(folder)

    def kedro(self, *arguments: str) -> Command:
        """Starts a `kedro` command."""
        output = self.folder / f"output-{next(_COMMAND_NUMBERS)}.txt"
        return Command(Request(kedro, arguments, self.folder, os.environ | ENVIRONMENT, output))

    def start(self, *arguments: str, **parameters: Any) -> Command:
        """Starts `kedro run` with the small job's parameters and these."""
        return self.kedro(*_run(arguments, parameters))

    def run(self, *arguments: str, **parameters: Any) -> str:
        """Runs it to its successful end, and returns what it printed."""
        command = self.start(*arguments, **parameters)
        assert command.wait() == 0, command.output
        return command.output

    def fail(self, *arguments: str, **parameters: Any) -> str:
        """Runs it to its failure, and returns what it printed."""
        command = self.start(*arguments, **parameters)
        assert command.wait() > 0, command.output
        return command.output

    def spawn(self, *arguments: str, **parameters: Any) -> str:
        """Runs it in a process that starts from nothing, as a user's does, to its successful end."""
        done = subprocess.run(
            [sys.executable, "-m", "kedro", *_run(arguments, parameters)],
            cwd=self.folder,
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

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


def small_parameters(parameters: dict[str, Any]) -> str:
    """The value of `--params`: those of the small job, and these."""
    return ",".join(f"{key}={value}" for key, value in (SMALL | parameters).items())


def _run(arguments: tuple[str, ...], parameters: dict[str, Any]) -> list[str]:
    return ["run", *arguments, "--params", small_parameters(parameters)]

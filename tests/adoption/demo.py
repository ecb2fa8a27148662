"""A project made from Kedro's own template."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]


class Demo:
    """The project `demo`, used through the command line.

    Args:
        folder: Folder in which the project is created.
        packages: Folder in which kedro-aat is installed.
    """

    def __init__(self, folder: Path, packages: Path) -> None:
        self.folder = folder / "demo"
        self._environment = os.environ | {
            "PYTHONPATH": str(packages),
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        self.kedro("new", "--name", "demo", "--tools", "none", "--example", "n", "--telemetry", "no", cwd=folder)

    def kedro(self, *arguments: str, cwd: Path | None = None, code: int = 0) -> str:
        """Runs a `kedro` command, checks its exit code and returns its output."""
        command = [sys.executable, "-m", "kedro", *arguments]
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    @property
    def base(self) -> Path:
        return self.folder / "conf" / "base"

    def write_registry(self, *lines: str) -> None:
        """Writes a registry by hand, with the two lines that `kedro aat init` prints."""
        first, *others = lines
        text = [first, "def register_pipelines():", "    pipelines = {}", *(f"    {line}" for line in others)]
        (self.folder / "src/demo/pipeline_registry.py").write_text("\n".join([*text, "    return pipelines\n"]))

    def write(self, name: str, text: str) -> None:
        """Writes one of the project's files."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def python(self, name: str) -> None:
        """Runs one of the project's scripts with its package on the path, as `PYTHONPATH=src python NAME`."""
        packages = os.pathsep.join((str(self.folder / "src"), self._environment["PYTHONPATH"]))
        environment = self._environment | {"PYTHONPATH": packages}
        subprocess.run([sys.executable, name], cwd=self.folder, env=environment, check=True, capture_output=True)

    def change(self, name: str, changes: str) -> None:
        """Merges YAML into a file of `conf/base`, which must already have the top-level keys."""
        path = self.base / name
        old, new = OmegaConf.load(path), OmegaConf.create(changes)
        assert set(new) <= set(old)
        path.write_text(OmegaConf.to_yaml(OmegaConf.merge(old, new)))

    def edit(self, name: str, *changes: tuple[str, str]) -> None:
        """Replaces texts in a file of `conf/base`; each must occur in it."""
        path = self.base / name
        text = path.read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path.write_text(text)

    @property
    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "data/08_reporting/aat_summary.json").read_text())
        return loaded

"""A project made from Kedro's own template."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tests.forks import Command, Request, kedro, script
from tests.projects import ENVIRONMENT


class Demo:
    """The project `demo`, used through the command line.

    Args:
        parent: Folder in which the project is.
        packages: Folder in which kedro-aat is installed.

    Attributes:
        folder: Root of the project.
    """

    def __init__(self, parent: Path, packages: Path) -> None:
        self.folder = parent / "demo"
        self._packages = packages
        self._numbers = itertools.count()

    @classmethod
    def create(cls, parent: Path, packages: Path) -> Demo:
        """Creates the project from Kedro's template."""
        demo = cls(parent, packages)
        demo.kedro("new", "--name", "demo", "--tools", "none", "--example", "n", "--telemetry", "no", cwd=parent)
        return demo

    def copy(self, parent: Path) -> Demo:
        """Copies the project to another folder."""
        shutil.copytree(self.folder, parent / "demo")
        return Demo(parent, self._packages)

    def kedro(self, *arguments: str, cwd: Path | None = None, code: int = 0) -> str:
        """Runs a `kedro` command, checks its exit code and returns its output."""
        return self._run(kedro, *arguments, cwd=cwd or self.folder, code=code)

    def _run(self, function: Callable[..., object], *arguments: str, cwd: Path, code: int = 0, path: str = "") -> str:
        """Runs a function in a process that finds kedro-aat where pip installed it."""
        packages = os.pathsep.join(filter(None, (path, str(self._packages))))
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": packages}
        output = self.folder.parent / f"output-{next(self._numbers)}.txt"
        command = Command(Request(function, arguments, cwd, environment, output))
        assert command.wait() == code, command.output
        return command.output

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
        self._run(script, name, cwd=self.folder, path=str(self.folder / "src"))

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

"""A project made from Kedro's own template, with kedro-aat as pip installs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adoption.demo import Demo
from tests.conftest import Once
from tests.documents import ROOT


def _install(target: Path) -> None:
    """Has pip install kedro-aat from a copy of the tree, without its dependencies."""
    tree = target / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target / "packages"), str(tree)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def demo(once: Once, tmp_path: Path) -> Demo:
    """A copy of the project as Kedro's template makes it."""
    packages = once("installed", _install) / "packages"

    def make(folder: Path) -> None:
        Demo.create(folder, packages)

    return Demo(once("demo", make), packages).copy(tmp_path)

"""Every notebook runs from its first cell to its last, in a project in which a run has ended."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.documents import ROOT
from tests.forks import Command, Request, notebook
from tests.projects import ENVIRONMENT, Project

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONG = ("four_nodes",)  # Jupyter would import torch in a process that starts from nothing


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
    assert set(LONG) <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else []) for path in NOTEBOOKS],
)
def test_notebook_runs(path: Path, finished: Project) -> None:
    cells = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(cells, timeout=900, resources={"metadata": {"path": str(finished.folder)}}).execute()


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem in LONG], ids=lambda path: path.stem)
def test_cells_of_a_long_notebook_run_without_jupyter(path: Path, finished: Project, tmp_path: Path) -> None:
    request = Request(notebook, (path,), finished.folder, os.environ | ENVIRONMENT, tmp_path / "output.txt")
    command = Command(request)
    assert command.wait() == 0, command.output


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in cells)

"""Runs that several tests look at."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import Once
from tests.projects import UNREHEARSED, Project


class Run(NamedTuple):
    """A project after a run, and what the run printed; tests only read it, or copy it."""

    project: Project
    output: str


@pytest.fixture(scope="session")
def run_once(finished: Project, once: Once) -> Callable[..., Run]:
    """Has a copy of the finished project run again, once for all tests."""

    def run(name: str, *arguments: str, **parameters: Any) -> Run:
        def make(folder: Path) -> None:
            project = finished.copy(folder)
            (project.folder / "data/08_reporting/aat_summary.json").unlink()
            (folder / "printed.txt").write_text(project.run(*arguments, **parameters))

        folder = once(name, make)
        return Run(Project(folder), (folder / "printed.txt").read_text())

    return run


@pytest.fixture(scope="session")
def repeated(run_once: Callable[..., Run]) -> Run:
    """The same job again, in the third spelling: `kedro run` alone."""
    return run_once("repeated")


@pytest.fixture(scope="session")
def restarted(run_once: Callable[..., Run]) -> Run:
    """From a node in the middle, in the old spelling, and with OpenVINO's files of one stage if it is installed."""
    openvino = "false" if importlib.util.find_spec("openvino") is None else "true"
    arguments = ("--pipeline", "aat", "--from-nodes", "evaluate_baseline")
    parameters = UNREHEARSED | {"aat.export.openvino": openvino, "aat.second_stage": "null"}
    return run_once("restarted", *arguments, **parameters)


INFEASIBLE = UNREHEARSED | {
    "aat.budget.max_drop": 0,
    "aat.minimal_rate": 0.99,
    "aat.maximal_rate": 0.99,
    "aat.second_stage": "null",
}


@pytest.fixture(scope="session")
def infeasible(run_once: Callable[..., Run]) -> Run:
    """A job with a budget that no model keeps."""
    return run_once("infeasible", "--from-nodes", "evaluate_baseline", **INFEASIBLE)

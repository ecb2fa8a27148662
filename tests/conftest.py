"""Fixtures that several rooms share."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.projects import Project

# OpenVINO tells its makers when it is imported, unless this package of theirs cannot be.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

# A shell's background job ignores Ctrl-C, and so would the commands that tests start, which they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh copy of this project."""
    return Project(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which the small job has run to its end; tests only read it, or copy it."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.run("--pipelines", "aat")
    return project

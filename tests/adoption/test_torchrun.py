"""A whole pipeline that several processes were started with: rank 0 runs it, the others help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kedro_aat.certificate.ledger import CertificateLedger, is_of_split
from tests.forks import kedro
from tests.projects import ENVIRONMENT, Project, small_parameters
from tests.ranks import Ranks

FILES = {
    "pyproject.toml": """
[tool.kedro]
package_name = "demo"
project_name = "demo"
kedro_init_version = "1.7.0"
""",
    "src/demo/__init__.py": "",
    "src/demo/settings.py": "",
    "src/demo/data.py": """
import os

from kedro_datasets.json import JSONDataset


class PartlyMissing(JSONDataset):
    def load(self):
        if os.environ["RANK"] == "1":
            raise FileNotFoundError("there is no such disk")
        return super().load()
""",
    "src/demo/pipeline_registry.py": """
import os
import time

import torch.distributed as dist
from kedro.pipeline import Node, Pipeline

RANK = os.environ["RANK"]


def make(seconds):
    print("make on", RANK, flush=True)
    time.sleep(seconds)
    return {"a": 1}, {1, 2}


def train(file, memory, fails):
    print("train on", RANK, file, memory, flush=True)
    if fails == "train":
        raise ValueError("these weights are wrong")
    dist.init_process_group("gloo")
    ranks = [None, None]
    dist.all_gather_object(ranks, RANK)
    dist.destroy_process_group()
    return ranks


def report(ranks, fails):
    print("report on", RANK, flush=True)
    if fails == "report":
        raise ValueError("there is no paper")
    return ranks


def register_pipelines():
    make_it = Node(make, "params:seconds", ["file", "memory"], name="make")
    tags = ["kedro_aat.every_rank"]
    train_it = Node(train, ["file", "memory", "params:fails"], "ranks", name="train", tags=tags)
    report_it = Node(report, ["ranks", "params:fails"], "reported", name="report")
    partly = Node(train, ["partly", "memory", "params:fails"], "ranks", name="train", tags=tags)
    return {
        "__default__": Pipeline([make_it, train_it, report_it]),
        "partly": Pipeline([make_it, partly]),
    }
""",
    "conf/base/catalog.yml": """
file: {type: json.JSONDataset, filepath: data/file.json, versioned: true}
partly: {type: demo.data.PartlyMissing, filepath: data/partly.json}
reported: {type: json.JSONDataset, filepath: data/reported.json}
""",
    "conf/base/parameters.yml": "fails: nowhere\nseconds: 0",
    "conf/local/.keep": "",
    "data/partly.json": "{}",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def start(folder: Path, *arguments: str) -> Ranks:
    return Ranks(kedro, "run", *arguments, folder=folder, environment=ENVIRONMENT)


def test_rank_0_runs_the_nodes_and_all_ranks_those_that_are_tagged(project: Path) -> None:
    ranks = start(project)

    assert ranks.wait() == [0, 0], ranks.outputs
    first, second = ranks.outputs
    assert "make on 0" in first
    assert "report on 0" in first
    for rank, output in enumerate((first, second)):
        assert f"train on {rank} {{'a': 1}} {{1, 2}}" in output  # from the file, and from the memory of rank 0
    assert not any(word in second for word in ("make on", "report on", "Saving", "Running", "WARNING"))
    assert json.loads((project / "data/reported.json").read_text()) == ["0", "1"]
    assert len(list((project / "data/file.json").iterdir())) == 1  # one version


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--params", "fails=report"], "there is no paper"),
        pytest.param(
            ["--pipelines", "partly"], "train: 1 of 2 ranks cannot load their inputs.", marks=pytest.mark.slow
        ),
        pytest.param(["--params", "fails=train"], "these weights are wrong", marks=pytest.mark.slow),
        pytest.param(["--runner", "ThreadRunner"], "with 2 ranks, nodes run one after another", marks=pytest.mark.slow),
    ],
)
def test_an_error_ends_all_ranks_with_the_message_of_rank_0_alone(
    project: Path, arguments: list[str], message: str
) -> None:
    ranks = start(project, *arguments)

    assert ranks.wait(60) == [1, 1]
    first, second = ranks.outputs
    assert message in " ".join(first.split())
    assert not any(word in second for word in ("rror", "Traceback")), second


@pytest.mark.slow
def test_a_finished_search_is_read_by_all_ranks(finished: Project, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    arguments = "--nodes", "finetune_adaptively", "--params", small_parameters({})
    ranks = start(copy.folder, *arguments)

    assert ranks.wait() == [0, 0], ranks.outputs
    assert "Completed node: finetune_adaptively" in ranks.outputs[0]
    assert "finetune_adaptively" not in ranks.outputs[1]


@pytest.mark.slow
def test_ctrl_c_ends_all_ranks(project: Path) -> None:
    ranks = start(project, "--params", "seconds=600")
    while "make on 0" not in ranks.outputs[0]:
        assert ranks.commands[0].poll() is None, ranks.outputs
        time.sleep(0.1)
    for command in reversed(ranks.commands):  # as a terminal does
        os.kill(command.pid, signal.SIGINT)

    assert all(code != 0 for code in ranks.wait(30))
    assert "Traceback" not in ranks.outputs[1]


def torchrun(folder: Path, *options: str, **parameters: Any) -> subprocess.Popen[str]:
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *options]
    return subprocess.Popen(
        [*ranks, "-m", "kedro", "run", "--params", small_parameters(parameters)],
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_pipeline_under_torchrun(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "undisturbed")
    command = torchrun(project.folder)
    output, _ = command.communicate(timeout=500)

    assert command.returncode == 0, output
    nodes = [line.split("Running node: ")[1] for line in output.splitlines() if "Running node: " in line]
    assert len(nodes) == len(set(nodes)) == 17
    assert project.summary["outcome"] == "certified"
    ledger = CertificateLedger(project.folder / "data/07_model_output/certificate_ledger.json").entries()
    assert [is_of_split(name) for name in ledger].count(True) == 1

    # A rank is killed in the middle of the search: torchrun starts all of them again, and the run goes on.
    killed = Project.create(tmp_path / "killed")
    command = torchrun(killed.folder, "--max-restarts", "2")
    store = killed.models / "checkpoints"
    while len(list(store.glob("*/checkpoint-*"))) < 3:
        assert command.poll() is None, command.communicate()[0]
        time.sleep(0.1)
    ranks = subprocess.run(["pgrep", "-P", str(command.pid)], capture_output=True, text=True, check=True)
    os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)
    output, _ = command.communicate(timeout=500)

    assert command.returncode == 0, output
    columns = ["stage", "epoch", "achieved_rate", "metric", "loss"]
    assert killed.trajectory[columns].equals(project.trajectory[columns])

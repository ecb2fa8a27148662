"""A run that is killed goes on where it stood when the same command is given again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from kedro_aat.certificate.ledger import CertificateLedger, is_of_split
from tests.forks import Command
from tests.projects import Project, small_parameters
from tests.torture import differences, kill, torture


def _wait_for_checkpoint(project: Project, number: int, command: Command) -> None:
    while command.poll(timeout=0.005) is None:
        if list((project.models / "checkpoints").glob(f"*/checkpoint-{number:06d}")):
            return
    raise AssertionError(f"checkpoint {number} was never written:\n{command.output}")


def test_kills_change_nothing(finished: Project, project: Project) -> None:
    """A short `make torture`: from nothing to the summary, with a kill in an epoch and one in the export."""
    number, delay = random.randint(1, 3), random.uniform(0, 0.2)
    export_delay = random.uniform(0, 3)
    print(f"killed {delay} s after checkpoint {number}, and {export_delay} s after the beginning of the export")

    rehearsals = Path("checkpoints", "rehearsals")
    shutil.copytree(finished.models / rehearsals, project.models / rehearsals)  # which takes as long as the training
    command = project.start("--pipelines", "aat")
    _wait_for_checkpoint(project, number, command)
    time.sleep(delay)  # anywhere in an epoch, or while the next checkpoint is written
    os.killpg(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    assert_delivers_best_so_far(project)
    assert "Continuing after epoch" in kill(project, "export_model", export_delay).output
    project.run("--pipelines", "aat")
    # That ran in a process that shared nothing with these, not even the order of its sets.
    assert differences(project, finished) == []


def assert_delivers_best_so_far(project: Project) -> None:
    """Has `kedro aat deliver` export what an unfinished search has found, without training and the test split."""
    command = project.kedro("aat", "deliver", "--params", small_parameters({}))
    assert command.wait() == 0, command.output
    assert "Continuing after epoch" not in command.output
    summary = project.summary
    (stage,) = summary["stages"]
    within = project.trajectory.query("margin >= 0 and achieved_rate > 0 and trained")
    assert (stage["outcome"] == "within_budget") == bool(len(within))
    assert (summary["outcome"] == "within_budget") == (project.models / "compressed_model.onnx").exists()
    if summary["outcome"] == "within_budget":
        assert summary["compressed"]["validation"] >= summary["budget"]["lowest_tolerated"]
        assert stage["best_checkpoint"] in set(within["checkpoint"])
    assert stage["epochs"]["used"] < stage["epochs"]["allowed"]
    assert summary["certificate"]["statistic"] is None
    ledger = CertificateLedger(project.folder / "data/07_model_output/certificate_ledger.json")
    assert not any(map(is_of_split, ledger.entries()))
    assert "kedro run" in [step["change"] for step in summary["findings"]["next_steps"]]


@pytest.mark.slow
def test_torture_finds_no_difference(tmp_path: Path) -> None:
    assert torture(num_kills=10, seed=random.randrange(1000), folder=tmp_path) == 0


def test_torture_sees_a_changed_weight_and_a_changed_number(finished: Project, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path)
    assert differences(copy, finished) == []
    weights = copy.models / "compressed_model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    summary = copy.folder / "data/08_reporting/aat_summary.json"
    summary.write_text(summary.read_text().replace('"seed": 0', '"seed": 1'))
    (copy.folder / "data/08_reporting/trajectory.parquet").unlink()
    assert [text.partition(":")[0] for text in differences(copy, finished)] == [
        "08_reporting/trajectory.parquet",
        "06_models/compressed_model/model.safetensors",
        "08_reporting/aat_summary.json.seed",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_signal_ends_the_run_with_one_sentence(number: int, finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "stopped")
    shutil.rmtree(project.models / "checkpoints")
    command = project.start("--from-nodes", "evaluate_baseline", **{"aat.search.maximal_total_epochs": 14})
    _wait_for_checkpoint(project, 3, command)
    os.kill(command.pid, number)
    assert command.wait() == 1
    output = " ".join(command.output.split())
    asked, _, end = output.rpartition("You can resume the pipeline run")
    assert ("is finished and saved. Press Ctrl-C again" in asked) == (number == signal.SIGINT)
    assert "Run the same command again to continue." in end  # below Kedro's advice
    assert "Traceback" not in output
    assert "Running node: export_model" not in output


def test_export_that_is_killed_goes_on_with_what_is_finished(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "killed")
    (folder,) = (project.models / "checkpoints").glob("*/finished_steps")
    shutil.rmtree(folder)
    command = project.start("--from-nodes", "export_model")
    while not list(folder.glob("judgment-*.json")):
        assert command.poll(timeout=0.005) is None, command.output
    os.killpg(command.pid, signal.SIGKILL)
    command.wait()
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert not list(folder.glob("measurements-*"))

    assert "Finished steps are not repeated." in project.run("--from-nodes", "export_model")
    assert written.items() <= {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}.items()
    names = sorted(path.name.partition("-")[0] for path in folder.glob("*.json"))
    assert names == ["files"] * 3 + ["judgment"] * 2 + ["measurements"]
    for key in ("delivered", "certificate"):
        assert project.summary[key] == finished.summary[key]

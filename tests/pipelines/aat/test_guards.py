"""Guards through `kedro` commands: searched with, judged on the files, shown, and kept by `kedro aat choose`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import Once
from tests.pipelines.aat.conftest import Run
from tests.projects import UNREHEARSED, Project, small_parameters

NAMES = [f"MulticlassRecall, class {index}" for index in range(10)]
ALSO = """
    also:
      - metric:
          class_path: torchmetrics.classification.MulticlassRecall
          init_args: { num_classes: 10, average: none }
        max_drop: 0.08"""


GUARDED = UNREHEARSED | {"aat.export.dynamic_axes": "null"}  # as users have it: axes are searched for


def assert_kept(project: Project) -> None:
    summary = project.summary
    assert [guard["name"] for guard in summary["guards"]] == NAMES
    delivered = next(each for each in summary["candidates"] if each["id"] == summary["delivered_id"])
    for guard in summary["guards"]:
        assert guard["drop"] == 0.08
        assert guard["lowest_tolerated"] == pytest.approx(guard["baseline"]["validation"] - 0.08)
        for candidate in summary["candidates"]:
            assert candidate["guards"][guard["name"]] >= guard["lowest_tolerated"] - 1e-6
        assert guard["compressed"]["validation"] == delivered["guards"][guard["name"]]


@pytest.fixture(scope="module")
def guarded(finished: Project, once: Once) -> Run:
    def make(folder: Path) -> None:
        project = finished.copy(folder)
        path = folder / "conf" / "base" / "parameters.yml"
        text = path.read_text()
        changed, count = re.subn(r"\n    also: \[\] .*", ALSO, text)
        assert count == 1
        path.write_text(changed)
        (folder / "data" / "07_model_output" / "certificate_ledger.json").unlink()  # the test split is unread
        shutil.rmtree(project.models / "checkpoints/ledgers")  # or the ledger were one that is lost
        (folder / "printed.txt").write_text(project.run("--from-nodes", "evaluate_baseline", **GUARDED))

    folder = once("guarded", make)
    return Run(Project(folder), (folder / "printed.txt").read_text())


def test_every_file_keeps_every_guard_and_the_summary_says_so(guarded: Run, finished: Project) -> None:
    assert_kept(guarded.project)
    summary = guarded.project.summary
    assert summary["run"] != finished.summary["run"]
    assert finished.summary["guards"] == []
    assert all(stage["guards"].keys() == set(NAMES) for stage in summary["stages"])
    assert all(guard["compressed"]["test"] is not None for guard in summary["guards"])


def test_the_trajectory_has_a_column_for_each_guard(guarded: Run, finished: Project) -> None:
    table = guarded.project.trajectory
    assert {"guard_margin", *(f"guards.{name}" for name in NAMES)} <= set(table.columns)
    assert set(table["stage"]) == {1, 2}
    assert not {"guard_margin", "guards"} & set(finished.trajectory.columns)


def test_people_read_of_it(guarded: Run) -> None:
    reporting = guarded.project.folder / "data" / "08_reporting"
    words = "The certificate is about the main metric alone"
    card = (guarded.project.folder / "data" / "06_models" / "compressed_model.md").read_text()
    for text in ((reporting / "aat_report.html").read_text(), card):
        assert words in " ".join(text.split())
        assert "MulticlassRecall, class 3, validation" in text
        assert "MulticlassRecall, class 3, test" in text
    printed = " ".join(guarded.output.split())
    assert words in printed
    assert "MulticlassRecall, class 3" in printed


def test_a_model_chosen_for_another_drop_keeps_them(guarded: Run, tmp_path: Path) -> None:
    project = guarded.project.copy(tmp_path)
    command = project.kedro("aat", "choose", "--max-drop", "0.5", "--confirm", "--params", small_parameters({}))
    assert command.wait() == 0, command.output
    assert "epoch 1 " not in command.output
    assert project.summary["budget"]["drop"] == 0.5
    assert_kept(project)

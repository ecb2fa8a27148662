"""The most accurate model under limits of the file, through `kedro` commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pandas import DataFrame

from kedro_aat.budget import Outcome
from kedro_aat.config import AatSettings
from kedro_aat.delivery.results import SkippedSearch
from kedro_aat.pipelines.aat.search import finetune_later_stage
from tests.pipelines.aat.conftest import Run
from tests.projects import UNREHEARSED, Project
from tests.reporting.runs import summary_of

FROM = ("--from-nodes", "evaluate_baseline")
GOAL = UNREHEARSED | {"aat.goal": "accuracy", "aat.budget.max_drop": 0.5}


def limited(key: str, share: float, project: Project) -> dict[str, Any]:
    limit = int(share * project.summary["baseline"][key])
    return GOAL | {f"aat.export.limits.{key}": limit}


ONE_STAGE = {"aat.second_stage": "null"}


RunOnce = Callable[..., Run]


def limited_run(key: str, share: float, second: dict[str, Any], finished: Project, run_once: RunOnce) -> Run:
    return run_once(f"limited_{key}_{len(second)}", *FROM, **limited(key, share, finished), **second)


# For a limit of bytes, the file is exported at each rate that is tried; `tests/delivery/test_limits.py` has a twin.
@pytest.mark.parametrize(
    ("key", "share", "second"),
    [
        ("macs", 0.3, ONE_STAGE),
        pytest.param("onnx_bytes", 0.5, ONE_STAGE, marks=pytest.mark.slow),
        pytest.param("macs", 0.3, {}, marks=pytest.mark.slow),
    ],
    ids=["macs", "onnx_bytes", "macs, two stages"],
)
def test_delivered_file_keeps_the_limit_and_is_the_most_accurate_that_was_measured(
    key: str, share: float, second: dict[str, Any], finished: Project, run_once: RunOnce
) -> None:
    run = limited_run(key, share, second, finished, run_once)
    project = run.project
    summary = project.summary
    assert summary["goal"] == "accuracy"
    assert summary["outcome"] in ("within_budget", "certified")
    limit = int(share * summary["baseline"][key])
    assert summary["compressed"][key] <= limit
    kept = [each for each in summary["candidates"] if each[key] <= limit]
    assert summary["compressed"]["validation"] == max(each["validation"] for each in kept)
    stage, rows = summary["stages"][0], project.trajectory.query("trained and stage == 1")
    at_rate = rows[rows["requested_rate"] == stage["rate"]["requested"]]
    assert stage["rate"]["requested"] == rows["requested_rate"].max()
    assert stage["validation"] == pytest.approx(at_rate["metric"].max())
    assert "that the limits need" in stage["reason"]
    assert "The limits hold from a rate of " in run.output


def test_the_same_command_again_trains_nothing(finished: Project, run_once: RunOnce, tmp_path: Path) -> None:
    project = limited_run("macs", 0.3, ONE_STAGE, finished, run_once).project.copy(tmp_path)
    before = project.summary
    output = project.run(*FROM, **limited("macs", 0.3, finished), **ONE_STAGE)
    assert "epoch 1 " not in output
    assert project.summary["run"] == before["run"]
    assert project.summary["stages"][0]["rate"] == before["stages"][0]["rate"]


@pytest.mark.slow
def test_a_latency_is_not_measured_again_after_the_run_has_ended(finished: Project, tmp_path: Path) -> None:
    """Another measurement would give another rate."""
    project = finished.copy(tmp_path)
    limit = 0.5 * project.summary["baseline"]["latency_ms"]["1"]
    parameters = GOAL | ONE_STAGE | {"aat.export.limits.latency_ms": f"{{1: {limit}}}"}
    outputs, rates, runs = [], [], []
    for _ in range(2):
        outputs.append(project.run(*FROM, **parameters))
        rates.append(re.findall(r"The limits hold from a rate of (0\.\d+) on", outputs[-1]))
        runs.append((project.summary["run"], project.summary["stages"][0]["rate"]))
    assert "epoch 1 " in outputs[0]
    assert "epoch 1 " not in outputs[1]
    assert rates[0] == rates[1] != []
    assert runs[0] == runs[1]


def test_nothing_is_quantized_if_no_model_at_the_rate_keeps_the_budget() -> None:
    unused: Any = None
    goal = {"goal": "accuracy", "export": {"limits": {"macs": 1}}, "compression": {"algorithm": "filter_pruning"}}
    training = {"metric": "torchmetrics.MeanSquaredError"}
    settings = AatSettings.model_validate({"budget": {"max_drop": 1}, "training": training, "second_stage": {}} | goal)
    first, trajectory = summary_of("infeasible").stages[0], DataFrame({"stage": [1]})
    assert first.outcome is Outcome.INFEASIBLE
    _, second, known = finetune_later_stage(
        unused, unused, unused, unused, unused, unused, first, trajectory, unused, unused, settings
    )
    assert isinstance(second, SkippedSearch)
    assert known is trajectory


def test_a_limit_that_nothing_keeps_is_one_error_before_training(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    output = " ".join(project.fail(*FROM, **GOAL, **{"aat.export.limits.onnx_bytes": 100}).split())
    assert "export.limits: no rate up to 0.998 keeps them. The smallest reachable file has" in output
    assert "epoch 1 " not in output


def test_validate_finds_that_the_limit_is_missing(finished: Project, tmp_path: Path) -> None:
    command = finished.copy(tmp_path).kedro("aat", "validate", "--params", "aat.goal=accuracy")
    assert command.wait() > 0
    assert "goal: accuracy needs a limit in export.limits" in " ".join(command.output.split())

"""A second and a third stage, and stages that are skipped because their files would gain nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from kedro_aat.datasets.model import ControllerDataset
from tests.pipelines.aat.conftest import Run
from tests.projects import Project

THREE_STAGES = {
    "aat.export.objective": "gzip_bytes",  # only there do zeros take less
    "aat.second_stage.compression.algorithm": "magnitude_sparsity",
    "aat.second_stage.skip_without_gain": "true",
    "aat.second_stage.learning_rate_factor": 1,
    "aat.second_stage.search.maximal_total_epochs": 8,
    "aat.third_stage.compression.algorithm": "quantization",
    "aat.third_stage.search.kind": "frontier",
    "aat.third_stage.search.maximal_total_epochs": 2,
    "aat.third_stage.skip_without_gain": "false",  # of so small a file, integers save less than their nodes need
}


@pytest.fixture(scope="session")
def three(run_once: Callable[..., Run]) -> Run:
    return run_once("three", "--from-nodes", "finetune_second_stage", **THREE_STAGES)


@pytest.mark.slow
def test_filters_then_sparsity_within_then_int8(three: Run) -> None:
    summary = three.project.summary
    assert [stage["stage"] for stage in summary["stages"]] == [1, 2, 3]
    names = [stage["algorithms"][0] for stage in summary["stages"]]
    assert names == ["filter_pruning", "magnitude_sparsity", "quantization"]
    assert not summary["skipped"]
    candidates = {candidate["stage"]: candidate for candidate in summary["candidates"]}
    assert set(candidates) == {1, 2, 3}
    assert candidates[2]["onnx_gzip_bytes"] < 0.98 * candidates[1]["onnx_gzip_bytes"]
    best = min(candidates.values(), key=lambda candidate: candidate["onnx_gzip_bytes"])
    assert summary["delivered_id"] == best["id"]
    assert summary["compressed"]["rate"]["achieved"] == summary["stages"][0]["rate"]["achieved"]
    assert summary["epochs"]["allowed"] == 5 + 8 + 2
    assert set(three.project.trajectory["stage"]) == {1, 2, 3}
    layers = pd.read_parquet(three.project.folder / "data/08_reporting/layer_statistics.parquet")
    assert set(layers["stage"]) == {1, 2, 3}
    page = (three.project.folder / "data/08_reporting/aat_report.html").read_text()
    assert "Stage 3: quantization" in page


@pytest.mark.slow  # tests of quantization with keep_zeros have small twins
def test_zeros_of_the_second_stage_stay_zero_in_the_third(three: Run) -> None:
    sparse = ControllerDataset(filepath=str(three.project.models / "second_stage_controller")).load()
    integers = ControllerDataset(filepath=str(three.project.models / "third_stage_controller")).load()
    assert three.project.summary["stages"][1]["rate"]["achieved"] > 0.1
    assert three.project.summary["stages"][2]["rate"]["achieved"] == 1
    held = integers.strip().state_dict()  # integers are buffers, under the names of the weights
    zeros = {name: parameter == 0 for name, parameter in sparse.strip().named_parameters() if parameter.ndim > 1}
    assert sum(map(torch.Tensor.sum, zeros.values())) > 100
    assert all(held[name].dtype == torch.int8 for name in zeros)
    assert all(bool((held[name][mask] == 0).all()) for name, mask in zeros.items())
    assert all(bool(held[name].any()) for name in zeros)


def test_a_stage_without_gain_is_skipped_with_the_numbers_and_again_when_repeated(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path)
    macs = finished.summary["compressed"]["macs"]
    reason = (
        f"quantization would leave 1x as many MACs ({macs:,} instead of {macs:,}): the second stage is skipped. Set "
        "second_stage.skip_without_gain to false to train it."
    )
    for _ in range(2):
        output = project.run("--from-nodes", "finetune_second_stage", **{"aat.second_stage.skip_without_gain": "true"})
        assert reason in " ".join(output.split())
        summary = project.summary
        (skipped,) = summary["skipped"]
        assert skipped.pop("seconds")["used"] > 0
        assert skipped == {"outcome": "skipped", "stage": 2, "algorithms": ["quantization"], "reason": reason}
        assert [stage["stage"] for stage in summary["stages"]] == [1]
        assert set(project.trajectory["stage"]) == {1}
        (kept,) = (project.models / "checkpoints" / "estimates").iterdir()
        assert reason in (project.folder / "data/08_reporting/aat_report.html").read_text()
        assert str(macs) in kept.read_text()


@pytest.mark.slow
def test_a_third_stage_follows_the_first_if_the_second_is_skipped(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    project.run(
        *("--from-nodes", "finetune_second_stage"),
        **THREE_STAGES | {"aat.export.objective": "bytes"},
    )
    summary = project.summary
    assert [stage["stage"] for stage in summary["stages"]] == [1, 3]
    assert [stage["stage"] for stage in summary["skipped"]] == [2]
    assert "magnitude_sparsity would make the file 1x as large" in summary["skipped"][0]["reason"]
    assert {candidate["stage"] for candidate in summary["candidates"]} == {1, 3}
    assert set(project.trajectory["stage"]) == {1, 3}
    assert "Stage 3: quantization" in (project.folder / "data/08_reporting/aat_report.html").read_text()

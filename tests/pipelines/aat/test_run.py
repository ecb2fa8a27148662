"""The whole pipeline through `kedro` commands on the real data."""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.costs import num_parameters
from kedro_aat.datasets.model import ControllerDataset, ModelDataset
from tests.pipelines.aat.conftest import Run
from tests.projects import Project

CONTRACT: dict[str, Any] = {
    "outcome": str,
    "metric": {"name", "higher_is_better"},
    "budget": {"kind", "drop", "lowest_tolerated"},
    "baseline": {"validation", "test", "parameters", "macs", "onnx_bytes", "latency_ms"},
    "compressed": {"validation", "test", "parameters", "macs", "onnx_bytes", "latency_ms", "rate"},
    "certificate": {"statistic", "p_value", "alpha", "examples"},
    "epochs": {"used", "allowed"},
    "seed": int,
    "versions": set(),
}


def test_summary_has_the_keys_of_the_contract(finished: Project) -> None:
    summary = finished.summary
    for key, expected in CONTRACT.items():
        if isinstance(expected, set):
            assert expected <= set(summary[key]), key
        else:
            assert isinstance(summary[key], expected), key
    assert {"requested", "achieved"} <= set(summary["compressed"]["rate"])
    assert set(summary["compressed"]["latency_ms"]) == {"1", "64"}
    assert summary["baseline"]["test"] >= summary["compressed"]["test"] - 0.05
    assert summary["epochs"] == {"used": 7, "allowed": 7}


def test_model_keeps_its_budget(finished: Project) -> None:
    summary = finished.summary
    assert summary["outcome"] in ("within_budget", "certified")
    assert summary["compressed"]["validation"] >= summary["budget"]["lowest_tolerated"]
    assert summary["compressed"]["rate"]["achieved"] > 0.3


def test_what_is_reported_is_what_the_files_hold(finished: Project) -> None:
    summary = finished.summary
    compressed = summary["compressed"]
    controller = ControllerDataset(filepath=str(finished.models / "fine_tuned_controller")).load()
    assert isinstance(controller, FilterPruningController)
    assert controller.compression_rate == summary["stages"][0]["rate"]["achieved"]
    assert compressed["rate"]["achieved"] in set(finished.trajectory["achieved_rate"])
    model = ModelDataset(filepath=str(finished.models / "compressed_model")).load()
    assert num_parameters(model) == compressed["parameters"]
    assert compressed["onnx_bytes"] == (finished.models / "compressed_model.onnx").stat().st_size
    # The cut is real: as much smaller as the rate says.
    cut = num_parameters(controller.strip())
    assert 1 - cut / summary["baseline"]["parameters"] == pytest.approx(controller.compression_rate)


def test_candidates_of_both_stages_are_measured_and_one_is_delivered(finished: Project) -> None:
    summary = finished.summary
    candidates = {candidate["name"]: candidate for candidate in summary["candidates"]}
    assert set(candidates) == {"filter_pruning", "quantization"}
    for candidate in candidates.values():
        assert candidate["validation"] >= summary["budget"]["lowest_tolerated"]
        assert set(candidate["latency_ms"]) == {"1", "64"}
    # Both have the same MACs, the objective here; of equals the first stage's is delivered.
    assert candidates["quantization"]["macs"] == candidates["filter_pruning"]["macs"]
    assert summary["delivered"] == "filter_pruning"
    # Not always less: of a network as small as this, integers save no more than their additional nodes need.
    assert candidates["quantization"]["onnx_bytes"] != candidates["filter_pruning"]["onnx_bytes"]
    assert summary["compressed"]["onnx_bytes"] == candidates["filter_pruning"]["onnx_bytes"]
    assert set(finished.trajectory["stage"]) == {1, 2}


def test_exported_files_do_what_the_model_does(finished: Project) -> None:
    model = ModelDataset(filepath=str(finished.models / "compressed_model")).load()
    inputs = load_file(finished.folder / "data/05_model_input/validation.safetensors")["inputs"]
    with torch.no_grad():
        expected = model(inputs)
    session = onnxruntime.InferenceSession(str(finished.models / "compressed_model.onnx"))
    (got,) = session.run(None, {"input": inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-4)
    program = torch.export.load(finished.models / "compressed_model.pt2").module()
    torch.testing.assert_close(program(inputs[:7]), expected[:7], rtol=1e-4, atol=1e-4)


def test_onnx_file_is_lean(finished: Project) -> None:
    path = finished.models / "compressed_model.onnx"
    exported = onnx.load(str(path))
    numbers = sum(numpy_helper.to_array(tensor).nbytes for tensor in exported.graph.initializer)
    # 60 bytes and the names for each tensor and node; int8 has some three times as many of these.
    assert path.stat().st_size - numbers < (5_000 if finished.summary["delivered"] == "filter_pruning" else 12_000)
    tensors = [numpy_helper.to_array(tensor) for tensor in exported.graph.initializer]
    assert not any(np.signbit(array[array == 0]).any() for array in tensors if array.dtype == np.float32)
    baseline = finished.summary["baseline"]["onnx_gzip_bytes"]
    assert len(gzip.compress(path.read_bytes())) < 0.7 * baseline


def test_all_files_of_a_run_are_there(finished: Project) -> None:
    for path in (
        "06_models/compressed_model/model.safetensors",
        "06_models/compressed_model/recipe.json",
        "06_models/compressed_model.onnx",
        "06_models/compressed_model.pt2",
        "08_reporting/aat_summary.json",
        "08_reporting/trajectory.parquet",
        "08_reporting/layer_statistics.parquet",
        "08_reporting/aat_report.html",
        "06_models/compressed_model.md",
        "06_models/compressed_model.cdx.json",
    ):
        assert (finished.folder / "data" / path).exists(), path
    events = list((finished.folder / "data/08_reporting/tensorboard").rglob("events*"))
    assert len(events) == 2  # one a stage


def test_tensorboard_has_the_trajectory(finished: Project) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (finished.folder / "data/08_reporting/tensorboard" / finished.summary["run"]).rglob("events*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    logged = {event.step: event.value for event in accumulator.Scalars("metric/validation")}
    trained = finished.trajectory.query("trained and stage == 1").set_index("epoch")["metric"]
    assert logged == pytest.approx(trained.to_dict())


def test_second_run_takes_the_finished_state(finished: Project, repeated: Run) -> None:
    again, before = repeated.project, finished.summary
    assert "epoch 1 " not in repeated.output
    assert again.summary["compressed"]["rate"] == before["compressed"]["rate"]
    assert again.summary["run"] == before["run"]
    pd.testing.assert_frame_equal(again.trajectory, finished.trajectory)


def test_second_run_repeats_no_export_and_no_measurement(finished: Project, repeated: Run) -> None:
    assert "Finished steps are not repeated." in repeated.output
    # Not two measured latencies are equal to the last digit.
    for key in ("baseline", "candidates"):
        assert repeated.project.summary[key] == finished.summary[key]


def test_old_spelling_and_a_start_in_the_middle(finished: Project, restarted: Run) -> None:
    # Nothing between nodes lives in memory only.
    assert restarted.project.summary["compressed"]["rate"] == finished.summary["compressed"]["rate"]


def test_openvino_files_are_written_only_if_asked_for(finished: Project, restarted: Run) -> None:
    assert not (finished.models / "compressed_model.xml").exists()
    assert not (finished.models / "compressed_model.bin").exists()
    openvino = pytest.importorskip("openvino")
    again = restarted.project
    assert "OpenVINO latency, batch 1, ms" in restarted.output
    summary = again.summary
    assert summary["versions"]["openvino"].startswith(openvino.__version__.split("-")[0])
    paths = [again.models / f"compressed_model{suffix}" for suffix in (".xml", ".bin")]
    assert summary["compressed"]["openvino_bytes"] == sum(path.stat().st_size for path in paths)
    assert set(summary["baseline"]["openvino_latency_ms"]) == {"1", "64"}
    assert "OpenVINO files, bytes" in (again.folder / "data/08_reporting/aat_report.html").read_text()
    assert " and openvino 20" in (again.models / "compressed_model.md").read_text()


def test_infeasible_exports_nothing(infeasible: Run) -> None:
    again = infeasible.project
    assert again.summary["outcome"] == "infeasible"
    assert "Outcome: infeasible" in infeasible.output
    assert not (again.models / "compressed_model.onnx").exists()
    assert not (again.models / "compressed_model.pt2").exists()
    assert not (again.models / "compressed_model").exists()
    # Since nothing is compressed.
    nothing = dict.fromkeys(("exported", "counted_parameters", "all_parameters", "share_of"))
    assert again.summary["compressed"]["rate"] == {"requested": 0.0, "achieved": 0.0} | nothing
    assert again.summary["compressed"]["validation"] == again.summary["baseline"]["validation"]
    assert len(again.trajectory) > 1  # what was tried
    baseline = load_file(again.models / "baseline_model/model.safetensors")
    given_back = load_file(again.models / "fine_tuned_controller/model.safetensors")
    assert all(torch.equal(tensor, given_back[name]) for name, tensor in baseline.items())

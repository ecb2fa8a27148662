"""Two models in one run under each of Kedro's runners, and one model in threads."""

from __future__ import annotations

import pandas as pd
import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline

from kedro_aat.adoption.runners import runner_mistakes
from kedro_aat.pipelines.aat import create_pipeline
from tests.adoption.demo import Demo
from tests.servers import ObjectStore

NAMESPACES = {"small": 16, "large": 32}  # -> width of the model

MODEL = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Linear(4, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 2))
"""
PREPARE = f"""
from pathlib import Path

import torch
from demo.models import Net
from safetensors.torch import save_file


def split(size):
    inputs = torch.randn(size, 4)
    return {{"inputs": inputs, "targets": (inputs.sum(1) > 0).long()}}


for seed, (name, width) in enumerate({NAMESPACES}.items()):
    torch.manual_seed(seed)
    folder = Path("data/05_model_input") / name
    folder.mkdir(parents=True)
    for file in ("train", "validation", "test"):
        save_file(split(96), folder / f"{{file}}.safetensors")
    data, net = split(512), Net(width)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(data["inputs"]), data["targets"]).backward()
        optimizer.step()
    save_file(net.state_dict(), f"data/{{name}}.safetensors")
"""
SHORT = {
    "budget.max_drop": 0.1,
    "compression.round_to": 1,
    "search.maximal_total_epochs": 3,
    "second_stage": "null",
    "export.latency_seconds": 0.1,
    "export.objective": "macs",  # what is delivered must not depend on how busy the machine is
    "rehearsal": "false",
}


def add_models(demo: Demo) -> None:
    """Adds two models with dropout and tiny data, each in a namespace of its own."""
    demo.write("src/demo/models.py", MODEL)
    demo.write("prepare.py", PREPARE)
    demo.python("prepare.py")
    for name, width in NAMESPACES.items():
        model = ("--model", "Net", "--init-args", f"width: {width}", "--weights", f"data/{name}.safetensors")
        task = ("--data", "tensors", "--task", "classification", "--outputs", "2")
        demo.kedro("aat", "init", "--namespace", name, *model, *task)


def _results(demo: Demo, *arguments: str, names: tuple[str, ...]) -> list[object]:
    """What a short run writes of each model, without times."""
    short = ",".join(f"{name}.aat.{key}={value}" for name in NAMESPACES for key, value in SHORT.items())
    pipelines = ",".join(f"aat_{name}" for name in names)
    demo.kedro("run", "--pipelines", pipelines, "--params", short, *arguments)
    results: list[object] = []
    for name in names:
        trajectory = pd.read_parquet(demo.folder / f"data/08_reporting/{name}/trajectory.parquet")
        columns = [column for column in trajectory.columns.astype(str) if "second" not in column]
        results.append(trajectory[columns].to_json())
        results.append((demo.folder / f"data/06_models/{name}/compressed_model.onnx").read_bytes())
    return results


@pytest.mark.parametrize(
    "runner", ["kedro.runner.ThreadRunner", "<kedro.runner.thread_runner.ThreadRunner object at 0x7>"]
)
def test_threads_are_refused_for_several_models_only(runner: str) -> None:
    small, large = create_pipeline(namespace="small"), create_pipeline(namespace="large")
    catalog = DataCatalog()
    (mistake,) = runner_mistakes(runner, small + large, catalog)
    assert mistake.startswith("--runner: the run compresses 2 models (large, small); in the threads of ThreadRunner")
    assert "Use ParallelRunner" in mistake
    other = Pipeline([Node(min, "numbers", "smallest", namespace="other")])
    assert runner_mistakes(runner, small + other, catalog) == []
    assert runner_mistakes("ParallelRunner", small + large, catalog) == []


def test_processes_do_not_get_what_cannot_be_pickled_in_a_bucket(s3: ObjectStore) -> None:
    # Kedro would advise ThreadRunner, for each of the datasets.
    bucket = s3.bucket("processes")
    entries = {
        f"{{namespace}}.{name}": {"type": kind, "filepath": f"{bucket}/{{namespace}}/{name}", "credentials": "bucket"}
        for name, kind in (
            ("compressed_onnx", "kedro_aat.datasets.exported.OnnxDataset"),
            ("search_result", "json.JSONDataset"),
            ("trajectory", "pandas.ParquetDataset"),
        )
    }
    catalog = DataCatalog.from_config(entries, {"bucket": s3.options})
    both = create_pipeline(namespace="small") + create_pipeline(namespace="large")
    (mistake,) = runner_mistakes("kedro.runner.ParallelRunner", both, catalog)
    assert mistake.startswith("--runner: ParallelRunner cannot give its processes 4 of the datasets at s3:// (large.")
    assert "compressed_onnx" not in mistake
    assert "Use SequentialRunner, or start a `kedro run --namespaces NAME`" in mistake
    assert runner_mistakes("kedro.runner.SequentialRunner", both, catalog) == []


def test_two_models_in_threads_are_refused_before_anything_runs(demo: Demo) -> None:
    for name in NAMESPACES:
        demo.kedro("aat", "init", "--namespace", name)
    output = demo.kedro("run", "--pipelines", "aat_small,aat_large", "--runner", "ThreadRunner", code=1)
    assert "--runner: the run compresses 2 models (large, small)" in " ".join(output.split())
    assert "Running node" not in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_models_in_processes_get_what_they_get_one_after_the_other(demo: Demo) -> None:
    add_models(demo)
    names = tuple(NAMESPACES)
    alone = [_results(demo.copy(demo.folder.parent / name), names=(name,)) for name in names]
    together = _results(demo.copy(demo.folder.parent / "together"), names=names)
    assert together == [*alone[0], *alone[1]]
    for number in range(3):
        copy = demo.copy(demo.folder.parent / f"processes-{number}")
        assert _results(copy, "--runner", "ParallelRunner", names=names) == together


@pytest.mark.slow
def test_one_model_in_threads_gets_what_it_gets_without(demo: Demo) -> None:
    add_models(demo)
    alone = _results(demo.copy(demo.folder.parent / "alone"), names=("small",))
    threads = demo.copy(demo.folder.parent / "threads")
    assert _results(threads, "--runner", "ThreadRunner", names=("small",)) == alone
